"""The stored completions of an evaluation: one JSON object a line, checked as they are read, graded again on demand.

Written by maths_evaluations.py and read by the report (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    from maths_rows import read_rows
    rows = list(read_rows(Path("runs/demo/base/evaluations/demo.jsonl"), problems))     # problems: {id: row}
"""

import json
import os
import sys
from collections import Counter
from itertools import islice

from grading import grade_batch
from maths_common import BadInput
from maths_rewards import format_reward

MAX_SAMPLES = 1024
REGRADE_ROWS = 1000  # at a time, so that slow answers are graded side by side
TOO_LONG = "prompt_too_long"  # the finish_reason of a problem that was left out; it counts as wrong
ROW = {  # the stored columns and their JSON types
    "id": str,
    "temperature": float,
    "sample": int,
    "completion": str,
    "tokens": int,
    "finish_reason": str,
    "answer": (str, type(None)),
    "rule": str,
    "well_formed": bool,
    "correct": bool,
}


def make_row(problem_id, temperature, sample, completion, tokens, finish_reason):
    """A row to store, not graded yet."""
    return {
        "id": problem_id,
        "temperature": temperature,
        "sample": sample,
        "completion": completion,
        "tokens": tokens,
        "finish_reason": finish_reason,
    }


def read_rows(path, problems):
    """Yields the stored completions of a data set; a torn last line is passed over, and looking changes nothing.

    Raises BadInput for a damaged line, a row that is there twice, or one whose problem the data set does not have.
    """
    seen = Counter()  # (problem id, temperature) -> a bit for every sample
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return  # it was being written when the process was killed
            row = parse_row(line)
            if row is None:
                raise BadInput(f"{path}, line {number} is damaged: delete the line, then start the same command again")
            if row["id"] not in problems:
                raise BadInput(f"{path}, line {number} is of another data set: choose another --output_dir")
            key = problems[row["id"]]["id"], row["temperature"]
            if seen[key] >> row["sample"] & 1:
                raise BadInput(f"{path}, line {number} is there twice: delete the line, then start again")
            seen[key] |= 1 << row["sample"]
            yield row


def parse_row(line):
    """A stored row, or None if the line is not one."""
    try:
        row = json.loads(line)
        well_typed = row.keys() == ROW.keys() and all(isinstance(row[c], ROW[c]) for c in ROW)
        return row if well_typed and 0 <= row["sample"] < MAX_SAMPLES else None
    except (ValueError, AttributeError, RecursionError):
        return None


def cut_torn_line(path):
    """Drop what follows the last line end, a line that a killed process was writing; call it under the lock."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - 65536)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            at = start + found + 1 if found >= 0 else start
            if found >= 0:
                break
        if at < end:
            print(f"{path}: dropped a line that was cut short", file=sys.stderr)
            file.truncate(at)


def grade_rows(rows, problems):
    """Put the current grader's verdict into rows that hold a completion; returns the rows."""
    texts, golds = [r["completion"] for r in rows], [problems[r["id"]] for r in rows]
    grades = grade_batch(texts, [g["gold"] for g in golds], [g["kind"] for g in golds])
    for row, grade, form in zip(rows, grades, format_reward(texts), strict=True):
        row |= {"answer": grade.answer, "rule": grade.rule, "well_formed": form > 0, "correct": grade.correct}
    return rows


def to_lines(rows):
    """JSON lines; lone surrogates in a completion are escaped rather than written."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def regrade(path, problems):
    """Grade a data set's stored completions again and replace the file; returns how many verdicts changed."""
    temporary, changed = path.with_name(path.name + ".tmp"), 0
    stored = read_rows(path, problems)
    with open(temporary, "w", encoding="utf-8") as file:
        while rows := list(islice(stored, REGRADE_ROWS)):
            before = [row["correct"] for row in rows]
            file.write(to_lines(grade_rows(rows, problems)))
            changed += sum(row["correct"] != verdict for row, verdict in zip(rows, before, strict=True))
    os.replace(temporary, path)
    return changed


def count_left_out(path, problems, ids):
    """{temperature: how many of these problems were left out because their prompt does not fit}."""
    wanted = set(ids)
    rows = (r for r in read_rows(path, problems) if r["finish_reason"] == TOO_LONG and r["sample"] == 0)
    return Counter(r["temperature"] for r in rows if r["id"] in wanted)

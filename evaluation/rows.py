"""The stored completions of an evaluation: one JSON object a line, checked as they are read, graded again on demand.

Written by maths_evaluations.py and read by the report (Probability Smoothing Policy Optimisation,
arXiv 2509.21282).

    from evaluation.rows import read_rows
    rows = list(read_rows(Path("runs/demo/base/evaluations/demo.jsonl"), problems))     # problems: {id: row}
"""

import json
import os
import sys
from collections import Counter, defaultdict
from itertools import islice
from typing import NamedTuple

from common.files import BadInput
from grading import grade_batch
from maths_rewards import format_reward

MAX_SAMPLES = 1024
REGRADE_ROWS = 1000  # at a time, so that slow answers are graded side by side
TOO_LONG = "prompt_too_long"  # the finish_reason of a problem that was left out; it counts as wrong
# The stored columns and their JSON types: what is generated, and what the grader says of it.
MADE = {"id": str, "temperature": (float, int), "sample": int, "completion": str, "tokens": int, "finish_reason": str}
ROW = {**MADE, "answer": (str, type(None)), "rule": str, "well_formed": bool, "correct": bool}


def make_row(*values):
    """A row to store, not graded yet, from the values of the columns in MADE."""
    return dict(zip(MADE, values, strict=True))


def read_rows(path, problems=None):
    """Yields the stored completions of a data set; a torn last line is passed over, and looking changes nothing.

    Raises BadInput for a damaged line, a row that is there twice, one that is not of these
    `problems`, if given, or a file that cannot be read.
    """
    seen = Counter()  # (problem id, temperature) -> a bit for every sample
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith("\n"):
                    return  # it is being written, or was when the process was killed
                row = parse_row(line)
                if row is None:
                    raise BadInput(f"{path}, line {number} is damaged: delete the line, then evaluate again")
                if problems is not None and row["id"] not in problems:
                    raise BadInput(f"{path}, line {number} is of another data set: choose another --output_dir")
                key = row["id"], row["temperature"]
                if seen[key] >> row["sample"] & 1:
                    raise BadInput(f"{path}, line {number} is there twice: delete the line, then evaluate again")
                seen[key] |= 1 << row["sample"]
                yield row
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None


def parse_row(line):
    """A stored row, or None if the line is not one."""
    try:
        row = json.loads(line)
        well_typed = row.keys() == ROW.keys() and all(isinstance(row[c], ROW[c]) for c in ROW)
        return row if well_typed and 0 <= row["sample"] < MAX_SAMPLES else None
    except (ValueError, AttributeError, RecursionError):
        return None


class Sample(NamedTuple):
    """What a stored completion says, without its text."""

    correct: bool
    well_formed: bool
    cut_off: bool
    left_out: bool  # its prompt did not fit the model, so that nothing was generated
    tokens: int
    answer: str | None  # as the grader read it; kept for wrong ones only, which is what a majority vote needs


def to_sample(row):
    """The Sample of a stored row."""
    wrong_answer = None if row["correct"] or row["answer"] is None else sys.intern(row["answer"])
    return Sample(
        correct=row["correct"],
        well_formed=row["well_formed"],
        cut_off=row["finish_reason"] == "length",
        left_out=row["finish_reason"] == TOO_LONG,
        tokens=row["tokens"],
        answer=wrong_answer,
    )


class Results:
    """The stored completions of one data set, without their texts: {temperature: {problem id: {sample: Sample}}}.

    A file is read once; what is generated afterwards is added as it is stored.
    """

    def __init__(self):
        self.samples = defaultdict(lambda: defaultdict(dict))

    def add(self, rows):
        """Take stored rows in."""
        for row in rows:
            self.samples[row["temperature"]][row["id"]][row["sample"]] = to_sample(row)

    def of(self, temperature, problem):
        """{sample: Sample} of a problem at a temperature; empty where nothing is stored."""
        return self.samples.get(temperature, {}).get(problem, {})


def read_results(path, problems=None):
    """The Results in a file of rows, empty where there is no file; raises BadInput as read_rows does."""
    results = Results()
    if path.exists():
        results.add(read_rows(path, problems))
    return results


def cut_torn_line(path):
    """Drop what follows the last line end, a line that a killed process was writing; call it under the lock."""
    with open(path, "a+b") as file:
        file.seek(0)
        end = sum(len(line) for line in file if line.endswith(b"\n"))
        if end < file.tell():
            print(f"{path}: dropped a line that was cut short", file=sys.stderr)
            file.truncate(end)


def grade_rows(rows, problems):
    """Put the current grader's verdict into rows that hold a completion; returns the rows."""
    texts = [r["completion"] for r in rows]
    golds = [problems[r["id"]] for r in rows]
    grades = grade_batch(texts, [g["gold"] for g in golds], [g["kind"] for g in golds])
    for row, grade, form in zip(rows, grades, format_reward(texts), strict=True):
        row |= {"answer": grade.answer, "rule": grade.rule, "well_formed": form > 0, "correct": grade.correct}
    return rows


def to_lines(rows):
    """JSON lines; lone surrogates in a completion are escaped rather than written."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def regrade(path, problems):
    """Grade a data set's stored completions again and replace the file; returns how many verdicts changed."""
    temporary = path.with_name(path.name + ".tmp")
    changed = 0
    stored = read_rows(path, problems)
    with open(temporary, "w", encoding="utf-8") as file:
        while rows := list(islice(stored, REGRADE_ROWS)):
            before = [row["correct"] for row in rows]
            file.write(to_lines(grade_rows(rows, problems)))
            changed += sum(row["correct"] != verdict for row, verdict in zip(rows, before, strict=True))
    os.replace(temporary, path)
    return changed

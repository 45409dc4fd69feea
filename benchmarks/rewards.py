"""What a verdict costs: the rewards beside math-verify and lm-evaluation-harness's filters, on the same completions.

Parts of cpu.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). The completions are published model
outputs with labels where --data_dir holds them, for they are not part of this project; without them the demo's own
solutions, right and wrong, numeric only. Seconds are processor time of one core.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import grading
from benchmarks.common import SCRATCH, make_row, not_run

NUMERIC_TARGET = 60_000  # verdicts a second
LATEX_TARGET = 5  # times math-verify
# lm_eval 0.4.13, lm_eval/tasks/gsm8k/gsm8k.yaml: what it extracts, and what it ignores when it compares
FILTER = r"#### (\-?[0-9\.\,]+)"
HARNESS = """
import json, sys, time
from lm_eval.api.metrics import exact_match_fn
from lm_eval.filters.extraction import RegexFilter
rows, pattern = json.load(open(sys.argv[1])), sys.argv[2]
began = time.process_time()
found = RegexFilter(regex_pattern=pattern).apply([[text] for text, _ in rows], [{} for _ in rows])
ignored = [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
verdicts = [exact_match_fn(predictions=[f[0]], references=[gold], regexes_to_ignore=ignored)["exact_match"] == 1
            for f, (_, gold) in zip(found, rows)]
print(json.dumps({"seconds": time.process_time() - began, "verdicts": [bool(v) for v in verdicts]}))
"""


def demo_rows(limit):
    """(completion, gold, whether it is right, False) of the demo's test solutions, each once with its neighbour's."""
    from common.datasets import load_maths_dataset

    rows = load_maths_dataset("demo", "test", None).to_list()[:limit]
    rows = [(row["solution"], other["gold"]) for i, row in enumerate(rows) for other in (row, rows[i - 1])]
    return [(text, gold, text.split()[-1] == gold, False) for text, gold in rows]


def labelled_rows(data_dir, limit):
    """({True: numeric rows, False: others}, what they are) of --data_dir, else of the demo."""
    paths = sorted((Path(data_dir) / "labelled").glob("*.dev.jsonl")) if data_dir else []
    rows = {True: [], False: []}
    for path in paths:
        rows[path.name.startswith(grading.NUMERIC)] += grading.read_rows(path, limit)
    if not paths:
        rows[True] = demo_rows(limit)
    return rows, "labelled model outputs" if paths else "the demo's solutions"


def compare_with_math_verify(options):
    """Rows: verdicts a second beside math-verify's, numeric and LaTeX, with the wrong verdicts of both."""
    kinds, source = labelled_rows(options.data_dir, 20 if options.quick else None)
    for numeric, rows in kinds.items():
        name = f"{'numeric' if numeric else 'LaTeX and others'}, {source}"
        target = ("at least", NUMERIC_TARGET if numeric else LATEX_TARGET)
        if not rows:
            yield not_run("LaTeX answers", "no labelled outputs here: give --data_dir", target)
            continue
        passes = [grading.grade_ours(rows) for _ in range(grading.PASSES)]
        theirs, their_seconds = grading.grade_math_verify(rows)
        ratios = [their_seconds / p[1] for p in passes]
        seconds = sorted(p[1] for p in passes)[grading.PASSES // 2]
        ours, others = (grading.count_wrong(v, rows) for v in ([g.correct for g in passes[0][0]], theirs))
        note = f"right refused, wrong accepted: {ours[0]}, {ours[1]}; math-verify {others[0]}, {others[1]}"
        speed = len(rows) / seconds
        if numeric:
            yield make_row(f"verdicts, {name}", speed, "verdicts/s", target=target)
            target = None
        yield make_row(f"speed, {name}", speed, "verdicts/s", "times math-verify", ratios, target, note)
    yield make_row("slowest numeric verdict on 100,000 hostile characters", grading.slowest_hostile(), "ms")


def compare_with_filters(options):
    """Rows: numeric verdicts beside those of lm_eval's task gsm8k, strict-match, timed in its own environment."""
    if not options.lm_eval_python:
        yield not_run("numeric, against lm_eval's filters", "LM_EVAL_PYTHON names no Python with lm_eval")
        return
    kinds, source = labelled_rows(options.data_dir, 20 if options.quick else None)
    rows = kinds[True]
    file = SCRATCH / "filters.json"
    file.write_text(json.dumps([[text, gold] for text, gold, *_ in rows]))
    ratios = []
    verdicts = None
    for _ in range(3):
        grades, seconds, _ = grading.grade_ours(rows)
        command = [options.lm_eval_python, "-c", HARNESS, str(file), FILTER]
        theirs = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
        ratios.append(theirs["seconds"] / seconds)
        verdicts = theirs["verdicts"]
    ours, others = (grading.count_wrong(v, rows) for v in ([g.correct for g in grades], verdicts))
    note = f"right refused, wrong accepted: {ours[0]}, {ours[1]}; strict-match {others[0]}, {others[1]}"
    speed = len(rows) / seconds
    against = "times lm_eval's filters"
    yield make_row(f"speed, numeric, {source}", speed, "verdicts/s", against, ratios, note=note)

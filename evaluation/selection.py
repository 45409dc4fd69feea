"""Problems of middling difficulty: a training file of those that a model solves sometimes, from its stored samples.

The sanity test of arXiv 2510.26788: train on what the model solves 20 to 80 % of the time, where a
working method should bring the training accuracy above 95 %. Written by maths_evaluations.py
--write_between (experiments of Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    from evaluation.selection import select_between
    rows = select_between(results, problems, 1.0, 0.2, 0.8)
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.datasets import DATASETS, find_dataset
from common.files import BadInput, write_text


@dataclass
class Selection:
    """What --write_between asks for."""

    low: float  # least share of right samples, and
    high: float  # largest, both included
    path: Path  # FILE.jsonl to write


def parse_selection(words):
    """The three words after --write_between -> Selection; raises BadInput for what cannot be written, or be trained on.

    A file that is there stays: it may be what a run was trained on.
    """
    *bounds, name = words
    try:
        low, high = map(float, bounds)
    except ValueError:
        low = 1.0
        high = 0.0
    if not 0 <= low <= high <= 1:
        raise BadInput(
            f"--write_between {' '.join(bounds)}: two shares from 0 to 1, the smaller first, then FILE.jsonl"
        )
    if name in DATASETS:
        raise BadInput(f"--write_between: {name} is a data set; name a file to write, FILE.jsonl")
    find_dataset(name)
    if not Path(name).absolute().parent.is_dir():
        raise BadInput(f"--write_between: there is no folder {Path(name).parent}")
    if Path(name).exists():
        raise BadInput(f"--write_between: {name} is there already; choose another name, or delete it")
    return Selection(low, high, Path(name))


def check_selection(datasets, temperatures, samples_per_prompt):
    """Raise BadInput unless one temperature's samples of one file of problems are asked for.

    The data sets themselves are refused: what is evaluated of them is what results are reported on.
    """
    if len(datasets or ()) != 1 or datasets[0] in DATASETS:
        raise BadInput(
            "--write_between writes a training file, and the data sets here are evaluated on their test problems: give "
            "a file of training problems, --datasets FILE.jsonl (recipes/middling.yaml says how to make one)"
        )
    if len(temperatures) != 1 or temperatures[0] == 0 or samples_per_prompt < 2:
        raise BadInput(
            "--write_between needs a share of right samples: one temperature above 0 and several samples, such as "
            "--temperatures 1 --samples_per_prompt 8"
        )


def select_between(results, problems, temperature, low, high):
    """Rows in the schema of training files of the problems whose share of right samples is in [low, high], in order.

    results: Results of the data set. problems: {id: row}. Problems without samples, or that did not
    fit, are left out.
    """
    rows = []
    for problem, row in problems.items():
        samples = results.of(temperature, problem).values()
        if not samples or any(sample.left_out for sample in samples):
            continue
        if low <= sum(sample.correct for sample in samples) / len(samples) <= high:
            answer = row["solution"] or f"#### {row['gold']}"
            extra = {name: row[name] for name in ("category", "difficulty") if row[name]}
            rows.append({"question": row["question"], "answer": answer, **extra})
    return rows


def write_selection(selection, results, problems, temperature):
    """Write the training file of a Selection and say how many problems it has; raises BadInput where none would be."""
    rows = select_between(results, problems, temperature, selection.low, selection.high)
    bounds = f"{selection.low:g} and {selection.high:g}"
    if not rows:
        raise BadInput(f"no problem has a share of right samples between {bounds}: {selection.path} is not written")
    write_text(selection.path, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{selection.path}: {len(rows)} of {len(problems)} problems, right between {bounds} of the time")

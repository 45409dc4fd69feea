"""Training files of middling problems: what is chosen against a count over the stored rows, what is refused."""

import json
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from common.datasets import load_training_split
from common.files import BadInput
from evaluation.rows import ROW, Results
from evaluation.selection import select_between
from maths_evaluations import parse_args


def make_results(shares, temperature=1.0, left_out=()):
    """Results of {problem id: (right samples, samples)}."""
    results = Results()
    for problem, (right, count) in shares.items():
        for sample in range(count):
            row = {**dict.fromkeys(ROW), "id": problem, "temperature": temperature, "sample": sample, "tokens": 1}
            reason = "prompt_too_long" if problem in left_out else "stop"
            results.add([{**row, "correct": sample < right, "well_formed": True, "finish_reason": reason}])
    return results


def make_problems(ids):
    return {
        i: {"id": i, "question": f"q{i}", "solution": f"s{i}\n#### 1", "gold": "1", "category": "", "difficulty": ""}
        for i in ids
    }


def test_both_bounds_are_included_and_the_order_is_the_data_sets():
    shares = {"a": (4, 5), "b": (1, 5), "c": (0, 5), "d": (5, 5), "e": (3, 5)}
    rows = select_between(make_results(shares), make_problems("eabcdf"), 1.0, 0.2, 0.8)
    assert [row["question"] for row in rows] == ["qe", "qa", "qb"]
    assert rows[0] == {"question": "qe", "answer": "se\n#### 1"}
    assert select_between(make_results(shares), make_problems("abcde"), 0.5, 0.2, 0.8) == []  # another temperature


def test_a_problem_that_did_not_fit_is_not_hard_but_unknown():
    results = make_results({"a": (0, 4), "b": (0, 4)}, left_out="a")
    assert [row["question"] for row in select_between(results, make_problems("ab"), 1.0, 0.0, 0.8)] == ["qb"]


def test_a_row_keeps_its_category_and_gets_its_answer_from_the_gold_where_it_has_no_solution():
    problems = make_problems("a")
    problems["a"] |= {"solution": "", "category": "sum"}
    rows = select_between(make_results({"a": (1, 2)}), problems, 1.0, 0.2, 0.8)
    assert rows == [{"question": "qa", "answer": "#### 1", "category": "sum"}]


GOOD = ["--model_path", "demo", "--datasets", "problems.jsonl", "--temperatures", "1", "--samples_per_prompt", "8"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*GOOD, "--write_between", "0.8", "0.2", "new.jsonl"], "two shares from 0 to 1, the smaller first"),
        ([*GOOD, "--write_between", "nan", "0.2", "new.jsonl"], "two shares from 0 to 1"),
        ([*GOOD, "--write_between", "a", "0.2", "new.jsonl"], "two shares from 0 to 1"),
        ([*GOOD, "--write_between", "0.2", "0.8", "gsm8k"], "gsm8k is a data set"),
        ([*GOOD, "--write_between", "0.2", "0.8", "new.txt"], "or FILE.jsonl"),
        ([*GOOD, "--write_between", "0.2", "0.8", "there.jsonl"], "there.jsonl is there already"),
        ([*GOOD, "--write_between", "0.2", "0.8", "no/new.jsonl"], "no folder no"),
        (
            [*GOOD, "--datasets", "gsm8k", "--write_between", "0.2", "0.8", "new.jsonl"],
            "give a file of training problem",
        ),
        ([*GOOD, "--temperatures", "0", "--write_between", "0.2", "0.8", "new.jsonl"], "one temperature above 0"),
        (
            [*GOOD, "--temperatures", "0.5", "1", "--write_between", "0.2", "0.8", "new.jsonl"],
            "one temperature above 0",
        ),
        ([*GOOD, "--samples_per_prompt", "1", "--write_between", "0.2", "0.8", "new.jsonl"], "several samples"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_generated(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(BadInput, match=message):
        parse_args(flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.jsonl"]


@pytest.mark.slow
def test_the_file_of_a_real_evaluation_can_be_trained_on(root, tmp_path):
    lines = (root / "demo/data/train.jsonl").read_text().splitlines(keepends=True)[:40]
    (tmp_path / "problems.jsonl").write_text("".join(lines))
    command = [sys.executable, root / "maths_evaluations.py", *GOOD, "--output_dir", "out", "--max_new_tokens", "48"]
    command += ["--write_between", "0.2", "0.8", "middling.jsonl"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in (tmp_path / "middling.jsonl").read_text().splitlines()]
    stored = [json.loads(line) for line in (tmp_path / "out/problems.jsonl").read_text().splitlines()]
    shares = [Fraction(sum(r["correct"] for r in stored if r["id"] == f"problems-{i}"), 8) for i in range(40)]
    expected = [json.loads(line) for line, x in zip(lines, shares, strict=True) if 0.2 <= x <= 0.8]
    assert [row["question"] for row in rows] == [row["question"] for row in expected]
    assert [row["answer"] for row in rows] == [re.sub("<<.*?>>", "", row["answer"]) for row in expected]
    assert 0 < len(rows) < 40 and f"middling.jsonl: {len(rows)} of 40 problems" in process.stdout
    trained, validated = load_training_split(str(tmp_path / "middling.jsonl"), 0, None)
    assert len(trained) + len(validated) == len(rows)
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "is there already" in again.stderr

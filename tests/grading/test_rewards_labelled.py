"""The grader against labelled outputs of real models, and against every gold answer of the four data sets."""

import json
import random

import pytest

from grading import grade, parse_gold, verdict


def rows(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


AGREEMENT = {  # file: least share of verdicts that agree with the labels
    "gsm8k_openai_hash": 1.0,
    "gsm8k_openai_A": 1.0,
    "mr_gsm8k_human": 1.0,
    "tora_gsm8k": 0.998,
    "qwen_math_cot_100": 0.99,
    "rasbt_math500_gpt": 0.99,
    "rasbt_math500_qwen3": 0.99,
    "handmade_edge": 0.98,
}


@pytest.mark.parametrize("name", AGREEMENT)
def test_verdicts_agree_with_labels(shared, name):
    labelled = rows(shared / "labelled" / f"{name}.dev.jsonl")
    wrong = []
    for row in labelled:
        verdict = grade(row["completion"], row["gold"], "latex" if row["dataset"] == "math" else None)
        if verdict.correct != row["label_correct"]:
            wrong.append((row["gold"], verdict))
    assert len(wrong) <= (1 - AGREEMENT[name]) * len(labelled), wrong[:10]


def golds(shared, name):
    """(raw gold answer, kind or None) of each row, by the data set's own schema."""
    data = shared / "data"
    if name == "gsm8k":
        both = rows(data / "gsm8k.train.jsonl") + rows(data / "gsm8k.test.jsonl")
        return [(row["answer"].rpartition("####")[2], "integer") for row in both]
    if name == "SVAMP":
        return [(row["Answer"], None) for row in rows(data / "svamp.train.jsonl") + rows(data / "svamp.test.jsonl")]
    if name == "asdiv":
        return [(row["answer"], None) for row in rows(data / "asdiv.validation.jsonl")]
    return [(row["answer"], "latex") for row in rows(data / "math500.test.jsonl")]


@pytest.mark.parametrize(
    ("name", "count"), [("gsm8k", 7473 + 1319), ("SVAMP", 1000), ("asdiv", 2305), ("MATH-500", 500)]
)
def test_every_gold_parses_and_is_its_own_right_answer(shared, name, count):
    answers = golds(shared, name)
    assert len(answers) == count
    for raw, kind in set(answers):
        gold = parse_gold(raw, kind)
        assert parse_gold(gold.text, gold.kind) == gold
        for answer in {raw.strip(), gold.text}:
            for completion in (f"Some words.\n#### {answer}", f"So it is \\boxed{{{answer}}}."):
                assert grade(completion, gold.text, gold.kind).correct, (raw, completion)
                assert grade(completion, raw, kind).correct, (raw, completion)


@pytest.mark.slow
def test_math500_golds_are_told_apart(shared):
    """A gold answer is wrong for every row whose answer is another one, with the pairs that mean the same listed."""
    same = [{"120", r"120^\circ"}, {"30", r"30^\circ"}, {"36", r"36^\circ", r"\$36"}, {"90", r"90^\circ"}, {"5", "x=5"},
            {"40", "40_9"}, {"15", r"15\mbox{ cm}^2"}, {"10080", r"10,\!080"}, {r"\frac14", r"\frac{1}{4}"},
            {r"2 \sqrt{5}", r"2\sqrt{5}"}, {"-2,1", "1,-2", "(-2,1)"}]  # fmt: skip
    answers = sorted({raw for raw, _ in golds(shared, "MATH-500")})
    pairs = [(a, g) for a in answers for g in answers if a != g and not any({a, g} <= group for group in same)]
    settled = [(a, g, verdict._settle(f"\\boxed{{{a}}}", parse_gold(g, "latex"))) for a, g in pairs]
    assert not [(a, g) for a, g, result in settled if result.correct]
    left = [(a, g) for a, g, result in settled if result.correct is None]
    assert len(left) < 0.2 * len(pairs)
    for a, g in random.Random(0).sample(left, 200):  # minutes for all of them
        assert not grade(f"\\boxed{{{a}}}", g, "latex").correct, (a, g)


@pytest.mark.parametrize("form", ["{}", "Answer: {}", "### Answer\n\n{}", "#### Answer:\n\n{}"])
def test_a_solution_without_a_marked_answer_is_read_at_its_end(shared, form):
    """GSM8K's own solutions end in a sentence with the answer, though not always as the last number."""
    right = []
    for row in rows(shared / "data" / "gsm8k.test.jsonl"):
        solution, _, gold = row["answer"].rpartition("\n####")
        right.append(grade(form.format(solution), gold, "integer").correct)
    assert sum(right) >= 0.95 * len(right)

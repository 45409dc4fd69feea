"""evaluation/summary.py: the metrics of a prompt, and what is said of a data set."""

from evaluation.rows import Sample
from evaluation.summary import powers_of_two, prompt_metrics, summarise, summarise_dataset


def make_samples(correct, answers):
    """Samples with these verdicts; every other one is cut off, and they get longer by a token each."""
    pairs = enumerate(zip(correct, answers, strict=True))
    return [Sample(right, True, i % 2 == 0, False, 10 + i, answer) for i, (right, answer) in pairs]


def test_prompt_metrics_by_hand():
    metrics = prompt_metrics(make_samples([1, 0, 0, 0], [None, "7", "7", None]), "integer")
    assert metrics["accuracy"] == 0.25 and metrics["pass@1"] == 0.25 and metrics["pass@2"] == 0.5
    assert metrics["pass@4"] == 1 and metrics["maj@1"] == 0.25 and metrics["maj@4"] == 0  # two votes beat one
    assert metrics["cut_off"] == 0.5 and metrics["mean_tokens"] == 11.5 and metrics["well_formed"] == 1


def test_the_interval_does_not_collapse_when_all_prompts_agree():
    summary = summarise([prompt_metrics(make_samples([1, 1], [None, None]), "integer")] * 30)
    assert summary["accuracy"]["value"] == 1 and 0.8 < summary["accuracy"]["low"] < 0.95


def test_one_prompt_has_a_wide_interval():
    summary = summarise([prompt_metrics(make_samples([1, 0], [None, "6"]), "integer")])
    assert summary["accuracy"]["low"] < 0.1 and summary["accuracy"]["high"] > 0.9


def test_summary_by_category_and_difficulty():
    problems = {i: {"category": "ab"[i % 2], "difficulty": "", "kind": "integer"} for i in range(6)}
    rows = {i: [Sample(i % 2 == 0, True, False, False, 5, None if i % 2 == 0 else "1")] for i in range(6)}
    summary = summarise_dataset(rows, problems)
    assert summary["by_category"]["a"]["accuracy"]["value"] == 1 and summary["by_category"]["b"]["prompts"] == 3
    assert "by_difficulty" not in summary


def test_powers_of_two_end_with_the_number_itself():
    assert powers_of_two(1) == [1] and powers_of_two(16) == [1, 2, 4, 8, 16] and powers_of_two(12) == [1, 2, 4, 8, 12]


def test_variations_of_one_problem_are_one_problem_for_the_interval():
    """Forty problems, each four times with the same verdicts: as sure as forty are, not as a hundred and sixty."""

    def summary_of(copies, family):
        problems = {}
        samples = {}
        for i in range(40):
            for copy in range(copies):
                name = f"{i}-{copy}"
                problems[name] = {"category": "", "difficulty": "", "kind": "integer", "family": family(i)}
                samples[name] = [Sample(i % 4 == 0, True, False, False, 5, None if i % 4 == 0 else "1")]
        return summarise_dataset(samples, problems)

    alone = summary_of(1, lambda i: "")
    together = summary_of(4, lambda i: f"family {i}")
    apart = summary_of(4, lambda i: "")
    width = [s["accuracy"]["high"] - s["accuracy"]["low"] for s in (alone, together, apart)]
    assert together["prompts"] == 160 and together["accuracy"]["value"] == alone["accuracy"]["value"] == 0.25
    assert abs(width[1] / width[0] - 1) < 0.1 and width[2] < 0.6 * width[0]
    assert together["families"]["3-2"] == "family 3" and "families" not in apart


def test_what_leaves_zero_to_one_is_no_share():
    lengths = [{"accuracy": i % 2, "steps": 3.0 + i % 5} for i in range(50)]
    found = summarise(lengths)["steps"]
    assert found["low"] < found["value"] < found["high"] and found["low"] > 4.5 and found["high"] < 5.5

"""What one evaluation says: the metrics of each prompt, their means with intervals, summary.json, its table.

Made by maths_evaluations.py from the stored completions (Probability Smoothing Policy Optimisation,
arXiv 2509.21282).

    from evaluation.summary import prompt_metrics
    prompt_metrics([Sample(True, True, False, False, 25, None)], kind="number")     # {"accuracy": 1.0, "pass@1": ...}
"""

import math
from collections import Counter
from dataclasses import asdict

import numpy as np

from common.files import BadInput, read_json, write_json
from evaluation.intervals import majority_at_k, mean_intervals, pass_at_k, sum_families
from grading import vote

SUMMARY_FILE = "summary.json"


def powers_of_two(limit):
    """1, 2, 4 ... and `limit` itself."""
    return sorted({2**i for i in range(limit.bit_length())} | {limit})


def prompt_metrics(samples, kind):
    """One prompt's metrics, {name: value}, from its Samples. kind: of its gold, see grading."""
    n = len(samples)
    correct = sum(s.correct for s in samples)
    wrong = Counter(vote(s.answer, kind) for s in samples if s.answer is not None)
    blank = n - correct - wrong.total()
    majority = majority_at_k((correct, *sorted(wrong.values())), blank)
    metrics = {"accuracy": correct / n}
    for k in powers_of_two(n):
        metrics[f"pass@{k}"] = pass_at_k(n, correct, k)
    for k in powers_of_two(n):
        metrics[f"maj@{k}"] = majority[k - 1]
    metrics["well_formed"] = sum(s.well_formed for s in samples) / n
    metrics["cut_off"] = sum(s.cut_off for s in samples) / n
    metrics["mean_tokens"] = sum(s.tokens for s in samples) / n
    return metrics


def summarise(metrics, families=None):
    """[{name: value} of each prompt] -> {"prompts": n, name: {"value", "low", "high"}}, as mean_intervals has them.

    families: of each prompt, where prompts come in families; then a family is what is independent
    of others.
    """
    names = list(metrics[0])
    values = np.array([[m[name] for name in names] for m in metrics])
    summary = {"prompts": len(values)}
    no_shares = np.flatnonzero((values.min(0) < 0) | (values.max(0) > 1))  # lengths, say
    if families:
        values = sum_families(values.T, families).T
    for name, *figures in zip(names, *mean_intervals(values, unbounded=no_shares), strict=True):
        value, low, high = (None if math.isnan(x) else round(float(x), 6) for x in figures)
        summary[name] = {"value": value, "low": low, "high": high}
    return summary


def summarise_dataset(samples, problems):
    """Everything said about one data set at one temperature: overall, by category and by difficulty.

    samples: {problem id: its Samples}. problems: {problem id: row of the data set}. A category's
    summary says which problems are in it, so that a report can pair them.
    """
    metrics = {i: prompt_metrics(found, problems[i]["kind"]) for i, found in samples.items()}
    families = find_families(problems, samples)

    def summarise_part(ids):
        return summarise([metrics[i] for i in ids], families and [families[i] for i in ids])

    summary = summarise_part(list(metrics))
    if families:
        summary["families"] = families
    if left_out := sum(found[0].left_out for found in samples.values()):
        summary["left_out"] = left_out
    for field in ("category", "difficulty"):
        parts = {}
        for group in sorted({problems[i][field] for i in metrics} - {""}):
            ids = [i for i in metrics if problems[i][field] == group]
            parts[group] = {"ids": ids, **summarise_part(ids)}
        if parts:
            summary[f"by_{field}"] = parts
    return summary


def find_families(problems, ids):
    """{problem id: its family} of these ids, a problem without one being its own; {} where no problem has any.

    The optional column `family` of a file of problems says which are variations of one, as SVAMP's
    are.
    """
    named = {i: problems[i].get("family") for i in ids}
    return {i: family or i for i, family in named.items()} if any(named.values()) else {}


def print_table(datasets, samples_per_prompt):
    """The main figures of a summary on the terminal, one line a data set and temperature."""
    columns = "data set      T prompts accuracy, 95 % interval   pass@N    maj@N well-formed cut-off tokens"
    print(f"{columns}   (N = {samples_per_prompt}, 1 at T = 0)")
    for name, temperatures in datasets.items():
        for temperature, figures in temperatures.items():
            n = max(int(key[5:]) for key in figures if key.startswith("pass@"))
            shares = ["accuracy", f"pass@{n}", f"maj@{n}", "well_formed", "cut_off"]
            accuracy, passed, majority, form, cut = (100 * figures[key]["value"] for key in shares)
            low = figures["accuracy"]["low"]
            high = figures["accuracy"]["high"]
            interval = f"({100 * low:.1f} to {100 * high:.1f})"
            print(
                f"{name:10} {temperature:>4} {figures['prompts']:7d} {accuracy:8.1f} {interval:>15} {passed:8.1f} "
                f"{majority:8.1f} {form:11.1f} {cut:7.1f} {figures['mean_tokens']['value']:6.1f}"
            )


# ---- summary.json


def summarise_results(results, problems, complete):
    """{temperature as text: summary} of a data set's Results.

    problems: {id: row of the data set}, in its order. complete: {temperature as text: how many
    problems, from the first, are answered in full}; only they are summarised, since the completions
    that end first are the short ones.
    """
    summaries = {}
    for text, count in complete.items():
        ids = list(problems)[:count]
        samples = {i: list(results.of(float(text), i).values()) for i in ids}
        summaries[text] = summarise_dataset(samples, problems)
    return summaries


def read_summary(out):
    """{data set: {temperature as text: summary}} of summary.json, {} without one. Raises BadInput if it is damaged."""
    path = out / SUMMARY_FILE
    repair = "delete it, then start the same command again"
    stored = read_json(path, repair) or {"datasets": {}}
    if not isinstance(stored.get("datasets"), dict):
        raise BadInput(f"{path} is damaged: {repair}")
    return stored["datasets"]


def count_complete(datasets):
    """{data set: {temperature as text: problems}} that a summary's data sets speak of."""
    return {name: {t: figures["prompts"] for t, figures in found.items()} for name, found in datasets.items()}


def write_summary(out, settings, datasets):
    """Write summary.json; the Settings are in it too, for a reader who has this file alone."""
    write_json(out / SUMMARY_FILE, {"settings": asdict(settings), "datasets": datasets})

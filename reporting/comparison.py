"""What a report says of methods: their accuracy, their difference from a baseline, and the words that it allows.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). One rule by
itself: only the primary family, one data set at one temperature, may say "better" or "worse"; all
other tests are exploratory:

    python -c "from reporting.comparison import judge; help(judge)"
"""

import math
from dataclasses import dataclass, field

import numpy as np

from common.datasets import DATASETS
from common.files import BadInput
from reporting.methods import (
    accuracy_of,
    find_setting,
    other_differences,
    pair_methods,
    selection_gain,
    show_setting,
)
from reporting.statistics import (
    LEVEL,
    MIN_SEEDS,
    compare,
    failure_interval,
    failure_p,
    holm,
    share_interval,
    t_quantile,
)


@dataclass
class Question:
    """What is asked of the runs, declared before their results are looked at."""

    baseline: str
    keys: list  # (data set, temperature), in the order in which they are shown
    primary: tuple  # the key of the family of tests that carries the words better and worse
    margin: float | None = None  # a difference, as a share, that would not matter
    families: dict = field(default_factory=dict)  # {data set: {problem id: its family}}, for those that have families


def order_keys(keys):
    """(data set, temperature) pairs in the order of the table of data sets, files of one's own last."""
    known = list(DATASETS)
    return sorted(keys, key=lambda key: (known.index(key[0]) if key[0] in known else len(known), key[0], key[1]))


def choose_primary(wanted, keys):
    """The key that `wanted`, DATASET@T, names; the first data set's lowest temperature where it is None.

    Raises BadInput for one that was not evaluated.
    """
    if wanted is None:
        return keys[0] if keys else None
    name, _, temperature = wanted.rpartition("@")
    try:
        key = name, float(temperature)
    except ValueError:
        key = None
    if key not in keys:
        known = ", ".join(show_key(k) for k in keys) or "nothing"
        raise BadInput(f"--primary {wanted}: not evaluated; write DATASET@TEMPERATURE and choose from {known}")
    return key


def show_key(key):
    """A (data set, temperature) as --primary takes it."""
    return f"{key[0]}@{key[1]:g}"


# ---- results


def make_results(methods, runs, question):
    """(results, controls): a row (dict) for each method, data set and temperature, and for each control of pspo.

    A row has accuracy, difference from the baseline and verdict; see scaled_controls for the
    controls.
    """
    pairs = pair_methods([m for m in methods if any(run.scores for run in m.runs)], question.baseline)
    rows = []
    for key in question.keys:
        for m in (m for m in methods if m.scored(key)):
            row = describe_method(m, key, question)
            baseline = pairs.get(id(m))
            if baseline is not None and baseline.scored(key):
                row |= {"baseline": baseline.label, "theirs": baseline.scored(key)}
                row["lost"] = len(m.lost(key)) + len(baseline.lost(key))
                row["differs_also_in"] = " ".join(other_differences(m, baseline))
            rows.append(row)
    controls = scaled_controls(methods, runs, question)
    compare_rows(rows, controls, question)
    return rows, controls


def describe_method(m, key, question):
    """The part of a result row that needs no baseline."""
    runs = m.scored(key)
    values = accuracy_of(runs, key, question.families.get(key[0]))
    low, high = share_interval(values)
    gain = selection_gain(m, key)
    return {
        "owner": m,
        "model": m.model,
        "setting": show_setting(m.setting),
        "setting_key": m.setting,
        "method": m.label,
        "data_set": key[0],
        "temperature": key[1],
        "primary": key == question.primary,
        "learning_rate": m.chosen.value,
        "rates_tried": len(m.tried),
        "edge": m.edge,
        "runs_tried": sum(len(rate.runs) for rate in m.tried),
        "tuned_apart": any(run.tuning for run in m.chosen.runs),
        "selection_gain": gain,
        "seeds": len(values),
        "started": len(m.runs),
        "finished": sum(run.stage == "finished" for run in m.runs),
        "failed": count_failed(m.runs),
        "stand_ins": sum(key not in run.accuracy for run in runs),
        "problems": len(runs[0].scores[key]),
        "accuracy": float(values.mean()),
        "low": low,
        "high": high,
        "over": "seeds and problems" if len(values) >= MIN_SEEDS else "problems",
        "per_seed": [float(x) for x in values.mean(1)],
        **mean_metrics([run for run in runs if key in run.accuracy], key),
    }


def mean_metrics(runs, key):
    """{name: mean over runs, "name ±": half its 95 % interval} of what all summaries say beside accuracy."""
    found = [run.summary[key[0]][f"{key[1]:g}"] for run in runs]
    names = [n for n, figure in (found[0] if found else {}).items() if isinstance(figure, dict) and "value" in figure]
    metrics = {}
    for n in names:
        if n != "accuracy" and all(n in summary for summary in found):
            metrics[n], metrics[f"{n} ±"] = pool_figures([summary[n] for summary in found])
    return metrics


def pool_figures(figures):
    """The same figure of several runs, {"value", "low", "high"} each -> (mean, half its 95 % interval).

    The spread over seeds, from MIN_SEEDS on, is added to that over problems, which these seeds
    share: rather too wide than too narrow.
    """
    values = np.array([figure["value"] for figure in figures])
    halves = [(figure["high"] - figure["low"]) / 2 for figure in figures if figure["low"] is not None]
    if not halves:
        return float(values.mean()), None
    squares = np.mean(np.square(halves))
    if len(values) >= MIN_SEEDS:
        squares += (t_quantile(len(values) - 1)) ** 2 * values.var(ddof=1) / len(values)
    return float(values.mean()), float(np.sqrt(squares))


def same_seeds(runs, others):
    """Whether two methods share their seeds, from MIN_SEEDS on: the rule that is declared, whatever they correlate."""
    seeds = [run.seed for run in runs]
    return len(seeds) >= MIN_SEEDS and None not in seeds and set(seeds) == {run.seed for run in others}


def compare_rows(rows, controls, question):
    """Put differences, corrected p and verdicts into the rows that have a baseline, a family at a time."""
    tested = [row for row in rows if "baseline" in row]
    primary = [row for row in tested if is_primary(row, question)]
    exploratory = [row for row in tested if not is_primary(row, question)] + controls
    for name, family in (("primary", primary), ("exploratory", exploratory)):
        for row in family:
            row["family"] = name
            row.update(hold_against(row, len(family), question))
        correct(family, question)


def is_primary(row, question):
    """Whether a row belongs to the primary family: its data set and temperature, and a method that was trained."""
    return (row["data_set"], row["temperature"]) == question.primary and row["owner"].first.record is not None


def hold_against(row, tests, question):
    """The difference of a row's method from the runs that are "theirs"; `tests`: how many there are in the family."""
    key = row["data_set"], row["temperature"]
    families = question.families.get(key[0])
    ours = row["owner"].scored(key)
    a = accuracy_of(ours, key, families)
    b = accuracy_of(row["theirs"], key, families)
    paired = same_seeds(ours, row["theirs"])
    figures = compare(a, b, LEVEL / tests, paired, question.margin)
    if row["lost"]:
        figures |= dict.fromkeys(("p", "p_within", "detectable", "improvement_probability"))
    gaps = [float(x) for x in a.mean(1) - b.mean(1)] if paired else None
    over = "methods" if min(len(a), len(b)) >= MIN_SEEDS else "runs"
    return {**figures, "compared": over, "seeds_paired": paired, "per_seed_difference": gaps}


def describe_part(row, ids, question):
    """Accuracy of a result, and its difference from the baseline, over some of its problems; paired as the whole is."""
    key = row["data_set"], row["temperature"]
    families = question.families.get(key[0])
    a = accuracy_of(row["owner"].scored(key), key, families, ids)
    low, high = share_interval(a)
    figures = {"seeds": len(a), "problems": len(ids), "accuracy": float(a.mean()), "low": low, "high": high}
    if "theirs" in row:
        compared = compare(a, accuracy_of(row["theirs"], key, families, ids), paired=row["seeds_paired"])
        figures |= {name: compared[name] for name in ("difference", "difference_low", "difference_high")}
    return figures


def correct(family, question):
    """Holm's correction over a family of rows, and what may then be said of each. A test without p counts too."""
    for name in ("p", "p_within"):
        corrected = holm([1.0 if row[name] is None else row[name] for row in family])
        for row, p in zip(family, corrected, strict=True):
            row[f"{name}_holm"] = None if row[name] is None else p
    for row in family:
        row["verdict"] = judge(row, question)


def judge(row, question):
    """What a sceptic may say of a row that has a baseline.

    "better" and "worse" stand in the primary family alone, of methods and not of runs, and never of
    a mean over the runs that survived. Equivalence is said where a margin was given.
    """
    if row["lost"]:
        return f"no verdict: {row['lost']} of the runs have no score"
    differs = row["p_holm"] is not None and row["p_holm"] < LEVEL
    higher = "higher" if row["difference"] > 0 else "lower"
    within = row["p_within_holm"] is not None and row["p_within_holm"] < LEVEL
    words = []
    if differs and row["family"] == "primary" and row["compared"] == "methods":
        words.append("better" if row["difference"] > 0 else "worse")
    elif differs:
        words.append(higher)
    if within:
        words.append(f"within {100 * question.margin:g} points of {row['baseline']}")
    scope = ["exploratory"] if row["family"] == "exploratory" else []
    if row["compared"] == "runs":
        scope.append("these runs")
    said = ", ".join(words) or "no difference shown"
    return f"{', '.join(scope)}: {said}" if scope else said


def scaled_controls(methods, runs, question):
    """pspo against noclip at (1 - smoothing_alpha) times its learning rate: what its gradient says it is."""
    rows = []
    for m in methods:
        alpha = m.first.config.get("smoothing_alpha")
        if m.first.method != "pspo" or alpha is None or not m.chosen.value:
            continue
        rate = (1 - alpha) * m.chosen.value
        control = [run for run in runs if is_control(run, m, rate)]
        for key in question.keys:
            theirs = [run for run in control if key in run.scores]
            if theirs and m.scored(key):
                lost = len(m.lost(key)) + len(control) - len(theirs)
                more = {"baseline": f"noclip learning_rate={rate:g}", "theirs": theirs, "lost": lost}
                rows.append(describe_method(m, key, question) | more)
    return rows


def is_control(run, method, rate):
    """Whether a run is of noclip, in a method's setting, at about this learning rate."""
    same = run.method == "noclip" and run.model == method.model and find_setting(run) == method.setting
    same = same and not run.tuning
    return same and run.stage != "waiting" and math.isclose(run.config.get("learning_rate") or 0, rate, rel_tol=1e-6)


# ---- failures


def count_failures(methods, question):
    """A row for each method: how many of its runs failed, at all rates tried, and whether its baseline's did as often.

    The test is over the learning rates that both were tried at, and over tuning seeds alone where both have some: the
    others were not tried at each rate alike. p is corrected for all tests of failures.
    """
    tried = {id(m.tried): m for m in methods if m.first.record is not None}  # without a choice a method is several
    pairs = pair_methods(list(tried.values()), question.baseline)
    rows = [describe_failures(m, pairs.get(id(m))) for m in tried.values()]
    tested = [row for row in rows if row.get("p") is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def describe_failures(m, baseline):
    """A row of count_failures."""
    runs = [run for rate in m.tried for run in rate.runs]
    failed = count_failed(runs)
    low, high = failure_interval(failed, len(runs))
    row = {
        "model": m.model,
        "setting": show_setting(m.setting),
        "method": m.label,
        "started": len(runs),
        "finished": sum(run.stage == "finished" for run in runs),
        "failed": failed,
        "share": failed / len(runs),
        "low": low,
        "high": high,
        "why": "; ".join(sorted({run.failure for run in runs if run.failure})),
    }
    if baseline is None:
        return row
    shared = {rate.value for rate in m.tried} & {rate.value for rate in baseline.tried}
    ours = [run for rate in m.tried if rate.value in shared for run in rate.runs]
    theirs = [run for rate in baseline.tried if rate.value in shared for run in rate.runs]
    if all(any(run.tuning for run in runs) for runs in (ours, theirs)):
        ours = [run for run in ours if run.tuning]
        theirs = [run for run in theirs if run.tuning]
    row |= {"baseline": baseline.label, "theirs_failed": count_failed(theirs), "theirs_started": len(theirs)}
    if shared:
        row["p"] = failure_p(count_failed(ours), len(ours), count_failed(theirs), len(theirs))
    return row


def count_failed(runs):
    """How many runs failed."""
    return sum(bool(run.failure) for run in runs)


# ---- figures in words


def percent(low, high=None, value=None, sign=""):
    """'12.3 (10.1 to 14.5)' from fractions; with two values the interval alone."""
    if low is None or high is None or math.isnan(low):
        return "-" if value is None else f"{100 * value:{sign}.1f}"
    ends = f"({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return ends if value is None else f"{100 * value:{sign}.1f} {ends}"


def show_p(p):
    """A p as it is printed: never 0.000."""
    if p is None or math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"

"""What a report says: which runs are one method, which learning rate validation chose, which difference is shown.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282), whose Runs it takes. One rule by
itself: validation chooses among learning rates, never the test set:

    python -c "from reporting.comparison import choose_rate; help(choose_rate)"
"""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from common.files import BadInput
from common.record import differing_fields, kept_validation, unexpected_differences
from reporting.statistics import LEVEL, MIN_SEEDS, compare, holm, summarise_accuracy

# What is shown of a training log.
CURVES = {
    "reward": "reward",
    "completions/mean_length": "length, tokens",
    "entropy": "entropy",
    "trust_region/approx_kl": "KL from the sampler",
    "trust_region/active_ratio": "share of tokens acted on",
    "trust_region/outside_ratio": "share of tokens outside 1±ε",
}


@dataclass
class Method:
    """The runs that differ in nothing but the seed, at the learning rate that validation chose."""

    model: str
    setting: tuple  # (num_iterations, updates a generation), () where there are none
    label: str
    runs: list
    rate: float | None
    tried: list  # of (learning rate, mean validation reward or None, runs)


# ---- methods: which runs belong together, at which learning rate


def find_setting(run):
    """(num_iterations, updates a generation is used for), () where there are no generations."""
    if run.record is None or run.record.updates_per_generation is None:
        return ()
    return run.config["num_iterations"], run.record.updates_per_generation


def show_setting(setting):
    """A setting in words."""
    plural = "" if setting and setting[1] == 1 else "s"
    return f"num_iterations {setting[0]}, {setting[1]:g} update{plural} a generation" if setting else ""


def validation(run):
    """The validation score of the weights that a run kept, more is better; None where they have none."""
    found = kept_validation(run.record, run.log) if run.record else None
    return found.score if found and math.isfinite(found.score) else None


def label_runs(runs):
    """Each run's label: the name, and the configuration's values in which runs of that name differ."""
    groups = defaultdict(list)
    for run in runs:
        if run.record:
            groups[run.model, run.name].append(run.record)
    differing = {place: differing_fields(records) for place, records in groups.items()}
    labels = []
    for run in runs:
        names = differing[run.model, run.name] if run.record else []
        labels.append(" ".join([run.name, *(f"{name}={run.config.get(name)}" for name in names)]))
    return labels


def group_methods(runs):
    """Runs -> (Methods, notes). A run that has not finished belongs to none; raises BadInput for one seed twice."""
    labels, groups, notes = label_runs(runs), defaultdict(list), []
    for i, run in enumerate(runs):
        if run.accuracy or validation(run) is not None:
            groups[run.model, find_setting(run), labels[i]].append(run)
    methods = []
    for (model, setting, label), members in sorted(groups.items()):
        rates = defaultdict(list)
        for run in members:
            rates[run.config.get("learning_rate")].append(run)
        for a, b in (pair for same in rates.values() for pair in itertools.combinations(same, 2)):
            if a.seed == b.seed:
                raise BadInput(f"{a.path} and {b.path} are one method with one seed: give only one of them")
        chosen, tried, note = choose_rate(rates, f"{model}, {label}")
        notes += note
        for rate in chosen:
            shown = label if len(chosen) == 1 else f"{label} learning_rate={rate:g}"
            evaluated = [run for run in rates[rate] if run.accuracy]
            methods.append(Method(model, setting, shown, evaluated, rate, tried))
    return [m for m in methods if m.runs], notes


def choose_rate(rates, name):
    """{learning rate: runs} -> ([the rate of the best mean validation score], tried, notes), all rates without any."""
    tried = []
    for rate, runs in sorted(rates.items(), key=lambda item: item[0] or 0):
        scores = [s for run in runs if (s := validation(run)) is not None]
        tried.append((rate, float(np.mean(scores)) if scores else None, len(runs)))
    if len(tried) == 1:
        return [tried[0][0]], tried, []
    scored = [(score, rate, count) for rate, score, count in tried if score is not None]
    if not scored:
        return list(rates), tried, [f"{name}: no run was validated, so that no learning rate is chosen"]
    best, unlike = max(scored)[1], len({count for _, _, count in scored}) > 1
    notes = [f"{name}: learning rates were tried with unlike numbers of seeds"] if unlike else []
    if not any(run.accuracy for run in rates[best]):
        notes.append(f"{name}: the learning rate that validation chose, {best:g}, is not evaluated")
    return [best], tried, notes


def find_baseline(method, methods, wanted):
    """The Method that another is compared with, or None: `wanted` in the same setting, else the only one there is."""
    same = [m for m in methods if m.model == method.model and wanted in (m.label, m.runs[0].name, m.runs[0].method)]
    same.sort(key=lambda m: (wanted != m.label, wanted != m.runs[0].name))
    here = [m for m in same if m.setting == method.setting]
    if here:
        return here[0]
    return same[0] if len(same) == 1 and not (method.setting and same[0].setting) else None


def other_differences(method, baseline):
    """Keys of the configuration, beyond the method's own, in which a method's runs differ from the baseline's."""
    a = method.runs[0].record
    b = baseline.runs[0].record
    return unexpected_differences(a, b) if a and b else []


# ---- results


def accuracy_of(runs, key):
    """Accuracies [runs, problems] of the runs that have this data set and temperature."""
    runs = [run for run in runs if key in run.accuracy]
    ids = sorted(runs[0].accuracy[key]) if runs else []
    return np.array([[run.accuracy[key][i] for i in ids] for run in runs])


def hold_against(label, runs, theirs, key, tests=1):
    """The part of a result row that needs a baseline: its runs are `theirs`, `label` their method's."""
    a, b = accuracy_of(runs, key), accuracy_of(theirs, key)
    return {
        **compare(a, b, tests),
        "baseline": label,
        "over": "methods" if min(len(a), len(b)) >= MIN_SEEDS else "runs",
    }


def judge(row):
    """What a sceptic may say of a row with a difference and its corrected p."""
    if row.get("difference") is None:
        return ""
    if row["p_holm"] is None or row["p_holm"] >= LEVEL:
        return "no difference shown"
    better = "better" if row["difference"] > 0 else "worse"
    return better if row["over"] == "methods" else f"these runs {better}"


def make_results(methods, keys, wanted):
    """A row (dict) for each method, data set and temperature, with the difference from its baseline and Holm's p."""
    rows = []
    for key in keys:
        members = [m for m in methods if any(key in run.accuracy for run in m.runs)]
        pairs = {id(m): b for m in members if (b := find_baseline(m, members, wanted)) is not None and b is not m}
        families = Counter((m.model, m.setting) for m in members if id(m) in pairs)
        block = []
        for m in members:
            row = describe_method(m, key)
            if b := pairs.get(id(m)):
                row |= hold_against(b.label, m.runs, b.runs, key, families[m.model, m.setting])
                row["differs_also_in"] = " ".join(other_differences(m, b))
            block.append(row)
        for family in families:
            tested = [r for r in block if r.get("baseline") and (r["model"], tuple(r["setting_key"])) == family]
            corrected = holm([math.nan if r["p"] is None else r["p"] for r in tested])
            for row, p in zip(tested, corrected, strict=True):
                row["p_holm"] = None if math.isnan(p) else p
                row["verdict"] = judge(row)
        rows += block
    return rows


def describe_method(m, key):
    """The part of a result row that needs no baseline."""
    a, runs = accuracy_of(m.runs, key), [run for run in m.runs if key in run.accuracy]
    row = {"owner": m, "model": m.model, "setting": show_setting(m.setting), "setting_key": m.setting}
    row |= {
        "method": m.label,
        "learning_rate": m.rate,
        "rates_tried": len(m.tried),
        "runs_tried": sum(n for _, _, n in m.tried),
    }
    row |= {"data_set": key[0], "temperature": key[1], "seeds": len(a), "problems": a.shape[1]}
    row |= {"accuracy" if k == "value" else k: v for k, v in summarise_accuracy(a).items()}
    row["per_seed"] = [float(x) for x in a.mean(1)]
    return row | mean_metrics(runs, key)


def mean_metrics(runs, key):
    """Means over runs of what their summaries say beside accuracy, as far as all of them say it."""
    found = [run.summary[key[0]][f"{key[1]:g}"] for run in runs]
    names = [n for n in found[0] if n not in ("prompts", "accuracy") and not n.startswith("by_")]
    shared = [n for n in names if all(n in summary for summary in found)]
    return {n: float(np.mean([summary[n]["value"] for summary in found])) for n in shared}


def scaled_controls(methods, runs, keys):
    """pspo against noclip at (1 - smoothing_alpha) times its learning rate: what its gradient says it is."""
    rows = []
    for m in methods:
        alpha = m.runs[0].config.get("smoothing_alpha")
        if m.runs[0].method != "pspo" or alpha is None or not m.rate:
            continue
        rate = (1 - alpha) * m.rate
        control = [r for r in runs if r.method == "noclip" and r.model == m.model and r.accuracy]
        control = [r for r in control if find_setting(r) == m.setting]
        control = [r for r in control if math.isclose(r.config.get("learning_rate") or 0, rate, rel_tol=1e-6)]
        for key in keys:
            if all(any(key in run.accuracy for run in runs) for runs in (m.runs, control)):
                row = describe_method(m, key) | hold_against(f"noclip learning_rate={rate:g}", m.runs, control, key)
                row["p_holm"] = row["p"]
                rows.append(row | {"verdict": judge(row)})
    return rows


def percent(low, high=None, value=None, sign=""):
    """'12.3 (10.1 to 14.5)' from fractions; with two values the interval alone."""
    if low is None or high is None or math.isnan(low):
        return "-" if value is None else f"{100 * value:{sign}.1f}"
    ends = f"({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
    return ends if value is None else f"{100 * value:{sign}.1f} {ends}"

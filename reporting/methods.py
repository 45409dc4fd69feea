"""Which runs are one method, at which learning rate, and which of them failed.

Used by maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282), whose Runs it
takes. One rule by itself: validation chooses among learning rates, never the test set, and a rate
at which a run failed is passed over:

    python -c "from reporting.methods import choose_rates; help(choose_rates)"
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from common.files import BadInput
from common.record import differing_fields, unexpected_differences
from evaluation.intervals import sum_families
from reporting.statistics import MIN_SEEDS, compare

# What scores for a run that ended without weights to evaluate; see fill_in.
RULES = {
    "no_verdict": "nothing: there is no verdict on its method",
    "base": "the base model's accuracy",
    "checkpoint": "the accuracy of its last sealed checkpoint",
}


@dataclass
class Rate:
    """The runs of a method at one learning rate. Those with a tuning seed choose the rate and are not judged."""

    value: float | None
    runs: list

    @property
    def choosing(self):
        """The runs that validation looks at: those with a tuning seed, all where there is none."""
        return [run for run in self.runs if run.tuning] or self.runs

    @property
    def judged(self):
        """The runs that are compared with other methods'."""
        return [run for run in self.runs if not run.tuning]

    @property
    def score(self):
        """Mean validation score of the weights that runs kept; None where no run has one."""
        scores = [run.score for run in self.choosing if run.score is not None]
        return float(np.mean(scores)) if scores else None

    @property
    def lost(self):
        """Share of the choosing runs that ended, or stand, without weights."""
        return np.mean([run.stage != "finished" for run in self.choosing])


@dataclass
class Method:
    """The runs that differ in nothing but the seed, at the learning rate that validation chose."""

    model: str
    setting: tuple  # (num_iterations, updates a generation), () where there are none
    label: str
    chosen: Rate
    tried: list  # of Rates, the chosen one among them
    runs: list = field(init=False)  # of the chosen rate, those that are judged, whatever became of them

    def __post_init__(self):
        self.runs = self.chosen.judged

    @property
    def first(self):
        """A run, for what all of them have in common."""
        return self.chosen.runs[0]

    @property
    def edge(self):
        """Which end of the tried rates was chosen: 'lowest', 'highest', '' for neither or where one was tried."""
        rates = [rate.value for rate in self.tried]
        if len(rates) < 2:
            return ""
        return {min(rates): "lowest", max(rates): "highest"}.get(self.chosen.value, "")

    def scored(self, key):
        """Runs with a score, their own or one that stands in, for a (data set, temperature)."""
        return [run for run in self.runs if key in run.scores]

    def lost(self, key):
        """Runs without a score that others of the method have."""
        return [run for run in self.runs if key not in run.scores]


# ---- what became of the runs


def find_base(runs, model):
    """The evaluated model, one that was not trained here, that a model's runs began from; None if it is not given."""
    found = [run for run in runs if run.record is None and run.model == model and run.accuracy]
    return found[0] if len(found) == 1 else None


def mark_below_base(runs, key):
    """Call a run failed that ended below its base model, by more than the choice of problems explains, at a
    (data set, temperature). Its score is known, so that it stays in its method's mean."""
    for run in runs:
        base = find_base(runs, run.model)
        if run.record is None or base is None or key not in run.accuracy or key not in base.accuracy:
            continue
        figures = compare(accuracy_of([run], key), accuracy_of([base], key))
        if figures["difference_high"] < 0 and not run.failure:
            run.failure = f"ended {-100 * figures['difference']:.1f} points below the base model"


def fill_in(runs, rule):
    """Give runs that failed without a score what scores in its place, as RULES has it; returns notes on those left.

    For the rule "checkpoint" reporting.runs.read_checkpoints has done it.
    """
    notes = []
    for run in (run for run in runs if run.stage == "failed" and not run.scores):
        base = find_base(runs, run.model)
        if rule == "base" and base is not None:
            run.stand_in = base.accuracy
        elif rule == "base":
            notes.append(f"{run.path} failed and {run.model} itself is not among the runs: evaluate it, add it")
        elif rule == "checkpoint" and run.checkpoint is not None:
            notes.append(f"{run.path} failed: python maths_evaluations.py --model_path {run.checkpoint} scores it")
        elif rule == "checkpoint":
            notes.append(f"{run.path} failed before its first checkpoint, so that nothing scores for it")
    return notes


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


def show_rate(value):
    """A learning rate in words."""
    return "unknown" if value is None else f"{value:g}"


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


def note_samplers(rates, name):
    """[a note] where seeds of one method took different samplers: on a card each run settles on the faster one."""
    used = {run.record.outcome.sampler for rate in rates for run in rate.runs if run.record} - {None}
    if len(used) < 2:
        return []
    return [f"{name}: some seeds were sampled by {' and some by '.join(sorted(used))}; --sampler makes it one"]


def group_methods(runs):
    """Runs -> (Methods, notes): every run that was started is in one. Raises BadInput for one seed twice."""
    groups = defaultdict(lambda: defaultdict(list))
    for run, label in zip(runs, label_runs(runs), strict=True):
        if run.stage != "waiting":
            groups[run.model, find_setting(run), label][run.config.get("learning_rate")].append(run)
    methods = []
    notes = []
    for (model, setting, label), by_rate in sorted(groups.items()):
        rates = [Rate(value, by_rate[value]) for value in sorted(by_rate, key=lambda rate: rate or 0)]
        for rate in rates:
            check_seeds(rate.runs)
        chosen, more = choose_rates(rates, f"{model}, {label}")
        notes += [*more, *note_samplers(chosen, f"{model}, {label}")]
        for rate in chosen:
            shown = label if len(chosen) == 1 else f"{label} learning_rate={show_rate(rate.value)}"
            methods.append(Method(model, setting, shown, rate, rates))
    return methods, notes


def check_seeds(runs):
    """Raise BadInput where two runs of one method at one learning rate have one seed."""
    for a, b in itertools.combinations(runs, 2):
        if a.seed == b.seed:
            raise BadInput(f"{a.path} and {b.path} are one method with one seed: give only one of them")


def choose_rates(rates, name):
    """Rates that were tried -> ([the one of the best mean validation score], notes), all of them where none has one.

    A rate at which a run failed, or is not finished, is passed over; where every rate has one, the
    rates with the smallest share of them are left to choose from.
    """
    if len(rates) == 1:
        return rates, []
    scored = [rate for rate in rates if rate.score is not None]
    if not scored:
        return rates, [f"{name}: no run was validated, so that no learning rate is chosen"]
    notes = []
    if len({len(rate.choosing) for rate in scored}) > 1:
        notes.append(f"{name}: learning rates were tried with unlike numbers of seeds")
    fewest = min(rate.lost for rate in scored)
    left = [rate for rate in scored if rate.lost == fewest]
    if passed := [show_rate(rate.value) for rate in rates if rate.lost > fewest]:
        notes.append(f"{name}: passed over for runs without an end: learning rate {', '.join(passed)}")
    if fewest > 0:
        notes.append(f"{name}: at every learning rate a run failed or is not finished")
    best = max(left, key=lambda rate: (rate.score, rate.value))
    if not any(run.accuracy for run in best.judged):
        notes.append(f"{name}: the learning rate that validation chose, {show_rate(best.value)}, is not evaluated")
    return [best], notes


def selection_gain(method, key):
    """How much of a method's accuracy, as a share, is due to the rate's being chosen on the very runs that are judged.

    Each seed is judged once more at the rate that the *other* seeds' validation chooses; the mean
    of that is what choosing among so many rates is worth on a new seed. None where tuning seeds
    chose, or a rate lacks a seed.
    """
    seeds = {run.seed for run in method.runs}
    tables = [{run.seed: run for run in rate.judged} for rate in method.tried]
    complete = all(table.keys() == seeds for table in tables)
    if len(tables) < 2 or len(seeds) < MIN_SEEDS or not complete or method.chosen.choosing != method.chosen.judged:
        return None
    if any(run.score is None or key not in run.scores for table in tables for run in table.values()):
        return None
    honest = []
    for seed in seeds:
        others = [np.mean([run.score for s, run in table.items() if s != seed]) for table in tables]
        honest.append(np.mean(list(tables[int(np.argmax(others))][seed].scores[key].values())))
    return float(accuracy_of(method.runs, key).mean() - np.mean(honest))


# ---- which method another is compared with


def has_name(method, name):
    """Whether a method is called so: by its label, its cell in a grid, or its trust region."""
    return name in (method.label, method.first.name, method.first.method)


def find_baseline(method, methods, wanted):
    """The Method that another is compared with, or None: `wanted` in the same setting, else the only one there is."""
    same = [m for m in methods if m.model == method.model and has_name(m, wanted)]
    same.sort(key=lambda m: (wanted != m.label, wanted != m.first.name))
    here = [m for m in same if m.setting == method.setting]
    if here:
        return here[0]
    return same[0] if len(same) == 1 and not (method.setting and same[0].setting) else None


def pair_methods(methods, wanted):
    """{id of a Method: its baseline}.

    Two methods of one model of which none is called `wanted`, or two single runs whatever they are,
    are compared with each other: the first that was given is the baseline, or the one that is
    called so.
    """
    pairs = {}
    for m in methods:
        baseline = find_baseline(m, methods, wanted)
        if baseline is not None and baseline is not m:
            pairs[id(m)] = baseline
    if pairs or len(methods) != 2 or methods[0].model != methods[1].model:
        return pairs
    first, other = sorted(methods, key=lambda m: (not has_name(m, wanted), m.first.place))
    single = len(first.runs) == len(other.runs) == 1
    return {id(other): first} if single or not has_name(first, wanted) else {}


def other_differences(method, baseline):
    """Fields of the configuration, beyond the method's own, in which a method's runs differ from the baseline's."""
    a = method.first.record
    b = baseline.first.record
    return unexpected_differences(a, b) if a and b else []


def accuracy_of(runs, key, families=None, ids=None):
    """Accuracies [runs, problems] of the runs that have a score at a (data set, temperature), by seed.

    families: {problem id: its family}, where problems come in families; then [runs, families], see
    sum_families. ids: of the problems that are asked for; None for all.
    """
    runs = sorted((run for run in runs if key in run.scores), key=lambda run: run.seed or 0)
    if ids is None:
        ids = sorted(runs[0].scores[key]) if runs else []
    values = np.array([[run.scores[key][i] for i in ids] for run in runs])
    return sum_families(values, [families[i] for i in ids]) if families else values

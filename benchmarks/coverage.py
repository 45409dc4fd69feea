"""Do the report's words hold? Simulated studies with a known truth, through the report's own functions.

Coverage of its 95 % intervals, size and power of its tests, for Probability Smoothing Policy Optimisation (arXiv
2509.21282). A table on standard output, the same as JSON with --output; minutes on one core.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py --trials 2000
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --trials 200 --output coverage.json

A study: runs of two methods whose ability (in the logit) differs from seed to seed by `spread`, 0.15 being about 3
points of accuracy and 0.4 about 8; the k-th seeds of both correlate. Problems differ in difficulty, and so does what a
run finds hard. Each problem is answered `samples` times.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.record import RunRecord
from evaluation.intervals import share_intervals, wilson_interval
from reporting.comparison import Question, make_results
from reporting.methods import Method, Rate
from reporting.runs import Run
from reporting.statistics import LEVEL, MIN_PAIRS, equivalence_p, estimate_difference, share_interval, two_tailed


@dataclass
class Study:
    """How two methods are simulated."""

    seeds: int = 5
    spread: float = 0.15  # of the seeds' abilities, in the logit
    correlation: float = 0.0  # of the two methods' k-th seeds
    problems: int = 100
    samples: int = 4
    level: float = 0.0  # mean of the problems' easiness, in the logit
    shift: float = 0.0  # how much better the first method is, in the logit


def simulate(rng, trials, study):
    """Accuracies of two methods, [trials, seeds, problems] each."""
    easiness = study.level + 1.5 * rng.normal(size=(trials, 1, study.problems))
    ability = rng.normal(size=(trials, study.seeds, 1))
    other = rng.normal(size=(trials, study.seeds, 1))
    other = study.correlation * ability + np.sqrt(1 - study.correlation**2) * other
    methods = []
    for own, shift in ((ability, study.shift), (other, 0.0)):
        taste = 0.5 * rng.normal(size=(trials, study.seeds, study.problems))
        chance = 1 / (1 + np.exp(-(easiness + shift + study.spread * own + taste)))
        methods.append(rng.binomial(study.samples, chance) / study.samples)
    return methods


def true_accuracy(study):
    """The mean accuracy of a method of so many seeds and problems that chance plays no part."""
    sd = np.sqrt(1.5**2 + 0.5**2 + study.spread**2)
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return float((weights / (1 + np.exp(-(study.level + sd * points)))).sum() / weights.sum())


# ---- what is measured


def cover_difference(rng, trials, study, paired):
    """Share of studies in which the interval of a difference of 0 holds it."""
    a, b = simulate(rng, trials, study)
    return float((two_tailed(estimate_difference(a, b, paired)) >= LEVEL).mean())


def cover_accuracy(rng, trials, study):
    """Share of studies in which the interval of a method's accuracy holds the truth."""
    truth = true_accuracy(study)
    intervals = np.array([share_interval(a) for a in simulate(rng, trials, study)[0]])
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


def cover_share(rng, trials, problems, samples, chances):
    """Share of evaluations whose interval holds the truth; chances: (a, b) of the problems' beta distribution."""
    truth = chances[0] / sum(chances)
    values = rng.binomial(samples, rng.beta(*chances, size=(trials, problems))) / samples
    low, high = share_intervals(values)
    return float(((low <= truth) & (truth <= high)).mean())


def cover_discordant(rng, trials, expected, problems=500):
    """Share of pairs of runs whose interval holds the truth, where so many discordant problems are expected, all of
    them in one run's favour."""
    a = (rng.random((trials, 1, problems)) < expected / problems).astype(float)
    e = estimate_difference(a, np.zeros_like(a))
    return float((two_tailed(e, expected / problems) >= LEVEL).mean())


def find_power(rng, trials, study, paired):
    """Share of studies in which a difference is found."""
    return 1 - cover_difference(rng, trials, study, paired)


def find_equivalence(rng, trials, study, margin, paired=True):
    """Share of studies in which two methods are shown to lie within a margin."""
    a, b = simulate(rng, trials, study)
    return float((equivalence_p(estimate_difference(a, b, paired), margin) < LEVEL).mean())


def make_runs(method, accuracies, crashed=()):
    """A Method whose runs have accuracies {key: [seeds, problems]}; seeds that crashed have none."""
    runs = []
    for seed in range(len(next(iter(accuracies.values())))):
        record = RunRecord("m", method, seed, "d", {}, {}, {}, {}, basis=None, origin=None)
        run = Run(Path(f"{method}/{seed}"), method, "m", seed, method, record)
        if seed in crashed:
            run.stage = "failed"
            run.failure = "crashed"
        else:
            run.accuracy = {key: dict(enumerate(values[seed])) for key, values in accuracies.items()}
            run.summary = {name: {f"{t:g}": {} for _, t in accuracies} for name, _ in accuracies}
        runs.append(run)
    rate = Rate(1e-5, runs)
    return Method("m", (2, 8), method, rate, [rate])


def simulate_report(rng, methods=9, sets=4, temperatures=5, seeds=5, problems=30, correlation=0.9):
    """The verdicts of a whole report of methods that do not differ: rows of the primary family, and the others."""
    keys = [(f"set{i}", j / 5) for i in range(sets) for j in range(temperatures)]
    easiness = {name: 1.5 * rng.normal(size=problems) for name, _ in keys}
    ability = rng.normal(size=(seeds, 1))
    found = []
    for number in range(methods + 1):
        own = correlation * ability + np.sqrt(1 - correlation**2) * rng.normal(size=(seeds, 1))
        accuracies = {}
        for name, t in keys:
            taste = 0.5 * rng.normal(size=(seeds, problems))
            accuracies[name, t] = rng.binomial(4, 1 / (1 + np.exp(-(easiness[name] + 0.2 * own + taste)))) / 4
        found.append(make_runs("noclip" if number == 0 else f"method{number}", accuracies))
    rows, _ = make_results(found, [], Question("noclip", keys, keys[0]))
    return [row for row in rows if "verdict" in row]


def count_false_words(rng, trials, **size):
    """(share of null reports that say better or worse, share that call an exploratory difference higher or lower)."""
    told = explored = 0
    for _ in range(trials):
        rows = simulate_report(rng, **size)
        told += any(row["verdict"].startswith(("better", "worse")) for row in rows)
        explored += any(row["verdict"].endswith(("higher", "lower")) for row in rows)
    return told / trials, explored / trials


def count_crashed_words(rng, trials):
    """Share of reports that call a method better of which one run in five, the worst, crashed, and the rest gained."""
    key = ("set", 0.0)
    better = 0
    for _ in range(trials):
        a, b = (x[0] for x in simulate(rng, 1, Study(shift=0.8)))
        worst = int(a.mean(1).argmin())
        methods = [make_runs("noclip", {key: b}), make_runs("clip", {key: a}, crashed=(worst,))]
        rows, _ = make_results(methods, [], Question("noclip", [key], key))
        better += any(row.get("verdict", "").startswith("better") for row in rows)
    return better / trials


# ---- the table


def measure(trials, seed=0):
    """[(what, setting, figure, what it should be)], the whole table."""
    rng = np.random.default_rng(seed)
    rows = []
    for seeds in (3, 5, 10):
        for spread in (0.0, 0.15, 0.4):
            study = Study(seeds, spread)
            where = f"{seeds} seeds, spread {spread:g}"
            rows.append(("coverage, accuracy", where, cover_accuracy(rng, trials, study), "0.93 to 0.97"))
            rows.append(("coverage, difference", where, cover_difference(rng, trials, study, False), "0.93 to 0.97"))
    for seeds in (5, 10):
        for correlation in (0.0, 0.6, 0.9, -0.3):
            study = Study(seeds, 0.4, correlation)
            where = f"{seeds} seeds, correlation {correlation:g}"
            covered = cover_difference(rng, trials, study, seeds >= MIN_PAIRS)
            rows.append(("coverage, difference, paired", where, covered, "0.93 to 0.97"))
    study = Study(5, 0.4, 0.9, problems=500, shift=0.3)
    for name, paired in (("paired", True), ("as before, not paired", False)):
        found = find_power(rng, trials, study, paired)
        rows.append((f"power, 5 points, {name}", "5 seeds, correlation 0.9", found, "paired at least twice"))
    null = Study(5, 0.15, 0.9, problems=500)
    rows.append(("shown within 3 points, truth 0", "5 seeds, paired", find_equivalence(rng, trials, null, 0.03), ""))
    edge = Study(5, 0.15, 0.9, problems=500, shift=0.155)
    gap = true_gap(edge)
    found = find_equivalence(rng, trials, edge, gap)
    rows.append(
        (f"shown within {100 * gap:.1f} points, truth {100 * gap:.1f}", "5 seeds, paired", found, "at most 0.05")
    )
    rows += measure_edges(rng, trials)
    studies = max(20, trials // 10)
    told, explored = count_false_words(rng, studies)
    where = f"4 sets x 5 temperatures x 9 methods, {studies} reports"
    rows.append(("null reports: better or worse", where, told, "at most 0.05"))
    rows.append(("null reports: higher or lower", where, explored, "at most 0.05"))
    crashed = count_crashed_words(rng, studies)
    rows.append(("better, though a fifth crashed", f"{studies} reports", crashed, "0"))
    return rows


def true_gap(study):
    """The difference of two methods' true accuracies."""
    better = Study(spread=study.spread, level=study.level + study.shift)
    return true_accuracy(better) - true_accuracy(Study(spread=study.spread, level=study.level))


def measure_edges(rng, trials):
    """The rows of the table near 0 and 100 %, and of runs that hardly differ."""
    rows = []
    for share in (0.02, 0.98):
        for samples in (1, 4, 16):
            chances = 5 * share, 5 * (1 - share)
            covered = cover_share(rng, trials, 100, samples, chances)
            rows.append(("coverage, accuracy of a run", f"{share:.0%}, {samples} samples", covered, "at least 0.93"))
    for level in (3.5, 5.5):
        study = Study(3, 0.15, level=level)
        where = f"3 seeds, {true_accuracy(study):.1%}"
        rows.append(("coverage, accuracy", where, cover_accuracy(rng, trials, study), "at least 0.93"))
    for expected in (1, 3, 6, 12):
        covered = cover_discordant(rng, trials, expected)
        rows.append(("coverage, two runs", f"{expected} discordant expected of 500", covered, "at least 0.93"))
    low, high = wilson_interval(1.0, 60)
    rows.append(("width, 60 of 60 right", "", float(high - low), "more than 0"))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000, help="studies a row; a tenth of it reports (default: 2000)")
    parser.add_argument("--output", type=Path, help="JSON file (default: none)")
    args = parser.parse_args()
    rows = measure(args.trials)
    print("| what | where | measured | should be |\n|---|---|---|---|")
    for what, where, figure, wanted in rows:
        print(f"| {what} | {where} | {figure:.3f} | {wanted} |")
    if args.output:
        named = [dict(zip(("what", "where", "measured", "should_be"), row, strict=True)) for row in rows]
        args.output.write_text(json.dumps({"trials": args.trials, "rows": named}, indent=1) + "\n")


if __name__ == "__main__":
    main()

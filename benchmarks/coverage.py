"""Do the report's words hold? Simulated studies with a known truth, through the report's own functions.

Coverage of its 95 % intervals, size and power of its tests, for Probability Smoothing Policy Optimisation (arXiv
2509.21282). A table on standard output, the same as JSON with --output: benchmarks/coverage.md says what it came to.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py                                  # four minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --trials 200 --reports 10        # 12 seconds

With --before, power is held against the test that the report had before it paired seeds:

    git show eb8b22a:maths_statistics.py > before.py && python benchmarks/coverage.py --before before.py

A study: runs of two methods whose ability (in the logit) differs from seed to seed by `spread`, 0.15 being about 3
points of accuracy and 0.4 about 8; the k-th seeds of both correlate. Problems differ in difficulty, and so does what a
run finds hard. Each problem is answered `samples` times.
"""

import argparse
import importlib.util
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
from reporting.statistics import LEVEL, equivalence_p, estimate_difference, share_interval, two_tailed

PART = 500  # studies that are simulated at once, which bounds the memory


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


def average(find_share, rng, trials, *setting):
    """What find_share(rng, trials, *setting) finds, PART studies at a time."""
    parts = [min(PART, trials - done) for done in range(0, trials, PART)]
    return float(np.average([find_share(rng, part, *setting) for part in parts], weights=parts))


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


def simulate_report(rng, methods=9, sets=4, temperatures=5, seeds=5, problems=100, correlation=0.9):
    """The rows with a verdict of a whole report of methods that do not differ, of the primary family and others.

    Seeds differ by 0.4 in the logit and there are many problems, since with less of either the tests are conservative.
    """
    keys = [(f"set{i}", j / 5) for i in range(sets) for j in range(temperatures)]
    easiness = {name: 1.5 * rng.normal(size=problems) for name, _ in keys}
    ability = rng.normal(size=(seeds, 1))
    found = []
    for number in range(methods + 1):
        own = correlation * ability + np.sqrt(1 - correlation**2) * rng.normal(size=(seeds, 1))
        accuracies = {}
        for name, t in keys:
            taste = 0.5 * rng.normal(size=(seeds, problems))
            accuracies[name, t] = rng.binomial(4, 1 / (1 + np.exp(-(easiness[name] + 0.4 * own + taste)))) / 4
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


def count_crashed_words(rng, trials, counted=True):
    """Share of reports that call a method better of which one run in five, the worst, crashed, and the rest gained.

    counted: False leaves the crashed run out, as if it had never been started.
    """
    key = ("set", 0.0)
    better = 0
    for _ in range(trials):
        a, b = (x[0] for x in simulate(rng, 1, Study(shift=0.8)))
        worst = int(a.mean(1).argmin())
        if counted:
            clip = make_runs("clip", {key: a}, crashed=(worst,))
        else:
            clip = make_runs("clip", {key: np.delete(a, worst, axis=0)})
        rows, _ = make_results([make_runs("noclip", {key: b}), clip], [], Question("noclip", [key], key))
        better += any(row.get("verdict", "").startswith("better") for row in rows)
    return better / trials


# ---- the table


def measure_coverage(rng, trials):
    """Rows [(what, setting, figures, what they should be)] on intervals over seeds and problems."""
    rows = []
    wanted = "0.93 to 0.97"
    spreads = (0.0, 0.15, 0.4)
    for seeds in (3, 5, 10):
        where = f"{seeds} seeds, spread 0 / 0.15 / 0.4"
        studies = [Study(seeds, spread) for spread in spreads]
        covered = [average(cover_accuracy, rng, trials, s) for s in studies]
        rows.append(("coverage, accuracy", where, covered, wanted))
        covered = [average(cover_difference, rng, trials, s, False) for s in studies]
        rows.append(("coverage, difference, other seeds", where, covered, wanted))
    for seeds in (3, 5, 10):
        for spread in spreads[1:]:
            studies = [Study(seeds, spread, correlation) for correlation in (0.0, 0.6, 0.9, -0.3)]
            covered = [average(cover_difference, rng, trials, s, True) for s in studies]
            where = f"{seeds} seeds, spread {spread:g}, correlation 0 / 0.6 / 0.9 / -0.3"
            rows.append(("coverage, difference, same seeds, paired", where, covered, wanted))
    return rows


def measure_power(rng, trials, before=None):
    """Rows on what the tests find. before: the module with the test that the report had before, or None."""
    where = "5 seeds, spread 0.4, correlation 0.9"
    study = Study(5, 0.4, 0.9, problems=500, shift=0.3)
    found = average(find_power, rng, trials, study, True)
    rows = [("power, 5 points, paired", where, [found], "twice those below")]
    found = average(find_power, rng, trials, study, False)
    rows.append(("power, 5 points, the same not paired", where, [found], ""))
    if before is not None:
        found = average(find_power_before, rng, trials, study, before)
        rows.append(("power, 5 points, by --before", where, [found], ""))
    where = "5 seeds, spread 0.15, correlation 0.9, paired"
    null = Study(5, 0.15, 0.9, problems=500)
    found = average(find_equivalence, rng, trials, null, 0.03)
    rows.append(("shown within 3 points, truth 0", where, [found], ""))
    edge = Study(5, 0.15, 0.9, problems=500, shift=0.155)
    gap = true_gap(edge)
    found = average(find_equivalence, rng, trials, edge, gap)
    what = f"shown within {100 * gap:.1f} points, truth {100 * gap:.1f}"
    rows.append((what, where, [found], "at most 0.05"))
    return rows


def find_power_before(rng, trials, study, before):
    """find_power by the functions of maths_statistics.py at eb8b22a."""
    a, b = simulate(rng, trials, study)
    return float((before.two_tailed(before.estimate((1, a), (-1, b))) < LEVEL).mean())


def true_gap(study):
    """The difference of two methods' true accuracies."""
    better = Study(spread=study.spread, level=study.level + study.shift)
    return true_accuracy(better) - true_accuracy(Study(spread=study.spread, level=study.level))


def measure_edges(rng, trials):
    """Rows on shares near 0 and 100 %, and on runs that hardly differ."""
    rows = []
    wanted = "at least 0.93"
    for share in (0.02, 0.98):
        chances = 5 * share, 5 * (1 - share)
        covered = [average(cover_share, rng, trials, 100, k, chances) for k in (1, 4, 16)]
        rows.append(("coverage, accuracy of a run", f"{share:.0%}, 1 / 4 / 16 samples", covered, wanted))
    studies = [Study(3, 0.15, level=level) for level in (3.5, 5.5)]
    covered = [average(cover_accuracy, rng, trials, s) for s in studies]
    shares = " / ".join(f"{true_accuracy(study):.1%}" for study in studies)
    rows.append(("coverage, accuracy", f"3 seeds, {shares}", covered, wanted))
    covered = [average(cover_discordant, rng, trials, d) for d in (1, 3, 6, 12)]
    rows.append(("coverage, two runs", "1 / 3 / 6 / 12 discordant expected of 500", covered, wanted))
    low, high = wilson_interval(1.0, 60)
    rows.append(("width, 60 of 60 right", "", [float(high - low)], "more than 0"))
    return rows


def measure_reports(rng, reports):
    """Rows on the words of whole reports; the primary family alone, being quicker, is asked five times as often."""
    told, explored = count_false_words(rng, reports)
    where = f"4 sets x 5 temperatures x 9 methods, 5 seeds, correlation 0.9, {reports} reports"
    rows = [
        ("null reports: better or worse", where, [told], "at most 0.05"),
        ("null reports: higher or lower", where, [explored], "at most 0.05"),
    ]
    many = 5 * reports
    sizes = [
        {"sets": 1, "temperatures": 1, "seeds": seeds, "correlation": correlation, "problems": 200}
        for seeds, correlation in ((3, 0.0), (5, 0.0), (5, 0.9))
    ]
    told = [count_false_words(rng, many, **size)[0] for size in sizes]
    where = f"primary family of 9 methods, 3 seeds, correlation 0 / 5, 0 / 5, 0.9, {many} reports each"
    rows.append(("null reports: better or worse", where, told, "at most 0.05"))
    rows.append(("better, though a fifth crashed", f"{many} reports", [count_crashed_words(rng, many)], "0"))
    left_out = count_crashed_words(rng, many, counted=False)
    rows.append(("better, the crashed fifth left out", f"{many} reports", [left_out], ""))
    return rows


def load_module(path):
    """The Python file as a module."""
    spec = importlib.util.spec_from_file_location("before", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000, help="studies for each figure (default: 4000)")
    parser.add_argument("--reports", type=int, default=200, help="whole reports (default: 200)")
    parser.add_argument("--before", type=Path, help="maths_statistics.py of eb8b22a (default: none)")
    parser.add_argument("--output", type=Path, help="JSON file (default: none)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    before = load_module(args.before) if args.before else None
    rows = measure_coverage(rng, args.trials) + measure_power(rng, args.trials, before)
    rows += measure_edges(rng, args.trials) + measure_reports(np.random.default_rng(1), args.reports)
    print("| what | where | measured | should be |\n|---|---|---|---|")
    for what, where, figures, wanted in rows:
        print(f"| {what} | {where} | {' / '.join(f'{figure:.3f}' for figure in figures)} | {wanted} |")
    if args.output:
        named = [dict(zip(("what", "where", "measured", "should_be"), row, strict=True)) for row in rows]
        args.output.write_text(json.dumps({"trials": args.trials, "rows": named}, indent=1) + "\n")


if __name__ == "__main__":
    main()

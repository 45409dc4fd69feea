"""The demo's study told again from runs.csv, by the rules that the report has now: intervals for every sentence.

For Probability Smoothing Policy Optimisation (arXiv 2509.21282). The completions of the study are not kept, only each
run's accuracy, so that intervals are over seeds alone: they speak of other seeds on these 500 problems, and are
narrower than the report's, which are over problems too.

    python study/restate.py
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reporting.comparison import show_p
from reporting.statistics import LEVEL, Estimate, detectable, holm, t_quantile

EIGHT = "num_iterations 2, 8 updates a generation"


def read_runs():
    """runs.csv as a table with accuracy in %."""
    runs = pd.read_csv(Path(__file__).with_name("runs.csv"))
    return runs.assign(accuracy=100 * runs["accuracy"])


def pick(runs, method, rate, temperature, setting=EIGHT):
    """Accuracies of a method's runs at a learning rate and temperature, by seed."""
    rows = runs[(runs["method"] == method) & np.isclose(runs["learning_rate"], rate)]
    rows = rows[(rows["temperature"] == temperature) & (rows["setting"] == setting)]
    return rows.sort_values("seed")["accuracy"].to_numpy()


def choose_rate(runs, method, setting=EIGHT):
    """(the learning rate of the best mean validation reward, all that were tried)."""
    rows = runs[(runs["method"] == method) & (runs["setting"] == setting)]
    scores = rows.groupby("learning_rate")["validation"].mean()
    return scores.idxmax(), sorted(scores.index)


def show_mean(values, sign=""):
    """'12.3 (10.1 to 14.5)': a mean over seeds with Student's 95 % interval."""
    half = t_quantile(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = values.mean()
    return f"{mean:{sign}.1f} ({mean - half:{sign}.1f} to {mean + half:{sign}.1f})"


def make_tables(runs, tried, chosen):
    """[(title, {method: (its accuracies, noclip's, rate)})], the primary family first.

    tried: {method: learning rates}. chosen: {method: the rate of the best mean validation reward}.
    """
    tables = []
    for title, temperature in (
        ("Greedy, each method at its chosen rate (primary)", 0),
        ("Temperature 1, same rates", 1),
    ):
        base = pick(runs, "noclip", chosen["noclip"], temperature)
        rows = {m: (pick(runs, m, rate, temperature), base, rate) for m, rate in chosen.items() if m != "noclip"}
        tables.append((title, rows))
    for rate in tried["noclip"]:
        base = pick(runs, "noclip", rate, 0)
        here = [m for m, rates in tried.items() if m != "noclip" and any(np.isclose(rate, rates))]
        tables.append((f"Greedy, all at {rate:g}", {m: (pick(runs, m, rate, 0), base, rate) for m in here}))
    controls = {}
    for method, control, rate in (("pspo", "noclip-scaled", 2.25e-5), ("pspo-half", "noclip", 1.25e-5)):
        for t in (0, 1):
            name = f"{method}, temperature {t}, against {control} at {rate:g}"
            controls[name] = pick(runs, method, chosen[method], t), pick(runs, control, rate, t), chosen[method]
    tables.append(("pspo against noclip at the rate that its gradient amounts to", controls))
    return tables


def show_detectable(gaps, tests):
    """The smallest true difference that a family of so many tests finds with a power of 0.8, in points."""
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return f"{detectable(Estimate(gaps.mean(), error, 1.0, len(gaps) - 1, 1), LEVEL / tests):.1f}"


def find_gain(runs, method, setting=EIGHT):
    """How many points of a method's greedy accuracy are due to choosing its rate on the very runs that are judged.

    As the report has it: each seed is judged once more at the rate that the other seeds' validation chooses.
    """
    rows = runs[(runs["method"] == method) & (runs["setting"] == setting) & (runs["temperature"] == 0)]
    accuracy = rows.pivot(index="seed", columns="learning_rate", values="accuracy")
    validation = rows.pivot(index="seed", columns="learning_rate", values="validation")
    honest = [accuracy.loc[seed, validation.drop(seed).mean().idxmax()] for seed in accuracy.index]
    return accuracy[validation.mean().idxmax()].mean() - np.mean(honest)


def print_tables(tables):
    """Markdown: seeds paired; p by Holm over the first table, and over all rows of the others together."""
    families = [tables[:1], tables[1:]]
    for name, family in zip(("primary", "exploratory"), families, strict=True):
        rows = [row for _, found in family for row in found.values()]
        corrected = iter(holm([stats.ttest_rel(own, base).pvalue for own, base, _ in rows]))
        for title, found in family:
            print(f"\n{title}; {name}, p by Holm over {len(rows)}:\n")
            print("| method | rate | accuracy, % | baseline's | difference | p | detectable |")
            print("|---|---|---|---|---|---|---|")
            for method, (own, base, rate) in found.items():
                cells = [method, f"{rate:g}", show_mean(own), show_mean(base), show_mean(own - base, "+")]
                cells += [show_p(next(corrected)), show_detectable(own - base, len(rows))]
                print(f"| {' | '.join(cells)} |")


def main():
    runs = read_runs()
    methods = sorted(set(runs[runs["setting"] == EIGHT]["method"]))
    tried = {m: choose_rate(runs, m)[1] for m in methods}
    chosen = {m: choose_rate(runs, m)[0] for m in methods}
    print(
        f"{len(runs.drop_duplicates('run'))} runs; 8 updates a generation; intervals over seeds, on these 500 problems."
    )
    print_tables(make_tables(runs, tried, chosen))
    print("\nWhat choosing the rate on the judged runs adds to greedy accuracy, points:")
    print(*(f"- {m}: {find_gain(runs, m):+.1f}" for m in methods), sep="\n")
    print("\nAt the edge of the rates that were tried:")
    for m in methods:
        for end, rate in (("lowest", min(tried[m])), ("highest", max(tried[m]))):
            if rate == chosen[m]:
                print(f"- {m}: {rate:g}, the {end} of {len(tried[m])}")


if __name__ == "__main__":
    main()

"""The statistics of an evaluation: pass@k, maj@k and intervals that respect that a prompt's samples belong together.

Used by maths_evaluations.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). To use a function by itself:

    python -c "from maths_statistics import pass_at_k; print(pass_at_k(16, 3, 4))"
"""

import functools
import math
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from maths_rewards import parse_gold

RESAMPLES = 2000


def pass_at_k(total, correct, k):
    """Unbiased estimate of the chance that one of k samples is right, from `correct` right ones among `total`.

    Chen et al. 2021, arXiv 2107.03374, equation 1. Raises ValueError unless 1 <= k <= total.
    """
    if not 1 <= k <= total:
        raise ValueError(f"pass@{k} needs 1 <= k <= {total}")
    return 1 - math.comb(total - correct, k) / math.comb(total, k)


@functools.lru_cache(maxsize=100_000)
def majority_at_k(votes, blank):
    """Chance that the right answer wins a majority vote among k of the N samples: one float for each k = 1 .. N.

    votes: how many samples gave each answer, the right one first (0 if nobody did). blank: samples without an answer,
    which do not vote. Exact: the average over all subsets of k samples, ties shared equally among the tied answers.
    For each number c of right votes, ways[t, s] counts the choices of s wrong or blank samples in which t answers have
    c votes and none has more; classes are added one at a time, as a product of polynomials in s and t.
    """
    total = sum(votes) + blank
    wins = np.zeros(total + 1)
    for c in range(1, votes[0] + 1):
        rivals = [n for n in votes[1:] if n]
        ways = np.zeros((1 + sum(n >= c for n in rivals), total + 1))
        ways[0, : blank + 1] = [math.comb(blank, s) for s in range(blank + 1)]
        for n in rivals:
            new = np.zeros_like(ways)
            for s in range(min(n, c) + 1):
                tied = int(s == c)
                new[tied:, s:] += math.comb(n, s) * ways[: len(ways) - tied, : total + 1 - s]
            ways = new
        won = (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)
        wins[c:] += math.comb(votes[0], c) * won[: total + 1 - c]
    return tuple(wins[k] / math.comb(total, k) for k in range(1, total + 1))


def wilson_interval(successes, total, z=1.959964):
    """95 % interval of a proportion: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    rate, spread = successes / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values, seed=0):
    """95 % intervals of the means over prompts: values [prompts, metrics] -> low [metrics], high [metrics].

    Prompts are resampled whole, so a prompt's samples stay together. The percentiles are widened for few prompts as
    Hesterberg 2015 does (https://doi.org/10.1080/00031305.2015.1089789, "expanded percentile"). One prompt: NaN.
    """
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    rng, means = np.random.default_rng(seed), []
    block = max(1, 200_000 // n)  # resamples at a time: bounds the memory
    for start in range(0, RESAMPLES, block):
        picks = rng.integers(n, size=(min(block, RESAMPLES - start), n))
        flat = (picks + np.arange(len(picks))[:, None] * n).ravel()
        means.append(np.bincount(flat, minlength=picks.size).reshape(picks.shape) @ values / n)
    tail = 0.5 * math.erfc(math.sqrt(n / (n - 1)) * _t_quantile(n - 1) / math.sqrt(2))
    return np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)


def _t_quantile(degrees, z=1.959964):
    """97.5 % point of Student's t: Abramowitz and Stegun 26.7.5; from 3 degrees on within 1 %."""
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


def powers_of_two(limit):
    """1, 2, 4 ... and `limit` itself."""
    return sorted({2**i for i in range(limit.bit_length())} | {limit})


class Sample(NamedTuple):
    """What the statistics need of a stored completion."""

    correct: bool
    well_formed: bool
    cut_off: bool
    tokens: int
    answer: str | None


def vote_of(answer):
    """What an answer counts as in a majority vote: `1,200` and `1200.0` vote for one number, other text for itself."""
    try:
        value = parse_gold(answer).value
    except ValueError:
        value = None
    return str(value) if isinstance(value, Fraction) else " ".join(answer.split())


def prompt_metrics(samples):
    """One prompt's metrics, {name: value}, from its Samples."""
    n, correct = len(samples), sum(s.correct for s in samples)
    wrong = Counter(vote_of(s.answer) for s in samples if not s.correct and s.answer is not None)
    majority = majority_at_k((correct, *sorted(wrong.values())), n - correct - wrong.total())
    metrics = {"accuracy": correct / n}
    metrics |= {f"pass@{k}": pass_at_k(n, correct, k) for k in powers_of_two(n)}
    metrics |= {f"maj@{k}": majority[k - 1] for k in powers_of_two(n)}
    metrics["well_formed"] = sum(s.well_formed for s in samples) / n
    metrics["cut_off"] = sum(s.cut_off for s in samples) / n
    metrics["mean_tokens"] = sum(s.tokens for s in samples) / n
    return metrics


def summarise(metrics):
    """[{name: value} of each prompt] -> {"prompts": n, name: {"value", "low", "high"}}: mean and 95 % interval.

    A metric that is 0 or 1 for every prompt (one sample a prompt, or all samples agree) gets Wilson's interval, whose
    width does not collapse when all prompts agree; any other the bootstrap over prompts.
    """
    names = list(metrics[0])
    values = np.array([[m[name] for name in names] for m in metrics])
    summary = {"prompts": len(values)}
    for name, column, low, high in zip(names, values.T, *bootstrap_interval(values), strict=True):
        if name != "mean_tokens" and np.isin(column, (0, 1)).all():
            low, high = wilson_interval(column.sum(), len(column))
        interval = [None if math.isnan(x) else round(float(x), 6) for x in (low, high)]
        summary[name] = {"value": round(float(column.mean()), 6), "low": interval[0], "high": interval[1]}
    return summary


def summarise_dataset(rows, problems):
    """Everything said about one data set at one temperature: overall, by category and by difficulty.

    rows: {problem id: its samples}. problems: {problem id: row of the data set}.
    """
    metrics = {i: prompt_metrics(samples) for i, samples in rows.items()}
    summary = summarise(list(metrics.values()))
    for field in ("category", "difficulty"):
        groups = sorted({problems[i][field] for i in metrics} - {""})
        parts = {g: summarise([m for i, m in metrics.items() if problems[i][field] == g]) for g in groups}
        summary |= {f"by_{field}": parts} if parts else {}
    return summary


def print_table(summary):
    """The summary's main figures on the terminal, one line a data set and temperature."""
    columns = "data set      T prompts accuracy, 95 % interval   pass@N    maj@N well-formed cut-off tokens"
    print(f"{columns}   (N = {summary['settings']['samples_per_prompt']}, 1 at T = 0)")
    for name, temperatures in summary["datasets"].items():
        for temperature, figures in temperatures.items():
            n = max(int(key[5:]) for key in figures if key.startswith("pass@"))
            shares = ["accuracy", f"pass@{n}", f"maj@{n}", "well_formed", "cut_off"]
            accuracy, passed, majority, form, cut = (100 * figures[key]["value"] for key in shares)
            low, high = figures["accuracy"]["low"], figures["accuracy"]["high"]
            interval = "(one prompt)" if low is None else f"({100 * low:.1f} to {100 * high:.1f})"
            print(
                f"{name:10} {temperature:>4} {figures['prompts']:7d} {accuracy:8.1f} {interval:>15} {passed:8.1f} "
                f"{majority:8.1f} {form:11.1f} {cut:7.1f} {figures['mean_tokens']['value']:6.1f}"
            )

"""The statistics: pass@k, maj@k, and how sure a mean or a difference is, over problems and over seeds and problems.

A prompt's samples belong together and so do a training run's problems; every interval here respects that. Used by
evaluation/summary.py and maths_report.py (Probability Smoothing Policy Optimisation, arXiv 2509.21282). A function by
itself:

    python -c "from reporting.statistics import pass_at_k; print(pass_at_k(16, 3, 4))"
"""

import functools
import math
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.05
MIN_SEEDS = 3  # below, the spread between seeds cannot be told from these seeds' luck


# ---- one prompt


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


# ---- over problems: one evaluation, or the difference of two


def wilson_interval(successes, total):
    """95 % interval of a proportion: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953."""
    from scipy.stats import binomtest

    return tuple(binomtest(int(successes), int(total)).proportion_ci(0.95, method="wilson"))


def bootstrap_interval(values, seed=0):
    """95 % intervals of the means over prompts: values [prompts, metrics] -> low [metrics], high [metrics].

    Prompts are resampled whole, so a prompt's samples stay together. The percentiles are widened for few prompts as
    Hesterberg 2015 does (https://doi.org/10.1080/00031305.2015.1089789, "expanded percentile"). One prompt: NaN.
    """
    from scipy import stats

    n = len(values)
    if n < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    tail = stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    low, high = stats.bootstrap(
        (values,),
        np.mean,
        axis=0,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // values.size),  # bounds the memory
        confidence_level=1 - 2 * tail,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return low, high


def mean_intervals(values, unbounded=()):
    """Means and 95 % intervals of metrics [prompts, metrics] -> mean, low, high, each [metrics]. The one rule:

    a share that is 0 or 1 for every prompt (one sample a prompt, or all samples agree) gets Wilson's interval, whose
    width does not collapse when all prompts agree; anything else the bootstrap over prompts. unbounded: the columns
    that are no shares, such as a length or a difference.
    """
    values = np.asarray(values, dtype=float)
    low, high = bootstrap_interval(values)
    for i, column in enumerate(values.T):
        if i not in unbounded and np.isin(column, (0, 1)).all():
            low[i], high[i] = wilson_interval(column.sum(), len(column))
    return values.mean(0), low, high


# ---- over seeds and problems: what one needs to speak of a method


class Estimate(NamedTuple):
    """A mean or a difference of means, its standard error, and where the error comes from; floats or arrays."""

    value: float
    error: float
    seed_share: float  # of the error's square; 0 where seeds are too few to tell
    seed_df: float
    problem_df: float


def estimate(*groups):
    """The signed sum of groups' means over seeds and problems -> Estimate.

    groups: (sign, accuracy [..., seeds, problems]); the problems are the same in all, so that they are paired. Seeds
    and problems are crossed random effects. Problems: the variance over problems of the signed sum of seed means, less
    the residual's part in it. Seeds: the variance over each group's seeds, which holds the residual's part, with the
    degrees of freedom of Welch 1947. With fewer than MIN_SEEDS in a group the error is over problems alone.
    """
    problems = groups[0][1].shape[-1]
    per_problem = sum(sign * a.mean(-2) for sign, a in groups)
    value = per_problem.mean(-1)
    if problems < 2:
        return Estimate(value, value * np.nan, value * 0.0, value * 0.0 + 1, value * 0.0 + 1)
    of_problems = per_problem.var(-1, ddof=1) / problems
    if min(a.shape[-2] for _, a in groups) < MIN_SEEDS:
        return Estimate(value, np.sqrt(of_problems), value * 0.0, value * 0.0 + 1, value * 0.0 + problems - 1)
    of_seeds = [a.mean(-1).var(-1, ddof=1) / a.shape[-2] for _, a in groups]
    residual = sum(_residual_variance(a) / (a.shape[-2] * problems) for _, a in groups)
    of_problems, seeds = np.maximum(of_problems - residual, 0), sum(of_seeds)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.nan_to_num(seeds / (seeds + of_problems))
        df = seeds**2 / sum(v**2 / (a.shape[-2] - 1) for v, (_, a) in zip(of_seeds, groups, strict=True))
    seed_df = np.nan_to_num(df, nan=1.0)
    return Estimate(value, np.sqrt(seeds + of_problems), share, seed_df, value * 0.0 + problems - 1)


def _residual_variance(a):
    """What neither the seed nor the problem explains of accuracy [..., seeds, problems], a two-way layout."""
    fitted = a.mean(-1, keepdims=True) + a.mean(-2, keepdims=True) - a.mean((-2, -1), keepdims=True)
    return ((a - fitted) ** 2).sum((-2, -1)) / ((a.shape[-2] - 1) * (a.shape[-1] - 1))


def two_tailed(e, value=0.0):
    """Two-sided p of the hypothesis that the truth is `value`; NaN where there is no error to measure it by.

    Student's tails of the two sources of error, weighted by their shares of its square. A single t with Satterthwaite's
    degrees of freedom covers 91 to 93 % with 3 seeds, this 94 to 97 % (tests/test_statistics.py).
    """
    from scipy.stats import t

    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.abs(e.value - value) / e.error
    return 2 * (e.seed_share * t.sf(distance, e.seed_df) + (1 - e.seed_share) * t.sf(distance, e.problem_df))


def quantile(e, level):
    """The number of standard errors beyond which two_tailed() is below `level`; one Estimate of floats."""
    from scipy.optimize import brentq
    from scipy.stats import t

    ends = sorted(t.isf(level / 2, df) for df in (e.seed_df, e.problem_df))
    unit = e._replace(value=0.0, error=1.0)
    return brentq(lambda x: float(two_tailed(unit, x)) - level, ends[0] - 1e-9, ends[1] + 1e-9)


def interval(e, level=0.05):
    """The values that two_tailed() does not reject -> (low, high)."""
    half = quantile(e, level) * e.error
    return float(e.value - half), float(e.value + half)


def detectable(e, level=0.05, power=0.8):
    """The smallest true difference that a test at this level finds with this power, at this standard error.

    Bloom 1995, "Minimum detectable effects", https://doi.org/10.1177/0193841X9501900504.
    """
    return float((quantile(e, level) + quantile(e, 2 * (1 - power))) * e.error)


def holm(ps):
    """p values corrected so that the chance of any false one stays below the level: Holm 1979. NaN stays NaN."""
    order = [i for i in np.argsort(ps) if not math.isnan(ps[i])]
    corrected, largest = [math.nan] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def improvement_probability(a, b):
    """The chance that a run of `a` beats a run of `b`, ties counted half: accuracies [seeds] of both.

    Agarwal et al. 2021, arXiv 2108.13264, section 4.3, for one task.
    """
    a, b = np.asarray(a)[:, None], np.asarray(b)[None, :]
    return float(((a > b) + (a == b) / 2).mean())


def permutation_p(a, b):
    """Two-sided p that the seeds' labels do not matter: accuracies [seeds] of both; assumes no distribution.

    With n seeds each it cannot fall below 2 / C(2n, n): 0.1 for 3, 0.008 for 5.
    """
    from scipy.stats import permutation_test

    def difference(x, y, axis):
        return x.mean(axis) - y.mean(axis)

    return float(permutation_test((a, b), difference, vectorized=True, n_resamples=9999, rng=0).pvalue)


def plain(figures):
    """Figures (a dict) as floats, None for what is not known."""
    return {k: None if v is None or math.isnan(v) else float(v) for k, v in figures.items()}


def summarise_accuracy(a):
    """Accuracy [seeds, problems] -> {"value", "low_problems", "high_problems", "low", "high"}; None: not known."""
    names = ("value", "low_problems", "high_problems", "low", "high")
    over_problems = [x[0] for x in mean_intervals(a.mean(0)[:, None])]
    known = len(a) >= MIN_SEEDS and a.shape[1] > 1
    ends = np.clip(interval(estimate((1, a))), 0, 1) if known else (None, None)
    return plain(dict(zip(names, (*over_problems, *ends), strict=True)))


def compare(a, b, tests=1):
    """The paired difference of accuracies a and b [seeds, problems] -> its figures; `tests` are corrected for."""
    e = estimate((1, a), (-1, b))
    _, [low], [high] = mean_intervals((a.mean(0) - b.mean(0))[:, None], unbounded=[0])
    seeds = min(len(a), len(b)) >= MIN_SEEDS
    known = e.error > 0  # not for one problem, and not where all agree in everything
    figures = {"difference": e.value, "difference_low_problems": low, "difference_high_problems": high}
    low, high = interval(e) if seeds and known else (None, None)
    figures |= {"difference_low": low, "difference_high": high}
    figures |= {"p": two_tailed(e), "detectable": detectable(e, LEVEL / tests) if known else None}
    means = a.mean(1), b.mean(1)
    figures |= {"p_permutation": permutation_p(*means) if seeds else None}
    return plain(figures | {"improvement_probability": improvement_probability(*means) if seeds else None})

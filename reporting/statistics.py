"""How sure a method's accuracy and a difference of two are, over seeds and problems, and what may be said of many.

A training run's problems belong together, and every interval here respects that; intervals over
problems alone are in evaluation/intervals.py. Used by the report (Probability Smoothing Policy
Optimisation, arXiv 2509.21282).

    python -c "from reporting.statistics import holm; print(holm([0.01, 0.04]))"
"""

import math
from typing import NamedTuple

import numpy as np

from evaluation.intervals import Z, share_intervals, smooth_share, wilson_interval

LEVEL = 0.05
MIN_SEEDS = 3  # below, the spread between seeds cannot be told from these seeds' luck
SPARE_OF_METHODS = 1.0  # pseudo-problems beside a method's own: its seeds show a spread too


# ---- over seeds and problems: what one needs to speak of a method


class Estimate(NamedTuple):
    """A mean or a difference of means, its standard error, and where the error comes from; floats or arrays."""

    value: float
    error: float
    seed_share: float  # of the error's square; 0 where seeds are too few to tell
    seed_df: float
    problem_df: float


def estimate_share(a):
    """Accuracy [..., seeds, problems] -> the Estimate of its mean, over seeds and problems from MIN_SEEDS seeds on."""
    per_problem = a.mean(-2)
    _, variance = smooth_share(per_problem, SPARE_OF_METHODS)
    return _cross(per_problem.mean(-1), variance / a.shape[-1], [a])


def estimate_difference(a, b, paired=False):
    """Accuracies [..., seeds, problems] of two methods on the same problems -> the Estimate of a's mean less b's.

    Problems are paired; with `paired` seeds are too, and the k-th of `a` belongs to the k-th of
    `b`. Where answers hardly differ the spread that is seen says little, so that pseudo-answers are
    added to it (see spare_answers).
    """
    problems = a.shape[-1]
    gaps = a.mean(-2) - b.mean(-2)
    squares = gaps.var(-1) * problems + spare_answers(a, b, paired)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_problems = squares / (problems * (problems - 1.0))
    return _cross(gaps.mean(-1), of_problems, [a - b] if paired else [a, b])


def spare_answers(a, b, paired=False):
    """How many discordant pseudo-answers are added to a difference's squares over problems.

    z² for runs, after Agresti and Min 2005 (https://doi.org/10.1002/sim.1781), who add one: with
    none discordant among n the interval then ends at z²/n, where Wilson's does. For methods, whose
    seeds show a spread of their own, only what is lacking of z² discordant answers a pair of runs;
    above that it is none.
    """
    if min(a.shape[-2], b.shape[-2]) < MIN_SEEDS:
        return Z**2
    if paired:
        discordant = ((a - b) ** 2).mean(-2)  # [..., problems], of runs with the same seed
    else:
        discordant = (a**2).mean(-2) + (b**2).mean(-2) - 2 * a.mean(-2) * b.mean(-2)  # of every run with every other
    return np.maximum(0.0, Z**2 - discordant.sum(-1))


def _cross(value, of_problems, groups):
    """The Estimate of a mean whose variance over problems is `of_problems`; groups: [..., seeds, problems] each.

    Seeds and problems are crossed random effects. Problems: the variance over problems, less the
    residual's part in it. Seeds: the variance over each group's seeds, which holds the residual's
    part, with the degrees of freedom of Welch 1947. With fewer than MIN_SEEDS in a group the error
    is over problems alone.
    """
    problems = groups[0].shape[-1]
    zero = value * 0.0
    if min(a.shape[-2] for a in groups) < MIN_SEEDS or problems < 2:
        return Estimate(value, np.sqrt(of_problems), zero, zero + 1, zero + max(1, problems - 1))
    of_seeds = [a.mean(-1).var(-1, ddof=1) / a.shape[-2] for a in groups]
    residual = sum(_residual_variance(a) / (a.shape[-2] * problems) for a in groups)
    of_problems = np.maximum(of_problems - residual, 0)
    seeds = sum(of_seeds)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.nan_to_num(seeds / (seeds + of_problems))
        df = seeds**2 / sum(v**2 / (a.shape[-2] - 1) for v, a in zip(of_seeds, groups, strict=True))
    return Estimate(value, np.sqrt(seeds + of_problems), share, np.nan_to_num(df, nan=1.0), zero + problems - 1)


def _residual_variance(a):
    """What neither the seed nor the problem explains of accuracy [..., seeds, problems], a two-way layout."""
    fitted = a.mean(-1, keepdims=True) + a.mean(-2, keepdims=True) - a.mean((-2, -1), keepdims=True)
    return ((a - fitted) ** 2).sum((-2, -1)) / ((a.shape[-2] - 1) * (a.shape[-1] - 1))


def upper_tail(e, distance):
    """P(T > distance) of an Estimate's statistic T: Student's tails of the two sources of error, weighted by shares."""
    from scipy.special import stdtr  # Student's distribution; scipy.stats' takes fifty times as long

    return e.seed_share * stdtr(e.seed_df, -distance) + (1 - e.seed_share) * stdtr(e.problem_df, -distance)


def two_tailed(e, value=0.0):
    """Two-sided p of the hypothesis that the truth is `value`; NaN where there is no error to measure it by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 2 * upper_tail(e, np.abs(e.value - value) / e.error)


def equivalence_p(e, margin):
    """p of the hypothesis that the truth is `margin` or more away from 0: the larger of two one-sided tests'.

    Schuirmann 1987, https://doi.org/10.1007/BF01068419.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.maximum(upper_tail(e, (margin - e.value) / e.error), upper_tail(e, (margin + e.value) / e.error))


def t_quantile(df, level=LEVEL):
    """Student's t beyond which `level` lies on both sides together."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - level / 2))


def quantile(e, level=LEVEL):
    """The number of standard errors beyond which two_tailed() is below `level`; one Estimate of floats."""
    from scipy.optimize import brentq

    ends = sorted(t_quantile(df, level) for df in (e.seed_df, e.problem_df))
    return brentq(lambda x: 2 * float(upper_tail(e, x)) - level, ends[0] - 1e-9, ends[1] + 1e-9)


def difference_interval(e, level=LEVEL):
    """The differences that two_tailed() does not reject -> (low, high), within [-1, 1]."""
    half = quantile(e, level) * e.error
    return max(-1.0, float(e.value - half)), min(1.0, float(e.value + half))


def share_interval(a):
    """95 % interval of accuracy [seeds, problems] -> (low, high): over seeds and problems from MIN_SEEDS seeds on.

    Wilson's, as share_intervals has it, with the effective size and the quantile of both sources of
    error; with fewer seeds it is share_intervals' itself, the same that an evaluation prints of a
    run.
    """
    per_problem = a.mean(0)
    if len(a) < MIN_SEEDS or a.shape[1] < 2:
        return tuple(float(end) for end in share_intervals(per_problem))
    e = estimate_share(a)
    mean, _ = smooth_share(per_problem, SPARE_OF_METHODS)
    return tuple(float(end) for end in wilson_interval(e.value, mean * (1 - mean) / e.error**2, quantile(e)))


def detectable(e, level=LEVEL, power=0.8):
    """The smallest true difference that a test at this level finds with this power, at this standard error.

    Bloom 1995, "Minimum detectable effects", https://doi.org/10.1177/0193841X9501900504.
    """
    return float((quantile(e, level) + quantile(e, 2 * (1 - power))) * e.error)


def holm(ps):
    """p values corrected so that the chance of any false one stays below the level: Holm 1979. NaN stays NaN."""
    order = [i for i in np.argsort(ps) if not math.isnan(ps[i])]
    corrected = [math.nan] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def improvement_probability(a, b):
    """The chance that a run of `a` beats a run of `b`, ties counted half: accuracies [seeds] of both.

    Agarwal et al. 2021, arXiv 2108.13264, section 4.3, for one task.
    """
    a = np.asarray(a)[:, None]
    b = np.asarray(b)[None, :]
    return float(((a > b) + (a == b) / 2).mean())


def plain(figures):
    """Figures (a dict) as floats, None for what is not known."""
    return {k: None if v is None or math.isnan(v) else float(v) for k, v in figures.items()}


def compare(a, b, level=LEVEL, paired=False, margin=None):
    """What is said of the difference of accuracies a and b [seeds, problems] -> {name: figure, None: not known}.

    level: of the test whose power `detectable` speaks of. paired: the k-th seed of `a` belongs to
    the k-th of `b`. margin: the difference that would not matter, which p_within is held against.
    """
    e = estimate_difference(a, b, paired)
    means = a.mean(1), b.mean(1)
    of_methods = min(len(a), len(b)) >= MIN_SEEDS
    known = a.shape[1] > 1  # one problem has no error
    low, high = difference_interval(e) if known else (None, None)
    return plain(
        {
            "difference": e.value,
            "difference_low": low,
            "difference_high": high,
            "p": two_tailed(e) if known else None,
            "p_within": equivalence_p(e, margin) if known and margin is not None else None,
            "detectable": detectable(e, level) if known and of_methods else None,
            "improvement_probability": improvement_probability(*means) if of_methods else None,
        }
    )


# ---- failures


def failure_interval(failed, started):
    """Exact 95 % interval of the share of runs that fail: Clopper and Pearson 1934."""
    from scipy.stats import binomtest

    return tuple(binomtest(int(failed), int(started)).proportion_ci(0.95, method="exact"))


def failure_p(failed, started, theirs_failed, theirs_started):
    """Two-sided p that two methods fail alike: Fisher's exact test."""
    from scipy.stats import fisher_exact

    table = [[failed, started - failed], [theirs_failed, theirs_started - theirs_failed]]
    return float(fisher_exact(table).pvalue)

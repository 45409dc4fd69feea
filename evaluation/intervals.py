"""pass@k, maj@k, and how sure a mean over problems is: what one evaluation is summarised with.

A prompt's samples belong together; every interval here respects that. Used by evaluation/summary.py
and the report (Probability Smoothing Policy Optimisation, arXiv 2509.21282).

    python -c "from evaluation.intervals import pass_at_k; print(pass_at_k(16, 3, 4))"
"""

import functools
import math

import numpy as np

RESAMPLES = 2000
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


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

    votes: how many samples gave each answer, the right one first (0 if nobody did). blank: samples
    without an answer, which do not vote. Exact: the average over all subsets of k samples, ties
    shared equally among the tied answers. For each number c of right votes, ways[t, s] counts the
    choices of s wrong or blank samples in which t answers have c votes and none has more; classes
    are added one at a time, as a product of polynomials in s and t.
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


# ---- shares over problems: one evaluation


def wilson_interval(share, size, quantile=Z):
    """Ends of the score interval of a share of `size` independent answers, which need not be a whole number.

    Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953. Never of width zero, never outside
    [0, 1].
    """
    spread = quantile**2 / size
    middle = (share + spread / 2) / (1 + spread)
    half = quantile * np.sqrt(share * (1 - share) / size + spread / (4 * size)) / (1 + spread)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def smooth_share(values, spare=Z**2):
    """Shares of problems [..., problems] -> (mean, variance of one problem) with `spare` pseudo-problems added [...].

    Half of them are right and half wrong, as in Agresti and Coull 1998
    (https://doi.org/10.2307/2685469): near 0 and 100 % the spread that is seen says little, and
    where all problems agree it would be none. With z² of them neither end of the interval ever
    moves up when an answer turns wrong.
    """
    size = values.shape[-1] + spare
    mean = (values.sum(-1) + spare / 2) / size
    return mean, ((values**2).sum(-1) + spare / 2) / size - mean**2


def share_intervals(values):
    """95 % intervals of shares of problems [..., problems] -> (low, high) [...]: the one rule for all shares.

    Wilson's interval with the effective sample size of problems whose samples belong together: so
    many independent answers would have the mean's variance. It is the number of problems where each
    is wholly right or wholly wrong.
    """
    mean, variance = smooth_share(values)
    return wilson_interval(values.mean(-1), values.shape[-1] * mean * (1 - mean) / variance)


def bootstrap_interval(values, seed=0):
    """95 % intervals of the means over prompts: values [prompts, metrics] -> low [metrics], high [metrics].

    Prompts are resampled whole, so a prompt's samples stay together. The percentiles are widened
    for few prompts as Hesterberg 2015 does (https://doi.org/10.1080/00031305.2015.1089789,
    "expanded percentile"). One prompt: NaN.
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
    """Means and 95 % intervals of metrics [prompts, metrics] -> mean, low, high, each [metrics].

    unbounded: the columns that are no shares, such as a length, which get the bootstrap over
    prompts.
    """
    values = np.asarray(values, dtype=float)
    low, high = share_intervals(values.T)
    columns = list(unbounded)
    if columns:
        low[columns], high[columns] = bootstrap_interval(values[:, columns])
    return values.mean(0), low, high


def sum_families(values, families):
    """Values [rows, problems] -> [rows, families], with the same means, that vary as sums over families do.

    families: which family each problem belongs to. Variations of one problem are right or wrong
    together: they are one cluster, and a family is what is independent of others.
    """
    names, member = np.unique(families, return_inverse=True)
    mean = values.mean(1, keepdims=True)
    sums = np.zeros((len(values), len(names)))
    np.add.at(sums.T, member, (values - mean).T)
    return mean + sums * len(names) / values.shape[1]

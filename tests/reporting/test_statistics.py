"""The statistics against enumeration, against textbook cases and against simulated truths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reporting.statistics import (
    Estimate,
    bootstrap_interval,
    detectable,
    estimate,
    holm,
    improvement_probability,
    interval,
    majority_at_k,
    mean_intervals,
    pass_at_k,
    permutation_p,
    two_tailed,
    wilson_interval,
)

# ---- one prompt


@pytest.mark.parametrize("total", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(total):
    for correct, k in itertools.product(range(total + 1), range(1, total + 1)):
        samples = [True] * correct + [False] * (total - correct)
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(total, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_more_samples_than_there_are(k):
    with pytest.raises(ValueError):
        pass_at_k(4, 1, k)


def majority_by_enumeration(votes, k):
    """votes: one answer a sample, 0 the right one, None no answer. The chance over subsets and over ties."""
    wins = []
    for subset in itertools.combinations(votes, k):
        counts = {v: subset.count(v) for v in subset if v is not None}
        top = [v for v, n in counts.items() if n == max(counts.values())]
        wins.append((0 in top) / max(1, len(top)))
    return sum(wins) / len(wins)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, None]), min_size=1, max_size=9))
def test_majority_at_k_is_what_enumerating_all_subsets_gives(votes):
    counts = tuple(votes.count(answer) for answer in range(4))
    exact = majority_at_k(counts, votes.count(None))
    for k in range(1, len(votes) + 1):
        assert exact[k - 1] == pytest.approx(majority_by_enumeration(votes, k), abs=1e-12)


def test_majority_at_k_holds_for_many_samples():
    """256 samples, most of them different: the value for one vote is the accuracy, and no probability leaves [0, 1]."""
    exact = majority_at_k((100, *[1] * 96, 30, 20), 10)
    assert exact[0] == pytest.approx(100 / 256) and exact[-1] == 1
    assert all(0 <= p <= 1 + 1e-12 for p in exact)


# ---- over problems


@pytest.mark.parametrize("successes, total", [(0, 5), (3, 10), (17, 17), (400, 1319)])
def test_wilson_interval_ends_where_the_score_test_does(successes, total):
    """Its ends are the rates p at which (observed - p) / sqrt(p (1 - p) / n) is 1.96: found here by bisection."""

    def solve(inside, outside):
        for _ in range(100):
            middle = (inside + outside) / 2
            if (successes / total - middle) ** 2 <= 1.959964**2 * middle * (1 - middle) / total:
                inside = middle
            else:
                outside = middle
        return inside

    rate = successes / total
    expected = (0 if successes == 0 else solve(rate, 0), 1 if successes == total else solve(rate, 1))
    assert wilson_interval(successes, total) == pytest.approx(expected, abs=1e-6)


def simulate_coverage(prompts, samples, trials=700):
    """Share of trials whose interval for the accuracy holds the truth (0.4): rates vary from prompt to prompt."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(trials):
        rates = rng.beta(0.8, 1.2, size=prompts)
        values = rng.binomial(samples, rates) / samples
        if samples == 1:
            low, high = wilson_interval(values.sum(), prompts)
        else:
            [low], [high] = bootstrap_interval(values[:, None], seed=int(rng.integers(2**31)))
        hits += low <= 0.4 <= high
    return hits / trials


@pytest.mark.parametrize("prompts, samples", [(80, 16), (40, 4), (15, 8), (200, 1)])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(prompts, samples):
    assert 0.93 <= simulate_coverage(prompts, samples) <= 0.97


def test_treating_a_prompts_samples_as_independent_would_miss_the_truth_too_often():
    """The same simulation with an interval that ignores the clusters: the test above can tell the difference."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(500):
        right = rng.binomial(16, rng.beta(0.8, 1.2, size=100)).sum()
        low, high = wilson_interval(right, 1600)
        hits += low <= 0.4 <= high
    assert hits / 500 < 0.8


def test_bootstrap_interval_is_that_of_a_plain_loop():
    values = np.random.default_rng(1).normal(size=(40, 2))
    rng = np.random.default_rng(0)
    means = np.array([values[rng.integers(40, size=40)].mean(0) for _ in range(20_000)])
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(np.quantile(means, 0.0228, axis=0), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.9772, axis=0), abs=0.03)


def test_one_rule_says_which_interval_a_metric_gets():
    share, mean, length = [1, 1, 0, 1] * 5, [0.5, 1, 0, 1] * 5, [1, 0, 0, 0] * 5
    values = np.array([share, mean, length], dtype=float).T
    _, low, high = mean_intervals(values, unbounded=[2])
    boot = bootstrap_interval(values)
    assert (low[0], high[0]) == pytest.approx(wilson_interval(15, 20))
    assert (low[1], high[1], low[2], high[2]) == (boot[0][1], boot[1][1], boot[0][2], boot[1][2])


# ---- over seeds and problems


def simulate(rng, trials, seeds, problems, spread, difficulty, shift=0.0, samples=4):
    """Accuracies [trials, seeds, problems] of runs whose ability (logit) has a spread; problems differ, and so does
    what a run finds hard."""
    ability = shift + spread * rng.normal(size=(trials, seeds, 1)) + 0.5 * rng.normal(size=(trials, seeds, problems))
    return rng.binomial(samples, 1 / (1 + np.exp(-difficulty - ability))) / samples


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.4])
def test_intervals_over_seeds_and_problems_hold_the_truth_in_95_of_100_studies(seeds, spread):
    """Of a method and of a difference; a spread of 0.15 in the logit is about 3 points of accuracy, 0.4 about 8."""
    rng, trials = np.random.default_rng(7), 5000
    difficulty = 1.5 * rng.normal(size=(trials, 1, 60))
    a, b = (simulate(rng, trials, seeds, 60, spread, difficulty) for _ in range(2))
    one, two = estimate((1, a)), estimate((1, a), (-1, b))
    assert 0.93 <= (two_tailed(one, 0.5) >= 0.05).mean() <= 0.97  # logits symmetric about 0: the truth is 0.5
    assert 0.93 <= (two_tailed(two) >= 0.05).mean() <= 0.97


def test_an_interval_over_problems_alone_would_miss_the_truth_of_a_method():
    """The simulation above can tell: what holds for these runs does not hold for the method."""
    rng = np.random.default_rng(7)
    difficulty = 1.5 * rng.normal(size=(600, 1, 60))
    a, b = (simulate(rng, 600, 5, 60, 0.4, difficulty) for _ in range(2))
    per_problem = (a - b).mean(1)
    error = per_problem.std(-1, ddof=1) / np.sqrt(60)
    assert (np.abs(per_problem.mean(-1)) <= 2 * error).mean() < 0.8


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_are_called_different_in_at_most_5_of_100_studies(seeds):
    rng, trials, methods = np.random.default_rng(3), 600, 6
    difficulty = 1.5 * rng.normal(size=(trials, 1, 50))
    baseline, *others = (simulate(rng, trials, seeds, 50, 0.2, difficulty) for _ in range(methods + 1))
    ps = np.array([two_tailed(estimate((1, other), (-1, baseline))) for other in others])
    corrected = np.array([holm(list(column)) for column in ps.T])
    assert (corrected.min(1) < 0.05).mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert (ps.min(0) < 0.05).mean() > 0.1  # without the correction there would be more


def test_a_planted_difference_of_five_points_is_found_and_is_what_was_called_detectable():
    rng, trials = np.random.default_rng(4), 200
    difficulty = 1.5 * rng.normal(size=(trials, 1, 500))
    a = simulate(rng, trials, 5, 500, 0.05, difficulty, shift=0.29)
    b = simulate(rng, trials, 5, 500, 0.05, difficulty)
    e = estimate((1, a), (-1, b))
    assert e.value.mean() == pytest.approx(0.05, abs=0.005)
    assert (two_tailed(e) < 0.05).mean() > 0.95
    limit = np.median([detectable(Estimate(*fields)) for fields in zip(*e, strict=True)])
    assert limit < 0.05
    assert 0.7 < (two_tailed(e, e.value.mean() + limit) < 0.05).mean() < 0.9  # a truth that far away: a power of 0.8


def test_the_estimate_is_that_of_resampling_seeds_and_problems():
    """Many seeds and problems: the crossed bootstrap's error, whose known excess is the residual's part."""
    rng = np.random.default_rng(5)
    a, b = simulate(rng, 2, 40, 150, 0.3, 1.5 * rng.normal(size=(1, 1, 150)))
    resampled = []
    for _ in range(3000):
        problems = rng.integers(150, size=150)
        means = [x[rng.integers(40, size=40)].mean(0)[problems].mean() for x in (a, b)]
        resampled.append(means[0] - means[1])
    assert estimate((1, a), (-1, b)).error == pytest.approx(np.std(resampled), rel=0.08)


def test_with_one_kind_of_error_alone_the_estimate_is_the_textbooks():
    rng = np.random.default_rng(6)
    of_seeds = rng.random((4, 1)) + np.zeros((4, 30))  # every problem alike: a t-test of the seeds' means
    other = rng.random((4, 1)) + np.zeros((4, 30))
    expected = stats.ttest_ind(of_seeds[:, 0], other[:, 0], equal_var=False).pvalue
    assert two_tailed(estimate((1, of_seeds), (-1, other))) == pytest.approx(expected)
    of_problems, base = rng.random((2, 30))  # one seed: a paired t-test over problems
    expected = stats.ttest_rel(of_problems, base).pvalue
    assert two_tailed(estimate((1, of_problems[None]), (-1, base[None]))) == pytest.approx(expected)


def test_an_interval_ends_where_its_test_begins_to_reject():
    rng = np.random.default_rng(8)
    e = estimate((1, rng.random((3, 20)) + 0.2 * rng.random((3, 1)) + rng.random(20)), (-1, rng.random((3, 20))))
    assert 0.1 < e.seed_share < 0.99
    assert [float(two_tailed(e, end)) for end in interval(e)] == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("shape", [(1, 1), (3, 1)])
def test_one_problem_has_no_error(shape):
    assert math.isnan(estimate((1, np.ones(shape))).error)


def test_runs_that_agree_in_everything_differ_in_nothing():
    e = estimate((1, np.ones((3, 9))), (-1, np.ones((3, 9))))
    assert e.value == 0 and e.error == 0 and math.isnan(two_tailed(e))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_improvement_and_permutation_by_enumeration():
    a, b = [0.5, 0.6, 0.7], [0.5, 0.4, 0.3]
    assert improvement_probability(a, b) == pytest.approx((8 + 0.5) / 9)
    pool, observed = [*a, *b], np.mean(a) - np.mean(b)
    extreme = [
        abs(np.mean([pool[i] for i in chosen]) - (sum(pool) - sum(pool[i] for i in chosen)) / 3) >= observed - 1e-12
        for chosen in itertools.combinations(range(6), 3)
    ]
    assert permutation_p(a, b) == pytest.approx(np.mean(extreme))

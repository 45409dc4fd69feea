"""The statistics against enumeration, against textbook cases and against simulated truths."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import coverage
from evaluation.intervals import (
    Z,
    bootstrap_interval,
    majority_at_k,
    mean_intervals,
    pass_at_k,
    share_intervals,
    sum_families,
    wilson_interval,
)
from reporting.statistics import (
    Estimate,
    compare,
    detectable,
    difference_interval,
    equivalence_p,
    estimate_difference,
    failure_interval,
    failure_p,
    holm,
    improvement_probability,
    share_interval,
    two_tailed,
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
    assert wilson_interval(rate, total) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("problems, samples", [(80, 16), (40, 4), (15, 8), (200, 1)])
def test_intervals_hold_the_truth_in_95_of_100_evaluations(problems, samples):
    covered = coverage.cover_share(np.random.default_rng(5), 3000, problems, samples, (0.8, 1.2))
    assert 0.93 <= covered <= 0.98


@pytest.mark.parametrize("samples", [1, 4, 16])
@pytest.mark.parametrize("share", [0.02, 0.98])
@pytest.mark.parametrize("agreement", [1, 5, 20])
def test_intervals_near_the_edges_hold_the_truth_too(share, samples, agreement):
    """The bootstrap that was here before held it in 80 to 91 of 100."""
    chances = agreement * share, agreement * (1 - share)
    assert coverage.cover_share(np.random.default_rng(6), 2000, 100, samples, chances) >= 0.93


def test_a_share_of_whole_problems_has_wilsons_interval():
    values = np.array([1.0] * 47 + [0.0] * 13)
    assert share_intervals(values) == pytest.approx(wilson_interval(47 / 60, 60))


def test_an_answer_that_turns_wrong_never_moves_an_end_up_nor_makes_a_perfect_result_surer():
    perfect = np.ones(30)  # 60 of 60 right, two samples a problem
    one_wrong = np.array([*np.ones(29), 0.5])
    (low, high), (lower, end) = share_intervals(perfect), share_intervals(one_wrong)
    assert lower < low and end < high and end - lower > high - low > 0.05


@settings(max_examples=300, deadline=None)
@given(st.integers(2, 40), st.sampled_from([1, 2, 4, 16]), st.floats(0, 1), st.integers(0, 10**6))
def test_both_ends_move_with_every_answer(problems, samples, rate, seed):
    rng = np.random.default_rng(seed)
    values = rng.binomial(samples, rng.beta(0.1 + 2 * rate, 2.1 - 2 * rate, size=problems)) / samples
    if not values.any():
        return
    worse = values.copy()
    worse[rng.choice(np.flatnonzero(values))] -= 1 / samples
    before, after = share_intervals(values), share_intervals(worse)
    assert after[0] <= before[0] + 1e-12 and after[1] <= before[1] + 1e-12 and after[0] < after[1]


def test_a_figure_has_the_same_interval_in_an_evaluations_table_and_in_the_report():
    values = np.random.default_rng(1).binomial(4, 0.6, size=50) / 4
    _, [low], [high] = mean_intervals(values[:, None])
    assert share_interval(values[None]) == (low, high)


@pytest.mark.parametrize("expected", [1, 2, 3, 4, 6, 9, 15])
def test_the_interval_of_two_runs_that_hardly_differ_holds_the_truth(expected):
    assert coverage.cover_discordant(np.random.default_rng(2), 1000, expected) >= 0.94


def test_runs_that_agree_in_everything_have_an_interval_like_wilsons_and_no_p_of_0():
    same = np.ones((1, 500))
    figures = compare(same, same)
    assert figures["difference"] == 0 and figures["p"] == 1
    assert figures["difference_high"] == pytest.approx(Z**2 / 500, rel=0.01)
    one_more = np.ones((1, 500))
    one_more[0, 0] = 0
    wider = compare(same, one_more)
    assert wider["difference_high"] - wider["difference_low"] > 2 * figures["difference_high"]
    assert wider["difference_low"] > figures["difference_low"]


def test_methods_all_of_whose_seeds_are_right_have_an_interval_with_a_width():
    """At 3 seeds and 50 problems it was 100.0 to 100.0 over seeds and problems, and 92.9 to 100 over problems."""
    low, high = share_interval(np.ones((3, 50)))
    assert 0.90 < low < 0.93 and high == pytest.approx(1)
    figures = compare(np.ones((3, 50)), np.ones((3, 50)))
    assert figures["difference_low"] < -0.05 and figures["p"] == 1


def test_variations_of_one_problem_are_a_cluster():
    """Four variations of each of 25 problems that are right or wrong together: the interval of 25 problems."""
    rng = np.random.default_rng(3)
    few = (rng.random((1, 25)) < 0.6).astype(float)
    many = np.repeat(few, 4, axis=1)
    clustered = sum_families(many, np.repeat(np.arange(25), 4))
    assert clustered == pytest.approx(few)
    assert share_interval(clustered) == pytest.approx(share_interval(few))
    uneven = sum_families(many[:, :90], np.repeat(np.arange(25), 4)[:90])
    assert uneven.mean() == pytest.approx(many[:, :90].mean())


def test_treating_a_prompts_samples_as_independent_would_miss_the_truth_too_often():
    """The same simulation with an interval that ignores the clusters: the test above can tell the difference."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(500):
        right = rng.binomial(16, rng.beta(0.8, 1.2, size=100)).sum()
        low, high = wilson_interval(right / 1600, 1600)
        hits += low <= 0.4 <= high
    assert hits / 500 < 0.8


def test_bootstrap_interval_is_that_of_a_plain_loop():
    values = np.random.default_rng(1).normal(size=(40, 2))
    rng = np.random.default_rng(0)
    means = np.array([values[rng.integers(40, size=40)].mean(0) for _ in range(20_000)])
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(np.quantile(means, 0.0228, axis=0), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.9772, axis=0), abs=0.03)


def test_lengths_get_the_bootstrap_and_shares_do_not():
    values = np.array([[1, 1, 0, 1] * 5, [10, 20, 30, 20] * 5], dtype=float).T
    _, low, high = mean_intervals(values, unbounded=[1])
    boot = bootstrap_interval(values[:, 1:])
    assert (low[0], high[0]) == pytest.approx(wilson_interval(0.75, 20))
    assert ([low[1]], [high[1]]) == (boot[0], boot[1])


# ---- over seeds and problems


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.4])
def test_intervals_over_seeds_and_problems_hold_the_truth_in_95_of_100_studies(seeds, spread):
    """Of a difference and of a method; a spread of 0.15 in the logit is about 3 points of accuracy, 0.4 about 8."""
    study = coverage.Study(seeds, spread, problems=100)
    rng = np.random.default_rng(7)
    assert 0.93 <= coverage.cover_difference(rng, 1500, study, paired=False) <= 0.98
    assert 0.92 <= coverage.cover_accuracy(rng, 200, study) <= 0.99


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9, -0.3])
def test_intervals_of_paired_seeds_hold_the_truth_whatever_they_correlate(seeds, correlation):
    study = coverage.Study(seeds, 0.4, correlation)
    assert 0.93 <= coverage.cover_difference(np.random.default_rng(8), 1500, study, paired=True) <= 0.975


def test_pairing_finds_at_least_twice_as_often_what_seeds_that_correlate_hide():
    study = coverage.Study(5, 0.4, 0.9, problems=200, shift=0.3)
    found = [coverage.find_power(np.random.default_rng(9), 400, study, paired) for paired in (True, False)]
    assert found[0] > 2 * found[1] and found[0] > 0.4


def test_a_difference_as_large_as_the_margin_is_shown_to_be_within_it_in_at_most_5_of_100_studies():
    edge = coverage.Study(5, 0.15, 0.9, problems=200, shift=0.155)
    rng = np.random.default_rng(10)
    assert coverage.find_equivalence(rng, 1000, edge, coverage.true_gap(edge)) <= 0.07
    null = coverage.Study(5, 0.15, 0.9, problems=500)
    assert coverage.find_equivalence(rng, 100, null, 0.04) > 0.8


def test_the_two_one_sided_tests_are_students():
    rng = np.random.default_rng(11)
    gaps = rng.normal(0.01, 0.01, size=(8, 1)) + np.zeros((8, 60_000))  # every problem alike: a t-test of the seeds
    e = estimate_difference(gaps + 0.5, np.full((8, 60_000), 0.5), paired=True)
    one, other = (
        stats.ttest_1samp(gaps[:, 0], sign * 0.03, alternative=side).pvalue
        for sign, side in ((1, "less"), (-1, "greater"))
    )
    assert equivalence_p(e, 0.03) == pytest.approx(max(one, other), rel=0.05)


def test_an_interval_over_problems_alone_would_miss_the_truth_of_a_method():
    """The simulation can tell: what holds for these runs does not hold for the method."""
    a, b = coverage.simulate(np.random.default_rng(7), 600, coverage.Study(5, 0.4, problems=60))
    per_problem = (a - b).mean(1)
    error = per_problem.std(-1, ddof=1) / np.sqrt(60)
    assert (np.abs(per_problem.mean(-1)) <= 2 * error).mean() < 0.8


def test_a_planted_difference_of_five_points_is_found_and_is_what_was_called_detectable():
    study = coverage.Study(5, 0.05, problems=500, shift=0.3)
    a, b = coverage.simulate(np.random.default_rng(4), 200, study)
    e = estimate_difference(a, b)
    assert e.value.mean() == pytest.approx(0.05, abs=0.01)
    assert (two_tailed(e) < 0.05).mean() > 0.95
    limit = np.median([detectable(Estimate(*fields)) for fields in zip(*e, strict=True)])
    assert limit < 0.05
    assert 0.7 < (two_tailed(e, e.value.mean() + limit) < 0.05).mean() < 0.9  # a truth that far away: a power of 0.8


def test_the_estimate_is_that_of_resampling_seeds_and_problems():
    """Many seeds and problems: the crossed bootstrap's error, whose known excess is the residual's part."""
    rng = np.random.default_rng(5)
    a, b = (x[0] for x in coverage.simulate(rng, 1, coverage.Study(40, 0.3, problems=150)))
    resampled = []
    for _ in range(3000):
        problems = rng.integers(150, size=150)
        means = [x[rng.integers(40, size=40)].mean(0)[problems].mean() for x in (a, b)]
        resampled.append(means[0] - means[1])
    assert estimate_difference(a, b).error == pytest.approx(np.std(resampled), rel=0.08)


def test_with_one_kind_of_error_alone_the_estimate_is_the_textbooks():
    rng = np.random.default_rng(6)
    of_seeds = rng.random((5, 1)) + np.zeros((5, 300))  # every problem alike: a t-test of the seeds' means
    other = rng.random((5, 1)) + np.zeros((5, 300))
    expected = stats.ttest_ind(of_seeds[:, 0], other[:, 0], equal_var=False).pvalue
    assert two_tailed(estimate_difference(of_seeds, other)) == pytest.approx(expected)
    expected = stats.ttest_rel(of_seeds[:, 0], other[:, 0]).pvalue
    assert two_tailed(estimate_difference(of_seeds, other, paired=True)) == pytest.approx(expected)
    of_problems, base = rng.random((2, 1, 30_000))  # one seed: a paired t-test over problems, but for z² pseudo-answers
    expected = stats.ttest_rel(of_problems[0], base[0]).pvalue
    assert two_tailed(estimate_difference(of_problems, base)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("paired", [True, False])
def test_an_interval_ends_where_its_test_begins_to_reject(paired):
    rng = np.random.default_rng(8)
    a = rng.random((3, 20)) + 0.8 * rng.random((3, 1)) + rng.random(20)
    e = estimate_difference(a / 3, rng.random((3, 20)) / 3, paired)
    assert 0.1 < e.seed_share < 0.99
    assert [float(two_tailed(e, end)) for end in difference_interval(e)] == pytest.approx([0.05, 0.05])


def test_one_problem_has_no_p_but_an_accuracy():
    figures = compare(np.ones((3, 1)), np.zeros((3, 1)))
    assert figures["p"] is None and figures["difference"] == 1
    assert share_interval(np.ones((3, 1)))[0] < 0.3


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_improvement_by_enumeration():
    assert improvement_probability([0.5, 0.6, 0.7], [0.5, 0.4, 0.3]) == pytest.approx((8 + 0.5) / 9)


# ---- failures


def test_failures_have_exact_intervals_and_an_exact_test():
    """By the tails of the binomial and of the hypergeometric distribution."""
    low, high = failure_interval(2, 5)
    assert stats.binom.sf(1, 5, low) == pytest.approx(0.025) and stats.binom.cdf(2, 5, high) == pytest.approx(0.025)
    tables = [stats.hypergeom.pmf(k, 10, 5, 5) for k in range(6)]
    assert failure_p(5, 5, 0, 5) == pytest.approx(tables[0] + tables[5])


# ---- whole reports


@pytest.mark.parametrize(
    ("reports", "size"),
    [
        (30, {"methods": 3, "sets": 2, "temperatures": 3, "problems": 20}),
        pytest.param(25, {"problems": 60}, marks=pytest.mark.slow),  # 4 data sets x 5 temperatures x 9 methods
    ],
)
def test_reports_of_equal_methods_say_better_or_worse_in_at_most_5_of_100(reports, size):
    """With a family for each set and temperature it was 44 of 100."""
    told, explored = coverage.count_false_words(np.random.default_rng(12), reports, **size)
    assert told <= 4 / reports and explored <= 5 / reports


def test_a_method_of_which_a_fifth_crashed_is_never_better():
    assert coverage.count_crashed_words(np.random.default_rng(13), 20) == 0

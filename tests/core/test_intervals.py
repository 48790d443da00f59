"""Every statistic against a published example, a hand computation or brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from scale_export.core import intervals
from scale_export.core.intervals import (
    Z_90,
    Z_95,
    clustered_mean,
    decided,
    gain_retention,
    kl_rows,
    mcnemar_exact,
    mean_kl,
    paired_difference,
    proportion,
    same_best,
    top1_agreement,
    wilson,
)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two bool arrays with these counts of outcomes."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (3, 10), (81, 263), (500, 1000), (12, 12)])
def test_wilson_bounds_solve_the_score_equation(successes, n):
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            score = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
            assert score == pytest.approx(Z_95, rel=1e-9)


def test_wilson_published_example_and_ends():
    # Newcombe, Stat. Med. 17 (1998) 857, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29)[1] == 1.0
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="4 successes of 3"):
        wilson(4, 3)


def test_proportion_carries_value_interval_and_cases():
    estimate = proportion(np.array([True, True, False, True]))
    assert (estimate.value, estimate.cases) == (0.75, 4)
    assert (estimate.low, estimate.high) == wilson(3, 4)
    assert proportion(np.zeros(0, bool)) is None


def test_paired_difference_published_example():
    # Fagerland, Lydersen and Laake, Stat. Med. 33 (2014) 2850: airway hyper-responsiveness, Tango's interval.
    estimate = paired_difference(*pairs(1, 1, 7, 12))
    assert estimate.value == pytest.approx(-6 / 21)
    assert (estimate.low, estimate.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def tango_by_brute_force(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """The differences that the score test doesn't reject, by the constrained likelihood's maximum."""

    def rejected(delta: float) -> bool:
        def loss(p_b: float) -> float:
            p_a, rest = p_b + delta, 1 - 2 * p_b - delta
            counted = ((only_a, p_a), (only_b, p_b), (n - only_a - only_b, rest))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in counted)

        lower, upper = max(0.0, -delta), (1 - delta) / 2
        p_b = minimize_scalar(loss, bounds=(lower, upper), method="bounded", options={"xatol": 1e-12}).x
        p_b = min((lower, upper, p_b), key=loss)
        spread = math.sqrt(n * (2 * p_b + delta - delta**2))
        return abs(only_a - only_b - n * delta) > Z_95 * spread

    bounds = []
    for end in (-1 + 1e-9, 1 - 1e-9):
        inside, outside = (only_a - only_b) / n, end
        if not rejected(outside):
            bounds.append(end)
            continue
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        bounds.append(inside)
    return bounds[0], bounds[1]


@pytest.mark.parametrize(
    ("only_a", "only_b", "n"), [(3, 5, 40), (0, 4, 25), (9, 0, 200), (0, 0, 30), (17, 11, 1200)]
)
def test_paired_difference_equals_brute_force(only_a, only_b, n):
    estimate = paired_difference(*pairs(n // 3, only_a, only_b, n - n // 3 - only_a - only_b))
    assert (estimate.low, estimate.high) == pytest.approx(tango_by_brute_force(only_a, only_b, n), abs=2e-6)


def test_paired_difference_of_equal_answers_is_no_point():
    n = 1000
    estimate = paired_difference(*pairs(600, 0, 0, 400))
    bound = Z_95**2 / (n + Z_95**2)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.0, -bound, bound))
    assert paired_difference(*pairs(0, 0, 0, 0)) is None


@pytest.mark.parametrize("n", [1, 2, 5, 100_000])
def test_paired_difference_at_the_ends(n):
    everything = paired_difference(*pairs(0, n, 0, 0))
    nothing = paired_difference(*pairs(0, 0, n, 0))
    assert everything.high == 1.0
    assert nothing.low == -1.0
    assert everything.low == pytest.approx(-nothing.high)
    assert -1 < everything.low < 1


def test_paired_difference_mirrors_and_covers():
    """Exact coverage over every outcome of 24 questions: near 95 %, as a Wald interval's isn't."""
    n, p_a, p_b = 24, 0.15, 0.05
    covered = 0.0
    for only_a in range(n + 1):
        for only_b in range(n + 1 - only_a):
            chance = (
                math.comb(n, only_a) * math.comb(n - only_a, only_b)
                * p_a**only_a * p_b**only_b * (1 - p_a - p_b) ** (n - only_a - only_b)
            )  # fmt: skip
            if chance < 1e-7:
                continue
            estimate = paired_difference(*pairs(0, only_a, only_b, n - only_a - only_b))
            mirrored = paired_difference(*pairs(0, only_b, only_a, n - only_a - only_b))
            assert (mirrored.low, mirrored.high) == pytest.approx((-estimate.high, -estimate.low), abs=1e-10)
            covered += chance * (estimate.low <= p_a - p_b <= estimate.high)
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 1), (3, 3), (1, 7), (12, 2), (30, 41)])
def test_mcnemar_equals_the_sum_of_binomials(only_a, only_b):
    total = only_a + only_b
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1)) / 2**total
    assert mcnemar_exact(*pairs(20, only_a, only_b, 5)) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_without_discordant_pairs_and_without_pairs():
    assert mcnemar_exact(*pairs(3, 0, 0, 2)) == 1.0
    assert mcnemar_exact(*pairs(0, 0, 0, 0)) is None


def answers(n: int = 600, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.random(n) < 0.4
    scale = base | (rng.random(n) < 0.5)
    export = scale ^ (rng.random(n) < 0.05)
    return base, scale, export


def test_gain_retention_equals_a_bootstrap_of_questions():
    base, scale, export = answers()
    estimate = gain_retention(base, scale, export)
    assert estimate.value == pytest.approx((export.mean() - base.mean()) / (scale.mean() - base.mean()))
    rows = np.random.default_rng(0).integers(0, len(base), (4000, len(base)))
    b, s, e = (answer[rows].mean(axis=1) for answer in (base, scale, export))
    expected = np.quantile((e - b) / (s - b), [0.025, 0.975])
    assert (estimate.low, estimate.high) == pytest.approx(expected, abs=0.006)
    assert estimate.low < estimate.value < estimate.high
    assert estimate == gain_retention(base, scale, export)


def test_gain_retention_of_a_perfect_export_is_one():
    base, scale, _ = answers()
    estimate = gain_retention(base, scale, scale)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    assert gain_retention(base, scale, base).value == 0.0


def test_gain_retention_is_none_without_gain_and_unbounded_with_little():
    base, scale, export = answers()
    assert gain_retention(base, base, export) is None
    assert gain_retention(scale, base, export) is None
    nothing = np.zeros(0, bool)
    assert gain_retention(nothing, nothing, nothing) is None
    base, scale = pairs(40, 4, 6, 50)
    estimate = gain_retention(base, scale, scale)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_resamples_without_gain_widen_both_bounds():
    ratios, gains = np.arange(1, 1001), np.ones(1000, np.int64)
    assert intervals.ratio_bounds(ratios, gains) == (25, 975)
    gains[490:510] = 0
    assert intervals.ratio_bounds(ratios, gains) == (5, 995)
    gains[490:515] = -1
    assert intervals.ratio_bounds(ratios, gains) == (None, None)


def test_mean_kl_equals_plain_sums():
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 4, (11, 7)).astype(np.float32)
    other = reference + rng.normal(0, 0.5, (11, 7)).astype(np.float32)
    total = 0.0
    for row, column in zip(reference.astype(float), other.astype(float), strict=True):
        p, q = ([math.exp(x) / math.fsum(map(math.exp, v)) for x in v] for v in (row, column))
        total += math.fsum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    for rows_at_once in (4, 256):
        rows = kl_rows(reference, other, rows_at_once=rows_at_once)
        assert rows.shape == (11,) and rows.sum() == pytest.approx(total, rel=1e-12)
    # Two tokens by hand: KL(1/2, 1/2 ‖ 3/4, 1/4) = ln 2 − ln 3 / 2.
    assert mean_kl(np.zeros((1, 2)), np.log([[3.0, 1.0]])) == pytest.approx(math.log(2) - math.log(3) / 2)


def test_mean_kl_is_float64_and_knows_its_edges():
    logits = np.array([[60.0, 0.0, -60.0]], np.float16)
    assert mean_kl(logits, logits) == 0.0
    assert mean_kl(logits, logits + np.float16(4)) == pytest.approx(0.0, abs=1e-15)
    large = np.array([[3e4, 0.0]], np.float32)
    assert mean_kl(large, -large) == pytest.approx(3e4)
    masked = np.array([[1.0, -np.inf]])
    assert mean_kl(masked, masked) == 0.0
    assert mean_kl(np.zeros((1, 2)), masked) == np.inf
    assert mean_kl(np.zeros((0, 5)), np.zeros((0, 5))) is None
    broken = mean_kl(np.zeros((2, 2)), np.array([[0.0, 0.0], [np.nan, 0.0]]))
    assert math.isnan(broken)
    assert not broken <= 1e9


def test_top1_agreement():
    reference = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0], [0.0, 1.0]])
    other = np.array([[0.0, 9.0], [0.0, 1.0], [np.nan, 5.0], [0.0, 2.0]])
    assert top1_agreement(reference, other) == 0.5
    assert top1_agreement(np.full((1, 2), np.nan), np.full((1, 2), np.nan)) == 0.0
    assert top1_agreement(np.zeros((0, 2)), np.zeros((0, 2))) is None


def test_shapes_and_types_that_do_not_pair_are_refused():
    yes = np.ones(3, bool)
    for function in (paired_difference, mcnemar_exact):
        with pytest.raises(ValueError, match="3 answers can't be paired with 2"):
            function(yes, yes[:2])
        with pytest.raises(ValueError, match=r"bool \[N\], not int64"):
            function(yes, np.ones(3, np.int64))
    with pytest.raises(ValueError, match="can't be paired"):
        gain_retention(yes, yes, yes[:2])
    for function in (mean_kl, top1_agreement):
        with pytest.raises(ValueError, match=r"\[2, 3\] and \[1, 3\]"):
            function(np.zeros((2, 3)), np.zeros((1, 3)))


def test_same_best_counts_no_row_with_a_nan():
    logits = np.array([[1.0, 2.0], [2.0, 1.0], [np.nan, 1.0]], np.float32)
    assert same_best(logits, logits).tolist() == [True, True, False]
    assert same_best(logits, logits[:, ::-1].copy()).tolist() == [False, False, False]


def test_a_row_is_decided_where_its_best_token_is_twice_as_probable():
    odds = np.log([[2.001, 1.0, 0.5], [1.999, 1.0, 0.5], [1.0, 1.0, 1.0]]).astype(np.float32)
    assert decided(odds).tolist() == [True, False, False]
    assert decided(odds + 50).tolist() == [True, False, False], "whatever is added to all"
    assert decided(np.full((1, 3), np.nan, np.float32)).tolist() == [False]


def test_a_clustered_mean_is_as_sure_as_there_are_clusters():
    rng = np.random.default_rng(0)
    apart = [np.full(10, value) for value in rng.normal(1.0, 0.2, 20)]
    found = clustered_mean(apart)
    assert found and found.cases == 200 and found.value == pytest.approx(np.mean(apart))
    error = np.std([cluster[0] for cluster in apart]) / math.sqrt(20)
    assert found.low == pytest.approx(found.value - Z_90 * error, rel=0.05)
    assert found.high == pytest.approx(found.value + Z_90 * error, rel=0.05)
    alone = clustered_mean([np.concatenate(apart)])
    assert alone and (alone.low, alone.high) == (None, None), "one text bounds nothing"
    same = clustered_mean([np.full(3, 0.5), np.full(9, 0.5)])
    assert same and (same.low, same.high) == (0.5, 0.5)


def test_a_clustered_mean_of_nothing_or_of_what_is_not_finite_has_no_bounds():
    assert clustered_mean([]) is None and clustered_mean([np.zeros(0)]) is None
    broken = clustered_mean([np.ones(2), np.array([np.nan])])
    assert broken and math.isnan(broken.value) and broken.low is None

"""Statistics of paired answers and of logits: estimates with 95 % intervals, exact tests, divergences.

The same questions go to every model, so everything that compares two models is paired. Questions count as
independent: where several share a picture, the intervals are a little too narrow.

Sources:
    1. Wilson, J. Am. Stat. Assoc. 22 (1927) 209: score interval of one proportion.
    2. Tango, Stat. Med. 17 (1998) 891: score interval of the difference of paired proportions. Unlike Wald's
       it keeps its coverage where few answers differ, and it doesn't collapse to a point where none does. The same
       score statistic tests equivalence.
    3. McNemar, Psychometrika 12 (1947) 153, with the exact binomial distribution of the discordant pairs.
    4. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile interval.
    5. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657: equivalence by two one-sided tests, which is the same as
       the 90 % interval lying within the margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .limits import DECIDED_ODDS
from .records import Array

Bools = NDArray[np.bool_]

Z_95 = NormalDist().inv_cdf(0.975)
"""The two-sided 95 % point of the normal distribution."""
Z_90 = NormalDist().inv_cdf(0.95)
"""The one-sided 95 % point, and so the two-sided 90 % point."""

BOOTSTRAP_RESAMPLES = 10_000
BOOTSTRAP_SEED = 20_261_107


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measured number with an interval, 95 % unless its maker says otherwise, over ``cases`` questions.

    ``low`` and ``high`` are None where the data don't bound the number.
    """

    value: float
    low: float | None
    high: float | None
    cases: int


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float] | None:
    """Wilson's interval of a proportion (source 1), 95 % unless ``z`` says otherwise; None where there are no cases.

    Raises:
        ValueError: ``successes`` outside 0 … n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} cases")
    if n == 0:
        return None
    z2 = z**2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound is exactly 0 or 1; rounding would leave 1e-17 of it.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


def proportion(correct: Bools, z: float = Z_95) -> Estimate | None:
    """The share of True in ``correct [N]`` with Wilson's interval, see ``wilson``; None where N is 0."""
    successes, n = int(np.count_nonzero(correct)), len(correct)
    interval = wilson(successes, n, z)
    if interval is None:
        return None
    return Estimate(value=successes / n, low=interval[0], high=interval[1], cases=n)


def paired_difference(a: Bools, b: Bools) -> Estimate | None:
    """mean(a) − mean(b) over the same questions, ``[N]`` each, with Tango's interval (source 2).

    None where N is 0.

    Raises:
        ValueError: the lengths differ.
    """
    n = _same_length(a, b)
    if n == 0:
        return None
    only_a, only_b = _discordant(a, b)
    return Estimate(
        value=(only_a - only_b) / n,
        low=_tango_bound(only_a, only_b, n, Z_95),
        high=_tango_bound(only_a, only_b, n, -Z_95),
        cases=n,
    )


def _tango_bound(only_a: int, only_b: int, n: int, z: float) -> float:
    """The difference at which the score statistic, which falls as the difference grows, equals ``z``."""
    from scipy.optimize import brentq

    def excess(difference: float) -> float:
        distance, deviation = _tango_score(only_a, only_b, n, difference)
        return distance - z * deviation

    if z > 0 and only_b == n:
        return -1.0
    if z < 0 and only_a == n:
        return 1.0
    edge = 1 - 1e-12
    return float(brentq(excess, -edge, edge, xtol=1e-13))


def _tango_score(only_a: int, only_b: int, n: int, difference: float) -> tuple[float, float]:
    """How far the data lie above a difference, and the standard deviation of that where the difference is true."""
    linear = (2 * n - only_a + only_b) * difference - only_a - only_b
    root = math.sqrt(linear**2 + 8 * n * only_b * difference * (1 - difference))
    # The constrained maximum-likelihood estimate of P(b right, a wrong).
    p_b = (root - linear) / (4 * n)
    variance = n * (2 * p_b + difference * (1 - difference))
    return only_a - only_b - n * difference, math.sqrt(max(variance, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalence:
    """Two one-sided tests of |mean(a) − mean(b)| < margin, at 5 % each.

    Attributes:
        low: lower bound of the 90 % interval of the difference; ``high`` is the upper one.
        within: the smallest margin for which equivalence is shown.
        p: the larger of the two one-sided p's; None where no margin was stated.
        shown: whether equivalence within the margin is shown; None where no margin was stated.
    """

    low: float
    high: float
    within: float
    p: float | None
    shown: bool | None


def equivalence(a: Bools, b: Bools, margin: float | None) -> Equivalence | None:
    """Whether two answerers are right equally often, up to a margin (sources 2 and 5), over the same questions.

    That no difference was found shows nothing where there were few questions; this has to be shown by the data.
    None where N is 0.

    Raises:
        ValueError: the lengths differ, or a margin outside (0, 1).
    """
    n = _same_length(a, b)
    if margin is not None and not 0 < margin < 1:
        raise ValueError(f"a margin of {margin} is no share between 0 and 1")
    if n == 0:
        return None
    only_a, only_b = _discordant(a, b)
    low, high = (_tango_bound(only_a, only_b, n, z) for z in (Z_90, -Z_90))
    p = None if margin is None else max(_one_sided(only_a, only_b, n, side * margin) for side in (-1, 1))
    within = max(abs(low), abs(high))
    return Equivalence(low=low, high=high, within=within, p=p, shown=None if p is None else p <= 0.05)


def _one_sided(only_a: int, only_b: int, n: int, bound: float) -> float:
    """p of "the difference lies at ``bound`` or beyond it", seen from 0."""
    distance, deviation = _tango_score(only_a, only_b, n, bound)
    inwards = distance if bound < 0 else -distance
    if deviation == 0:
        return 0.0 if inwards > 0 else 1.0
    return 1 - NormalDist().cdf(inwards / deviation)


def mcnemar_exact(a: Bools, b: Bools) -> float | None:
    """The two-sided exact p of "a and b are right equally often" (source 3); None where there are no cases.

    Only questions that one of them got right count; where there is none, p is 1.

    Raises:
        ValueError: the lengths differ.
    """
    from scipy.stats import binomtest

    if _same_length(a, b) == 0:
        return None
    only_a, only_b = _discordant(a, b)
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def gain_retention(base: Bools, scale: Bools, export: Bools) -> Estimate | None:
    """(export − base) / (scale − base): the share of ScAle's gain that the export keeps; ``[N]`` each.

    The interval is a paired percentile bootstrap with a fixed seed (source 4). A resample without gain counts
    against both bounds; where they are 2.5 % or more, the bounds are None, since the ratio has none.

    Returns None where ``scale`` is not better than ``base``, no cases included: there is nothing to retain.

    Raises:
        ValueError: the lengths differ.
    """
    n = _same_length(base, scale)
    _same_length(base, export)
    gain = int(np.count_nonzero(scale)) - int(np.count_nonzero(base))
    if gain <= 0:
        return None
    # The ratio depends on how often each of the eight outcomes of a question came, so the resamples do too.
    outcomes = 4 * base.astype(np.int64) + 2 * scale.astype(np.int64) + export.astype(np.int64)
    counts = np.bincount(outcomes, minlength=8)
    bits = np.arange(8)
    scale_gain = (bits >> 1 & 1) - (bits >> 2)
    export_gain = (bits & 1) - (bits >> 2)
    drawn = np.random.default_rng(BOOTSTRAP_SEED).multinomial(n, counts / n, size=BOOTSTRAP_RESAMPLES)
    low, high = ratio_bounds(drawn @ export_gain, drawn @ scale_gain)
    return Estimate(value=int(counts @ export_gain) / gain, low=low, high=high, cases=n)


def ratio_bounds(
    numerators: Array, denominators: Array, tail: float = 0.025
) -> tuple[float | None, float | None]:
    """The points of the ratios that leave ``tail`` on either side; a denominator that isn't positive is beyond both."""
    ratios = numerators / np.where(denominators > 0, denominators, 1)
    low = np.quantile(np.where(denominators > 0, ratios, -np.inf), tail, method="inverted_cdf")
    high = np.quantile(np.where(denominators > 0, ratios, np.inf), 1 - tail, method="inverted_cdf")
    bounded = bool(np.isfinite(low) and np.isfinite(high))
    return (float(low), float(high)) if bounded else (None, None)


def mean_kl(reference_logits: Array, other: Array) -> float | None:
    """Mean KL(softmax(reference) ‖ softmax(other)) in nats over the rows of ``[N, V]`` arrays; None where N is 0.

    Raises:
        ValueError: the shapes differ, or aren't ``[N, V]``.
    """
    rows = kl_rows(reference_logits, other)
    return float(rows.mean()) if len(rows) else None


def kl_rows(reference_logits: Array, other: Array, *, rows_at_once: int = 256) -> NDArray[np.float64]:
    """KL(softmax(reference) ‖ softmax(other)) in nats of each row of ``[N, V]`` arrays, float64 ``[N]``.

    NaN where a logit is NaN, which no limit lets pass. ``rows_at_once`` are in float64 at a time, so that long runs
    over large vocabularies stay small; it changes nothing else.

    Raises:
        ValueError: the shapes differ, or aren't ``[N, V]``.
    """
    _same_logits(reference_logits, other)
    starts = range(0, len(reference_logits), rows_at_once)
    parts = [slice(start, start + rows_at_once) for start in starts]
    return np.concatenate([np.zeros(0), *(_kl_rows(reference_logits[part], other[part]) for part in parts)])


def clustered_mean(clusters: Sequence[NDArray[np.float64]]) -> Estimate | None:
    """The mean over all numbers of ``clusters``, with its 90 % interval by a bootstrap of whole clusters (source 4).

    Numbers of one text depend on one another, so texts are drawn, not numbers. None where there is no number; no bounds
    where a number isn't finite, or where fewer than two clusters have any.
    """
    kept = [cluster for cluster in clusters if len(cluster)]
    if not kept:
        return None
    sums, counts = np.array([[cluster.sum(), len(cluster)] for cluster in kept]).T
    value = float(sums.sum() / counts.sum())
    low = high = None
    if len(kept) > 1 and np.isfinite(value):
        rng, n = np.random.default_rng(BOOTSTRAP_SEED), len(kept)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_RESAMPLES)
        low, high = ratio_bounds(drawn @ sums, drawn @ counts, tail=0.05)
    return Estimate(value=value, low=low, high=high, cases=int(counts.sum()))


def _kl_rows(reference: Array, other: Array) -> NDArray[np.float64]:
    from scipy.special import log_softmax

    log_p = log_softmax(reference.astype(np.float64), axis=-1)
    log_q = log_softmax(other.astype(np.float64), axis=-1)
    p = np.exp(log_p)
    # A token that the reference rules out (-inf) adds nothing, whatever the other says.
    difference = np.subtract(log_p, log_q, out=np.zeros_like(log_p), where=log_p != -np.inf)
    rows: NDArray[np.float64] = (p * difference).sum(axis=-1)
    # Rounding can leave -1e-17, and a divergence isn't negative.
    return np.maximum(rows, 0.0)


def top1_agreement(reference_logits: Array, other: Array) -> float | None:
    """The share of rows of two ``[N, V]`` arrays with the same best token; None where N is 0.

    Raises:
        ValueError: the shapes differ, or aren't ``[N, V]``.
    """
    same = same_best(reference_logits, other)
    return float(same.mean()) if len(same) else None


def same_best(reference_logits: Array, other: Array) -> Bools:
    """Whether each row of two ``[N, V]`` arrays has the same best token, bool ``[N]``; one with a NaN never has.

    Raises:
        ValueError: the shapes differ, or aren't ``[N, V]``.
    """
    _same_logits(reference_logits, other)
    broken = np.isnan(reference_logits).any(axis=-1) | np.isnan(other).any(axis=-1)
    same: Bools = (reference_logits.argmax(axis=-1) == other.argmax(axis=-1)) & ~broken
    return same


def decided(logits: Array) -> Bools:
    """At which rows of logits ``[N, V]`` the best token is ``DECIDED_ODDS`` times as likely as the next; bool ``[N]``.

    Where it is not, another best token is a choice between near equals: nothing that a reader loses.
    """
    best = np.partition(logits, -2, axis=-1)[:, -2:].astype(np.float64)
    found: Bools = best[:, 1] - best[:, 0] >= math.log(DECIDED_ODDS)
    return found


def _discordant(a: Bools, b: Bools) -> tuple[int, int]:
    """How many questions only ``a`` got right, and how many only ``b``."""
    return int(np.count_nonzero(a & ~b)), int(np.count_nonzero(b & ~a))


def _same_length(a: Bools, b: Bools) -> int:
    for array in (a, b):
        if array.ndim != 1 or array.dtype != np.bool_:
            raise ValueError(f"paired answers are bool [N], not {array.dtype} {list(array.shape)}")
    if len(a) != len(b):
        raise ValueError(f"{len(a)} answers can't be paired with {len(b)}")
    return len(a)


def _same_logits(a: Array, b: Array) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"logits {list(a.shape)} and {list(b.shape)} can't be compared: both are [N, V]")

"""Resampling paths: how far a slope could be off, given that all levels were measured on the same paths."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 999
SEED = 20240229
ROUNDED = 1e-7  # relative standard errors that are round-off: squares cancel
TINY = 1e-280  # stands for zero under a logarithm


def log_means(z: Array, power: float) -> tuple[Array, Array]:
    """``y_l = power log2 |mean_i z_li|`` for z (levels, n), and the covariance of y by the delta method."""
    mean = z.mean(axis=1)
    mean = np.where(mean == 0, TINY, mean)
    influence = (power / np.log(2)) * (z / mean[:, None] - 1)
    return power * np.log2(np.abs(mean)), influence @ influence.T / (z.shape[1] * (z.shape[1] - 1))


def studentized(z: Array, power: float, a: Array, confidence: float) -> float:
    r"""Half the width of the interval of ``sum_l a_l y_l``, with y as in ``log_means``: the symmetric bootstrap-t.

    Columns of z, the paths, are drawn with replacement, all levels together. Each resample b gives
    ``T_b = |sum a y_b - sum a y| / se_b`` with the delta method's standard error of that resample, and the
    half-width is ``se`` times the quantile of T. Errors of strong convergence have heavy tails (a path in ten carries
    half of the sum of squares), for which the percentile bootstrap is too narrow: with 100 paths and lognormal errors
    it covers 91 %, this one 94 to 95 %. The symmetric form has error O(n^-2) in coverage; Hall (1988), "Theoretical
    comparison of bootstrap confidence intervals". Below some 30 paths no bootstrap keeps its promise on such tails.
    """
    n = z.shape[1]
    counts = _counts(n)
    b = a * power / np.log(2)
    mean = z.mean(axis=1)
    if (mean == 0).any():
        return np.inf  # no logarithm
    resampled = counts @ z.T / n  # (resamples, levels)
    lost = (resampled == 0).any(axis=1)  # only paths without any error were drawn
    resampled[lost] = mean
    first, second = np.triu_indices(len(z))
    products = counts @ (z[first] * z[second]).T / n
    g, G = b / mean, b / resampled
    se = _deviation(z @ z.T / n, g, b.sum(), n)
    twice = np.where(first == second, 1.0, 2.0)
    spread = (twice * G[:, first] * G[:, second] * products).sum(axis=1) - b.sum() ** 2
    errors = np.sqrt(np.maximum(spread, 0.0) / (n - 1))
    least = ROUNDED * np.abs(b).max() / n**0.5
    if se <= least:
        return least  # all paths err alike, as they do where everything is linear
    shift = np.abs(np.log(np.abs(resampled / mean)) @ b)
    # A resample of one path over and over has no spread: as far off as can be, unless it is not off at all.
    ratio = np.divide(shift, errors, out=np.where(shift > least, np.inf, 0.0), where=errors > least)
    ratio[lost] = np.inf
    quantile: float = np.sort(ratio)[int(np.ceil(confidence * (RESAMPLES + 1))) - 1]
    return quantile * se


def log_medians(errors: Array) -> Array:
    """``log2 median_i e_li`` of each resample, (resamples, levels); the whole sample's is not among them."""
    counts = _counts(errors.shape[1])
    columns = []
    for level in errors:
        order = np.argsort(level)
        seen = np.cumsum(counts[:, order], axis=1)
        middle = (seen < errors.shape[1] / 2).sum(axis=1)
        columns.append(np.log2(np.maximum(level[order][middle], TINY)))
    return np.stack(columns, axis=1)


@lru_cache(maxsize=4)
def _counts(n: int) -> Array:
    """How often each of n paths is drawn in each resample, (resamples, n): the same for the same n."""
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _deviation(moments: Array, g: Array, total: float, n: int) -> float:
    variance = float(g @ moments @ g) - total**2
    return float(np.sqrt(max(variance, 0.0) / (n - 1)))

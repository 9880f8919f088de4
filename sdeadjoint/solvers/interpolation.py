"""Integrals of the polynomials through past drifts, in the clock or in its logarithm."""

from __future__ import annotations

import math
from functools import cache

import numpy as np


def integrals(nodes: list[float], u0: float, u1: float, *, logarithmic: bool) -> list[float]:
    """``int l_j(u) ds`` over ``[u0, u1]``, ``l_j`` the Lagrange polynomials on ``nodes``.

    ``s = e^u`` if ``logarithmic`` and u itself otherwise. By Gauss-Legendre sums, exact to round-off
    for steps of up to 32 in log s.
    """
    points, weights = _gauss_legendre()
    half = 0.5 * (u1 - u0)
    u = u0 + half * (points + 1)
    measure = half * weights * (np.exp(u) if logarithmic else 1.0)
    return [
        float(measure @ math.prod((u - other) / (node - other) for k, other in enumerate(nodes) if k != j))
        for j, node in enumerate(nodes)
    ]


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(40)
    return points, weights

"""The drift of a scalar mixture, and of its derivative, written out in the coordinates of every frame."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from sdeadjoint.solvers import Drift

COMPONENTS = ((0.4, 0.6), (-1.0, 1.0), (0.5, 0.3))  # weights, means, variances; mild: no path changes mode


def written_out(kind: str, eta: float) -> Drift:
    """The frame's drift F(s, y) for the mixture: a line in y, and one times the share of the second component."""

    def drift(s: float, y: Tensor) -> Tensor:
        (q0, q1, q2), (c0, c1), (d0, d1) = _coefficients(kind, eta, s)
        return c0 + c1 * y + torch.sigmoid(q0 + (q1 + q2 * y) * y) * (d0 + d1 * y)

    return drift


def tangent(kind: str, eta: float) -> Drift:
    """The drift ``(F, F_y v)`` of pairs (2, paths)."""

    def drift(s: float, pair: Tensor) -> Tensor:
        (q0, q1, q2), (c0, c1), (d0, d1) = _coefficients(kind, eta, s)
        y, v = pair
        line, bend = d0 + d1 * y, q1 + q2 * y
        share = torch.sigmoid(q0 + bend * y)
        F_y = c1 + share * (d1 + (1 - share) * (bend + q2 * y) * line)
        return torch.stack([c0 + c1 * y + share * line, F_y * v])

    return drift


@cache
def _coefficients(kind: str, eta: float, s: float) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Of the log-odds of the second component, of the first one's prediction and of what the second's exceeds it by."""
    r = {  # sigma / alpha, from the clocks of the documentation of ``Frame``
        "data": lambda: s ** (-1 / (1 + eta)),
        "noise": lambda: s / (1 + eta),
        "flow": lambda: (1 - s) ** (-1 / (1 + eta)) - 1,
    }[kind]()
    alpha, sigma = 1 / math.hypot(1, r), r / math.hypot(1, r)
    w = {"data": sigma * r**eta, "noise": alpha, "flow": alpha * (1 + r) ** (1 + eta)}[kind]
    odds, means = [], []
    for share, m, v in zip(*COMPONENTS, strict=True):
        P, c = alpha**2 * v + sigma**2, alpha * m
        odds.append((math.log(share) - math.log(P) / 2 - c**2 / (2 * P), w * c / P, -(w**2) / (2 * P)))
        gain = alpha * v / P
        means.append((m - gain * c, gain * w))  # E[x_0 | x, component]
    lines = [_predicted(kind, w, alpha, sigma, mean) for mean in means]
    (odds0, odds1), (first, second) = odds, lines
    apart = tuple(b - a for a, b in zip(odds0, odds1, strict=True))
    return apart, first, (second[0] - first[0], second[1] - first[1])


def _predicted(kind: str, w: float, alpha: float, sigma: float, mean: tuple[float, float]) -> tuple[float, float]:
    """The frame's prediction where x_0 is predicted as ``mean[0] + mean[1] y`` and x is w y."""
    if kind == "data":
        return mean
    eps = (-alpha * mean[0] / sigma, (w - alpha * mean[1]) / sigma)
    return eps if kind == "noise" else (eps[0] - mean[0], eps[1] - mean[1])

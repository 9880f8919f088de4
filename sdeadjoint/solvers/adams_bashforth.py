"""Adams-Bashforth methods on non-uniform grids, in the clock or its logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor

from .base import Claims, Drift, Interval, Solver, State, refuse_without_log

VARIABLES = ("log", "clock")


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """Exact integral of the polynomial through the last drifts, in ``u = log s`` or ``u = s``:

        y1 = y0 + sum_j w_j F_{n-j} + dB,      w_j = int_{s0}^{s1} l_j(u(s)) ds

    with ``l_j`` the Lagrange polynomials on the last ``order`` nodes; weights are recomputed for each step's own nodes,
    so any monotone grid keeps the order. The first steps have lower order: k nodes when only k are known.

    Args:
        order: 1 to 4.
        variable: ``"log"`` interpolates in lambda (DEIS as diffusers has it, ``log rho``), ``"clock"`` in s itself
            (rho-AB-DEIS; the textbook Adams-Bashforth method on uniform clocks).

    Given exact past drifts a step has a local error of order ``order + 1``. The first step has no past and is Euler's:
    its error, of order h^2, is made once and stays, so the order of convergence is min(order, 2) unless the first
    steps are graded (sizes growing from h^(order/2), when the order is ``order``). On the clocks of diffusion, whose
    first steps are tiny, that error is small and orders 3 and 4 still pay. Strong order 1.0 with additive noise, one
    network call per step, ``order - 1`` past drifts as state. ``"log"`` drops a node at 0 from the history; clocks
    below 0, and those that fall to 0, have no log and are refused (``ValueError``).
    Not for few steps of very different sizes: the weights grow and errors with them.
    Source: Zhang and Chen (2023), section 3 (DEIS); Hairer, Norsett and Wanner (1993), section III.5.
    """

    order: int = 2
    variable: str = "log"

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2, 3, 4):
            raise ValueError(f"order: got {self.order!r}; pass 1, 2, 3 or 4")
        if self.variable not in VARIABLES:
            raise ValueError(f"variable: got {self.variable!r}; pass one of {VARIABLES}")

    @property
    def claims(self) -> Claims:
        return Claims(ode=min(self.order, 2), strong=1.0, evaluations=1, weak=float(min(self.order, 2)))

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        if self.variable == "log" and self.order > 1:
            refuse_without_log(self, interval, state)
        history = ((interval.s0, drift(interval.s0, y)), *state)
        nodes = [s for s, _ in history]
        if self.variable == "log":
            # A node at s = 0 lies infinitely far away in log s: its Lagrange polynomial vanishes everywhere else.
            nodes = [s for s in nodes if s > 0]
        for weight, (_, F) in zip(self._weights(nodes, interval), history, strict=False):
            y = y + weight * F
        return y + interval.dB, history[: self.order - 1]

    def _weights(self, nodes: list[float], interval: Interval) -> list[float]:
        if len(nodes) <= 1:
            return [interval.ds]
        s0, s1 = interval.s0, interval.s1
        if self.variable == "clock":
            return _integrate(nodes, s0, s1, logarithmic=False)
        return _integrate([math.log(s) for s in nodes], math.log(s0), math.log(s1), logarithmic=True)


def _integrate(nodes: list[float], u0: float, u1: float, *, logarithmic: bool) -> list[float]:
    """``int l_j(u) ds`` over ``[u0, u1]`` by Gauss-Legendre, exact to round-off for steps of up to 32 in log s."""
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

"""Adams-Bashforth methods on non-uniform grids, in the clock or its logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Claims, Drift, Interval, Solver, State, refuse_without_log
from .facts import remembers
from .interpolation import integrals

VARIABLES = ("log", "clock")


@dataclass(frozen=True, repr=False)
class AdamsBashforth(Solver):
    """Exact integral of the polynomial through the last drifts, in ``u = log s`` or ``u = s``:

        y1 = y0 + sum_j w_j F_{n-j} + dB,      w_j = int_{s0}^{s1} l_j(u(s)) ds

    with ``l_j`` the Lagrange polynomials on the last ``order`` nodes. Weights are recomputed for
    each step's own nodes, so any monotone grid keeps the order.

    Args:
        order: k = 1 to 4, the number of drifts.
        variable: ``"log"`` interpolates in lambda (DEIS as diffusers has it, ``log rho``),
            ``"clock"`` in s itself (rho-AB-DEIS; the textbook Adams-Bashforth method on uniform
            clocks).
        start: a one-step solver that makes the first k - 1 steps, such as ``RK4()``. None, as the
            published samplers have it: the method itself on the nodes there are, Euler's first.

    Given exact past drifts a step has a local error ``O(h^(k+1))``. A start of order p makes one of
    ``O(h^(p+1))`` a few times, which stays, so the order is min(k, p + 1): k with ``start=RK4()``,
    min(k, 2) without one. (Without, first steps that grow from ``h^(k/2)`` restore the order k; on
    the clocks of diffusion, whose first steps are tiny, the error of the start is small and orders 3
    and 4 pay all the same.) Strong order 1.0 with additive noise, weak order min(k, 2).

    One network call per step (a step of the start costs what it costs alone), k - 1 past drifts as
    state. ``"log"`` drops a node at 0 from the history; clocks below 0, and those that fall to 0,
    have no log. Not for few steps of very different sizes: the weights grow and errors with them.

    Errors: ``ValueError`` or ``TypeError`` for other orders, variables and starts; ``ValueError``
    for steps that have no log where one is needed.
    Source: Zhang and Chen (2023), section 3 (DEIS); Hairer, Norsett and Wanner (1993), III.5.
    """

    order: int = 2
    variable: str = "log"
    start: Solver | None = None

    def __post_init__(self) -> None:
        if type(self.order) is not int or self.order not in (1, 2, 3, 4):
            raise ValueError(f"order: got {self.order!r}; pass 1, 2, 3 or 4")
        if self.variable not in VARIABLES:
            raise ValueError(f"variable: got {self.variable!r}; pass one of {VARIABLES}")
        if self.start is not None:
            _check_start(self.start)

    def __repr__(self) -> str:
        start = "" if self.start is None else f", start={self.start!r}"
        return f"AdamsBashforth(order={self.order}, variable={self.variable!r}{start})"

    @property
    def claims(self) -> Claims:
        starts = Claims(1, 1.0, 1) if self.start is None else self.start.claims
        return Claims(
            ode=min(self.order, starts.ode + 1),
            strong=1.0,
            evaluations=1,
            weak=float(min(self.order, 2)),
            starting=(starts.evaluations,) * (self.order - 1) if starts.evaluations > 1 else (),
        )

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        if self.variable == "log" and self.order > 1:
            refuse_without_log(self, interval, state)
        F = drift(interval.s0, y)
        history = ((interval.s0, F), *state)
        kept = history[: self.order - 1]
        if self.start is not None and len(history) < self.order:
            return self._started(self.start, drift, interval, y, F), kept
        nodes = [s for s, _ in history]
        if self.variable == "log":
            # A node at s = 0 lies infinitely far away in log s: its Lagrange polynomial vanishes everywhere else.
            nodes = [s for s in nodes if s > 0]
        for weight, (_, F) in zip(self._weights(nodes, interval), history, strict=False):
            y = y + weight * F
        return y + interval.dB, kept

    def _started(self, start: Solver, drift: Drift, interval: Interval, y: Tensor, F: Tensor) -> Tensor:
        """The start's step; it asks for the drift at the step's own start too, which is F."""

        def known(s: float, Y: Tensor) -> Tensor:
            return F if Y is y and s == interval.s0 else drift(s, Y)

        return start.step(known, interval, y, start.initial_state)[0]

    def _weights(self, nodes: list[float], interval: Interval) -> list[float]:
        if len(nodes) <= 1:
            return [interval.ds]
        s0, s1 = interval.s0, interval.s1
        if self.variable == "clock":
            return integrals(nodes, s0, s1, logarithmic=False)
        return integrals([math.log(s) for s in nodes], math.log(s0), math.log(s1), logarithmic=True)


def _check_start(start: Solver) -> None:
    if not isinstance(start, Solver):
        got = f"the class {start.__name__}" if isinstance(start, type) else type(start).__name__
        raise TypeError(f"start: got {got}; pass a one-step solver such as RK4(), or None")
    if remembers(start):
        raise ValueError(
            f"start: got {start!r}, which remembers earlier steps; pass a one-step solver such as RK4()"
        )
    if start.claims.levy != "none":
        raise ValueError(
            f"start: got {start!r}, which asks for Levy areas that the other steps have no use for; "
            "pass RK4() or Heun()"
        )

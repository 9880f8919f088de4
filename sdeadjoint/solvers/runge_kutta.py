"""Explicit Runge-Kutta methods for additive noise, from their coefficients."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Drift, Interval, Solver, State


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge-Kutta method for ``dy = F(s, y) ds + dB``:

        Y_i = y0 + ds sum_{j<i} a[i][j] F(s0 + c[i] ds, Y_j) + noise[i] dB + levy[i] H
        y1  = y0 + ds sum_i b[i] F(s0 + c[i] ds, Y_i) + dB

    Args:
        a: strictly lower triangular rows, ``a[0] == ()``.
        b: weights, summing to one.
        c: nodes, ``c[i] = sum(a[i])``.
        noise: what part of the increment each stage sees; ``c`` itself for methods that do not ask for more.
        levy: how much of the space-time Levy area each stage sees; empty for none.
        embedded: a second row of weights, of a method of one order less on the same stages, for an
            estimate of the local error; empty for none. If it is longer than ``b`` by one, its last
            weight belongs to the drift at the step's end, ``F(s1, y1)``.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    noise: tuple[float, ...]
    levy: tuple[float, ...] = ()
    embedded: tuple[float, ...] = ()

    def stages(self, drift: Drift, interval: Interval, y: Tensor) -> list[Tensor]:
        """The drifts ``F(s0 + c[i] ds, Y_i)``, one call each."""
        found: list[Tensor] = []
        for i, row in enumerate(self.a):
            Y = _added(y, interval.ds, row, found)
            if self.noise[i]:
                Y = Y + self.noise[i] * interval.dB
            if self.levy and self.levy[i]:
                Y = Y + self.levy[i] * interval.H
            found.append(drift(interval.at(self.c[i]), Y))
        return found

    def end(self, interval: Interval, y: Tensor, stages: list[Tensor]) -> Tensor:
        """``y1`` from the drifts at the stages."""
        return _added(y, interval.ds, self.b, stages) + interval.dB


def _added(y: Tensor, ds: float, weights: tuple[float, ...], drifts: list[Tensor]) -> Tensor:
    """``y + ds sum_i weights[i] drifts[i]``; a weight of 0 costs nothing."""
    for weight, F in zip(weights, drifts, strict=True):
        if weight:
            y = y + (weight * ds) * F
    return y


class RungeKutta(Solver):
    """A solver that is its tableau. One network call per stage, no state."""

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The method's coefficients."""

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        tableau = self.tableau
        return tableau.end(interval, y, tableau.stages(drift, interval, y)), state

    def step_with_error(self, drift: Drift, interval: Interval, y: Tensor) -> tuple[Tensor, Tensor]:
        """``(y1, error)``: y1 bit by bit as ``step`` makes it, and its distance from the second row:

            error = ds sum_i (b[i] - embedded[i]) F_i          shape and dtype of y

        This is the local error of the embedded method but for higher orders, ``O(ds^p)`` for a pair
        of orders p and p - 1, so it overestimates that of y1. With noise it sees what the stages
        see: the part ``c_i dB`` of the increment and no Levy area. So the largest part of a step's
        error along a Brownian path, ``ds F_y H``, is not in it.

        Calls the drift once more than ``step`` where ``embedded`` is longer than ``b``: at the end,
        ``drift(s1, y1)``. The next step's first call has the same arguments, y1 being the same
        object, so a drift that remembers its last value makes it free.

        Errors: ``TypeError`` for a tableau without an embedded row.
        """
        tableau = self.tableau
        if not tableau.embedded:
            raise TypeError(
                f"solver: got {self!r}, which has no second row of weights to estimate an error with; "
                "pass Dopri5() or BogackiShampine()"
            )
        stages = tableau.stages(drift, interval, y)
        y1 = tableau.end(interval, y, stages)
        weights = tableau.b
        if len(tableau.embedded) > len(weights):
            weights, stages = (*weights, 0.0), [*stages, drift(interval.s1, y1)]
        differences = tuple(b - other for b, other in zip(weights, tableau.embedded, strict=True))
        return y1, _added(torch.zeros_like(y1), interval.ds, differences, stages)

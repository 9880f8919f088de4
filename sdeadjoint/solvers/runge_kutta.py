"""Explicit Runge-Kutta methods for additive noise, from their coefficients."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

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
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    noise: tuple[float, ...]
    levy: tuple[float, ...] = ()


class RungeKutta(Solver):
    """A solver that is its tableau. One network call per stage, no state."""

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The method's coefficients."""

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        tableau, ds = self.tableau, interval.ds
        stages: list[Tensor] = []
        for i, row in enumerate(tableau.a):
            Y = y
            for weight, F in zip(row, stages, strict=True):
                if weight:
                    Y = Y + (weight * ds) * F
            if tableau.noise[i]:
                Y = Y + tableau.noise[i] * interval.dB
            if tableau.levy and tableau.levy[i]:
                Y = Y + tableau.levy[i] * interval.H
            stages.append(drift(interval.at(tableau.c[i]), Y))
        for weight, F in zip(tableau.b, stages, strict=True):
            if weight:
                y = y + (weight * ds) * F
        return y + interval.dB, state

"""The reversible Heun method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Claims, Drift, Interval, ReversibleSolver, State


@dataclass(frozen=True)
class ReversibleHeun(ReversibleSolver):
    """The trapezium rule on drifts along an auxiliary path v, with ``F = F(s0, v)`` and ``F' = F(s1, v')``:

        v' = 2 y - v + ds F + dB,      y' = y + ds/2 (F + F') + dB

    Undone by the same formulas with ds and dB negative and the ends exchanged. The state is ``(v - y, F)``: the
    difference, because it is small and rounds by less than v does; ``()`` at the start, for ``v = y``.

    Order 2; with additive noise strong order 1.0 and weak order 2, on any grid (it stays within ``O(h^2)`` of Heun's
    method, path by path: ``theory/reversible.md``, R5). One network call per step and one more in the first step; one
    call to undo a step. As F is handed to the next step, a step undone must see the drift of the step
    before it at their common clock: with conditioning that changes from step to step it does not.
    Not for decaying problems: with ``z = ds dF/dy < 0`` the difference v - y grows like ``(sqrt(1 + z^2) - z)^n`` with
    alternating sign, so stability holds on no part of the negative axis (only for z in [-i, i]): the noise kind, where
    dF/dy ds < 0, needs small steps, and ``Heun`` or ``DPMSolverPP2M`` are safer at few. The network must be a function
    of its arguments: with dropout the inverse sees other masks.
    Source: Kidger, Foster, Li and Lyons (2021), Algorithm 1.
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.0, evaluations=1, weak=2.0)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        u, F0 = state or (torch.zeros_like(y), drift(interval.s0, y))
        F1 = drift(interval.s1, y - u + (interval.ds * F0 + interval.dB))
        half = 0.5 * interval.ds
        return y + (half * (F0 + F1) + interval.dB), (half * (F0 - F1) - u, F1)

    def invert(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        u, F1 = state
        F0 = drift(interval.s0, y - u - (interval.ds * F1 + interval.dB))
        half = 0.5 * interval.ds
        return y - (half * (F0 + F1) + interval.dB), (half * (F0 - F1) - u, F0)

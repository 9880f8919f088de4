"""A midpoint method that takes its midpoint as a step of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State


@dataclass(frozen=True)
class TwoStage(Solver):
    """Steps in pairs, ``s0 -> s -> s1`` with noise ``dB``, then ``dB'``:

        Y = y0 + (s - s0) F(s0, y0) + dB,      y1 = y0 + (s1 - s0) F(s, Y) + dB + dB'

    With ``s`` half-way in lambda it is k-diffusion's ``sample_dpmpp_sde`` and diffusers' ``DPMSolverSDEScheduler``
    (data kind, eta = 1), DPM-Solver++(2S) with eta = 0: order 2 for the pair where ``s`` is the clock's own midpoint
    up to terms of second order, as half-way in lambda is; on any other grid, and for a last step without a partner,
    order 1. Strong order 1.0, one network call per step. The grid must have the midpoints: the adapter's own has.
    Source: Lu et al. (2022b), Algorithm 1.
    """

    claims: ClassVar[Claims] = Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        F = drift(interval.s0, y)
        if not state:
            driven = y + interval.dB
            return driven + interval.ds * F, (interval.s0, driven)
        s0, driven = state
        return driven + (interval.s1 - s0) * F + interval.dB, ()

"""DPM-Solver-2 with ancestral noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State


@dataclass(frozen=True)
class AncestralPair(Solver):
    """Steps in pairs, ``s0 -> s -> s1``: the midpoint method on ``dx/dsigma`` down to ``sigma_1^2 / sigma_0``, and the
    noise that leads up from there. With D the slope ``(x - x_0) / sigma``, at ``x_s = x + (sigma_s - sigma_0) D(x)``:

        x_1 = x + (sigma_1^2 / sigma_0 - sigma_0) D(x_s) + noise

    The data kind with eta = 1 on ``VE``, where ``s = 1 / sigma^2`` and ``y = x / sigma^2``. The point half-way down, in
    ``log sigma``, is ``sigma_1``: ``s`` is just short of ``s1``, and the grid must have it. It is k-diffusion's
    ``sample_dpm_2_ancestral`` and diffusers' ``KDPM2AncestralDiscreteScheduler``. Order 1, strong order 1.0, one
    network call per step of the grid.
    """

    claims: ClassVar[Claims] = Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        F = drift(interval.s0, y)
        if not state:
            s0, s = interval.s0, interval.s1
            ratio = math.sqrt(s / s0)
            return ratio * y + s * (1 - 1 / ratio) * F, (s0, y, interval.dB)
        s0, start, dB = state
        s, s1 = interval.s0, interval.s1
        slope = math.sqrt(s) * (y / s - F)
        return s1 * (start / s0 + (math.sqrt(s0) / s1 - 1 / math.sqrt(s0)) * slope) + dB + interval.dB, ()

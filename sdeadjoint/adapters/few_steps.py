"""The samplers of distilled models: a few large steps that throw the state away and noise a prediction of x_0."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State


@dataclass(frozen=True)
class Restart(Solver):
    """Each step noises the predicted x_0 afresh: ``x' = alpha' F + sigma' z``. In the data kind with eta = 1:

        y1 = s1 F(s0, y0) + sqrt(s1 / (s1 - s0)) dB

    The state enters through F alone. It is multistep sampling of consistency models, whose F is the end of a path and
    not a mean: for those only, with no order of convergence to any equation. One network call per step.
    Source: Song et al. (2023), Consistency Models, Algorithm 1; Luo et al. (2023), Latent Consistency Models.
    """

    claims: ClassVar[Claims] = Claims(ode=0, strong=0.0, evaluations=1, weak=0.0)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1 = interval.s0, interval.s1
        return s1 * drift(s0, y) + math.sqrt(s1 / (s1 - s0)) * interval.dB, ()


@dataclass(frozen=True)
class Trajectory(Solver):
    """Trajectory consistency: DDIM past the step's end, to less noise, and back up to it by the forward process.

    For a step to the timestep t' it goes down to ``floor((1 - gamma) t')``, where alpha is ``a``, and then takes
    ``x' = alpha' / a x + sqrt(1 - alpha'^2 / a^2) z``. For the data kind with eta = 1 on a variance-preserving table.

    Args:
        gamma: in [0, 1]; 0 is DDIM, 1 noises x_0 afresh.
        clocks: SNR at the timesteps 0, 1, ...

    For distilled models only, with no order of convergence to any equation. One network call per step.
    Source: Zheng et al. (2024), Trajectory Consistency Distillation, Algorithm 4.
    """

    gamma: float
    clocks: tuple[float, ...] = field(repr=False)
    claims: ClassVar[Claims] = Claims(ode=0, strong=0.0, evaluations=1, weak=0.0)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1 = interval.s0, interval.s1
        low = self._below(s1)
        F, root = drift(s0, y), math.sqrt(s0)
        down = s1 * F + s1 / math.sqrt(low) * (y / root - root * F)
        # 1 - alpha'^2 / a^2 on a variance-preserving process, where alpha^2 = s / (1 + s).
        lost = (low - s1) / (low * (1 + s1))
        return down + math.sqrt(max(lost, 0.0) * s1 * (1 + s1) / (s1 - s0)) * interval.dB, ()

    def _below(self, s1: float) -> float:
        """SNR of the point that a step to ``s1`` goes down to."""
        timestep = int(np.abs(np.log(self.clocks) - math.log(s1)).argmin())
        return s1 if self.gamma == 0 else self.clocks[math.floor((1 - self.gamma) * timestep)]

"""DPM-Solver++(2M) and its SDE form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Claims, Drift, Interval, Solver, State, refuse_without_log


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """The second-order multistep method of DPM-Solver++, which extrapolates the drift linearly in ``log s``:

        D = F_n + (F_n - F_{n-1}) / (2 r),    r = log(s_n / s_{n-1}) / log(s_{n+1} / s_n),    y1 = y0 + ds D + dB

    (r is the ratio of steps in lambda). The first step is Euler's. In the data kind it is DPM-Solver++(2M) with eta = 0
    and SDE-DPM-Solver++(2M) with eta = 1.
    Order 2; with additive noise strong order 1.0, weak order 2; one network call per step, one past drift as state: the
    best choice per call for ordinary sampling. On very uneven grids (r far from 1) it loses accuracy and stability.
    Clocks below 0, and those that fall to 0, have no log and are refused (``ValueError``); one may rise from 0.
    Source: Lu et al. (2022b), Algorithm 2 and the SDE form of the same paper.
    """

    claims: ClassVar[Claims] = Claims(ode=2, strong=1.0, evaluations=1, weak=2.0)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        refuse_without_log(self, interval, state)
        u, u1 = (math.log(s) if s > 0 else -math.inf for s in (interval.s0, interval.s1))
        F = D = drift(interval.s0, y)
        if state:
            u_past, F_past = state
            D = F + (0.5 * (u1 - u) / (u - u_past)) * (F - F_past)
        return y + interval.ds * D + interval.dB, (u, F)

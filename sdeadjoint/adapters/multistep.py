"""Multistep methods as schedulers start and end them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..solvers import Claims, Drift, Interval, Solver, State
from .unipc import UniPCSteps

_WEIGHTS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PLMS(Solver):
    """The pseudo linear multistep method: Adams-Bashforth's weights for equal steps, whatever the steps are:

        y1 = y0 + ds (w_0 F_n + w_1 F_{n-1} + ...),      w of order 1 to 4

    after one step of Heun's method. In the noise kind it is PLMS of Liu et al. (2022), the ``PNDMScheduler`` without
    Runge-Kutta steps. The steps are equal in time and not in the clock, so its order is 1 (2 on equal steps); one
    network call per step and one more in the first. For models that were tuned with it; ``AdamsBashforth`` has the
    weights of the clock itself.

    Args:
        velocity: mix ``v = alpha eps - sigma x_0`` in place of eps, and turn the mixture into eps at the step's start,
            as the scheduler does for models that predict v; on variance-preserving processes.
    """

    velocity: bool = False
    claims: ClassVar[Claims] = Claims(ode=1, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1, ds = interval.s0, interval.s1, interval.ds
        F = drift(s0, y)
        output = self._output(F, s0, y)
        if not state:
            Y = y + ds * F
            mean = (output + self._output(drift(s1, Y), s1, Y)) / 2
            return y + ds * self._noise(mean, s0, y) + interval.dB, (output,)
        history = (output, *state)
        weights = _WEIGHTS[len(history) - 1]
        mean = sum((w * past for w, past in zip(weights[1:], state, strict=True)), weights[0] * output)
        return y + ds * self._noise(mean, s0, y) + interval.dB, history[:3]

    def _output(self, F: Tensor, s: float, y: Tensor) -> Tensor:
        """What is mixed, from eps; ``s = sigma / alpha`` and ``y = x / alpha``."""
        root = math.sqrt(1 + s * s)
        return root * F - (s / root) * y if self.velocity else F

    def _noise(self, mixed: Tensor, s: float, y: Tensor) -> Tensor:
        """eps, from what was mixed."""
        root = math.sqrt(1 + s * s)
        return mixed / root + (s / root**2) * y if self.velocity else mixed


@dataclass(frozen=True)
class ThirdOrder(Solver):
    """DPM-Solver's multistep method of order 3, as it is run: with ``u = log s``, ``H = u1 - u0`` and the slopes
    ``D`` and ``D'`` of the last two intervals per H,

        y1 = y0 + (s1 - s0) F + s1 (1 + (e^-H - 1) / H) D_1 + s1 (1/2 - (e^-H - 1 + H) / H^2) D_2,
        D_1 = D + r (D - D') / (r + r'),       D_2 = (D - D') / (r + r'),       r = (u0 - u_-1) / H

    That is half of what the parabola's own quadratic term would be, so the local error is of order 3, as that of
    ``AdamsBashforth(2)``, with a smaller constant. The first steps have orders 1 and 2. Strong order 1.0, one network
    call per step, two past drifts as state. Source: Lu et al. (2022a), appendix, and its public code.

    Args:
        heun: at order 2, integrate the line exactly (``AdamsBashforth(2)``) instead of its slope at the middle.
        flipped: the last term is ``-s1 (1/2 + (e^-H - 1 + H) / H^2) D_2``, as in the ``sde-dpmsolver++`` of diffusers,
            whose 1/2 has the other sign. It does not vanish with H, so the order is 1.
    """

    heun: bool = False
    flipped: bool = False

    @property
    def claims(self) -> Claims:
        return Claims(ode=1 if self.flipped else 2, strong=1.0, evaluations=1)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        s0, s1 = interval.s0, interval.s1
        F = drift(s0, y)
        out = y + interval.ds * F + interval.dB
        # A node at s = 0 lies infinitely far away in log s.
        past = [(math.log(s), G) for s, G in state if s > 0]
        if past:
            u, H = math.log(s0), math.log(s1) - math.log(s0)
            first = s1 * (1 + math.expm1(-H) / H)
            slope, r = self._slope((u, F), past[0], H)
            if len(past) == 1:
                out = out + (first if self.heun else interval.ds / 2) * slope
            else:
                before, r_before = self._slope(past[0], past[1], H)
                bend = (slope - before) / (r + r_before)
                half = -0.5 if self.flipped else 0.5
                out = out + first * (slope + r * bend) + s1 * (half - (math.expm1(-H) + H) / H**2) * bend
        return out, ((s0, F), *state)[:2]

    @staticmethod
    def _slope(later: tuple[float, Tensor], earlier: tuple[float, Tensor], H: float) -> tuple[Tensor, float]:
        """The slope of a line through two drifts, over a step in u, and their distance in such steps."""
        r = (later[0] - earlier[0]) / H
        return (later[1] - earlier[1]) / r, r


def lowered(solver: Solver, kept: tuple[tuple[float, int], ...]) -> Solver:
    """A multistep method that sees no more than so many past drifts in a step from such a clock."""
    return replace(solver, kept=kept) if isinstance(solver, UniPCSteps) else Lowered(solver, kept)


@dataclass(frozen=True)
class Lowered(Solver):
    """A multistep method that forgets in its last steps, as schedulers do in short runs.

    Args:
        base: one whose memory is a tuple, the latest first: ``AdamsBashforth``, ``DPMSolverPP2M``, ``Singlestep``.
        kept: pairs (clock, number): a step from this clock sees no more than so many entries of the memory.

    Orders of ``base`` where the steps at the end are small against the others, as they are where this is used; else
    the last steps' own, one more than what they keep.
    """

    base: Solver
    kept: tuple[tuple[float, int], ...]

    @property
    def claims(self) -> Claims:
        return self.base.claims

    @property
    def initial_state(self) -> State:
        return self.base.initial_state

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        for clock, number in self.kept:
            # The clock is computed again from the same times, by kernels that may round differently.
            if abs(interval.s0 - clock) <= 1e-12 * abs(clock):
                state = state[:number]
        return self.base.step(drift, interval, y, state)

"""DPM-Solver-3: the singlestep method of order 3 in the logarithm of the clock."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Claims, Drift, Interval, Solver, State, refuse_without_log
from .interpolation import integrals
from .runge_kutta import Tableau

VARIANTS = ("dpmsolver", "heun", "midpoint")
_R1, _R2 = 1 / 3, 2 / 3
_EULER = Tableau(a=((),), b=(1.0,), c=(0.0,), noise=(0.0,))


@dataclass(frozen=True)
class DPMSolver3(Solver):
    """Three stages at thirds of the step in ``u = log s``, whose drifts are interpolated in u:

        Y2 = y0 + (s_a - s0) (F1 + dB/ds)
        Y3 = y0 + (s_b - s0) (F1 + dB/ds) + v (F2 - F1)
        y1 = y0 + ds F1 + w (F3 - F1) + dB

        v = int_{s0}^{s_b} (u - u0) / (h/3) ds,      w = int_{s0}^{s1} (u - u0) / (2h/3) ds

    with ``h = log(s1/s0)``, ``s_a = s0 e^(h/3)``, ``s_b = s0 e^(2h/3)``, and F1, F2, F3 the drifts
    at ``(s0, y0)``, ``(s_a, Y2)`` and ``(s_b, Y3)``. In the noise kind it is DPM-Solver-3, in the data
    kind DPM-Solver++(3S). Its coefficients are a tableau that depends on h (``tableau(interval)``),
    and tends to that of Heun's third-order method as h goes to 0.

    Args:
        variant: ``"dpmsolver"`` is the published method, above. ``"heun"`` ends with the exact
            integral of the parabola through all three drifts, and ``"midpoint"`` has
            ``v = s_b - s0``: the ``solver_type`` of these names of diffusers'
            ``DPMSolverSinglestepScheduler(solver_order=3)``.

    Order 3; strong order 1.0 with additive noise; three network calls per step, no state. From
    s = 0 a step is Euler's; clocks below 0, and those that fall to 0, have no log. Not for very few
    calls, of which ``DPMSolverPP2M`` makes three times as many steps; with noise it gains nothing
    over ``Heun``.

    diffusers' scheduler has its stages at nodes of its grid: at thirds if that is even in lambda.
    If not, its third stage is not at 2/3 of the step, and its order is 2 unless the lengths of
    neighbouring steps tend to each other (theory/orders.md, O6).

    Errors: ``ValueError`` for other variants, and for steps that have no log.
    Source: Lu et al. (2022a), Algorithm 2 (DPM-Solver-3, r1 = 1/3, r2 = 2/3).
    """

    claims: ClassVar[Claims] = Claims(ode=3, strong=1.0, evaluations=3)
    variant: str = "dpmsolver"

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant: got {self.variant!r}; pass one of {VARIANTS}")

    def tableau(self, interval: Interval) -> Tableau:
        """The coefficients of one step, which depend on ``log(s1/s0)`` alone."""
        # A step to 0 needs its log, unlike the first step of a multistep method: hence a state.
        refuse_without_log(self, interval, ("stages",))
        if interval.s0 == 0:
            return _EULER
        h = math.log(interval.s1) - math.log(interval.s0)
        ds = math.expm1(h)  # in units of s0
        c1, c2 = (math.expm1(r * h) / ds for r in (_R1, _R2))
        v = c2 if self.variant == "midpoint" else _integrated((0.0, _R1), _R2, h)[1] / ds
        thirds = (0.0, _R1, _R2) if self.variant == "heun" else (0.0, _R2)
        *rest, w = (weight / ds for weight in _integrated(thirds, 1.0, h)[1:])
        b = (1.0 - w - sum(rest), *(rest or (0.0,)), w)
        nodes = (0.0, c1, c2)
        return Tableau(a=((), (c1,), (c2 - v, v)), b=b, c=nodes, noise=nodes)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        tableau = self.tableau(interval)
        return tableau.end(interval, y, tableau.stages(drift, interval, y)), state


def _integrated(places: tuple[float, ...], end: float, h: float) -> list[float]:
    """``int l_j(u) e^u du`` from 0 to ``end h``, for nodes at ``places`` times h."""
    return integrals([place * h for place in places], 0.0, end * h, logarithmic=True)

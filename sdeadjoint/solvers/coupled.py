"""The McCallum-Foster coupling: any one-step method, made reversible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from .base import Claims, Drift, Interval, ReversibleSolver, Solver, State
from .facts import remembers
from .runge_kutta import RungeKutta


@dataclass(frozen=True)
class Coupled(ReversibleSolver):
    """A one-step method run on two copies of the solution, ``y`` and ``yh``, each driven by the other:

        y'  = zeta y + (1 - zeta) yh + Psi_h(yh)
        yh' = yh - Psi_{-h}(y')

    with ``Psi_h(y)`` what the base adds to y over the step, and ``Psi_{-h}`` the same over the step and its path run
    backwards (-ds, -dB, same H). Undone in closed form: ``yh = yh' + Psi_{-h}(y')``,
    ``y = (y' - (1 - zeta) yh - Psi_h(yh)) / zeta``. The state is ``(y - yh,)``, a small number that rounds by less than
    yh does; ``()`` at the start, for ``yh = y``.

    Args:
        base: a one-step solver that commutes with shifts of the state, as every Runge-Kutta method does.
        zeta: 0 < zeta <= 1, how much of y is kept.

    The base's ODE order and, for Runge-Kutta bases, its strong and weak orders with additive noise, on any grid (weak
    order 2 around ``Heun``, ``SRA1`` and ``ShARK``: ``theory/weak.md``, W4); twice the base's network calls per step,
    and as many to undo it. Undoing N steps multiplies round-off by ``zeta^-N`` (2.7 for 0.999 and N = 1000, 4e4
    for 0.9 and N = 100) and by ``e^|G|``, ``G = int dF/dy ds``. Over all noise levels G is bounded in the flow kind and
    large in the others, most of all with eta > 0 (``theory/reversible.md``, R7): take the flow kind there, and in
    float32. Forward, y - yh shrinks where ``z = ds dF/dy`` > 0 (data kind) and grows like ``zeta e^-z`` per step where
    z < 0 (noise kind): the method is unstable on decaying problems with steps of ``|z| > 1 - zeta``.
    Not for sampling alone: the base costs half as much and is as accurate. The network must be a function of its
    arguments: with dropout the inverse sees other masks. Errors: ``TypeError`` or ``ValueError`` for a base that is no
    solver, is reversible itself or remembers earlier steps, and for other zeta.
    Source: McCallum and Foster (2024); Blasingame and Liu (2025), Rex, for diffusion.
    """

    base: Solver
    zeta: float = 0.999

    def __post_init__(self) -> None:
        if not isinstance(self.base, Solver):
            got = f"the class {self.base.__name__}" if isinstance(self.base, type) else type(self.base).__name__
            raise TypeError(f"base: got {got}; pass a one-step solver such as Heun()")
        if isinstance(self.base, ReversibleSolver):
            raise ValueError(f"base: got {self.base!r}, which is reversible already; pass that itself as the solver")
        if remembers(self.base):
            raise ValueError(
                f"base: got {self.base!r}, which remembers earlier steps; pass a one-step solver such as Heun()"
            )
        if isinstance(self.zeta, bool) or not isinstance(self.zeta, Real):
            raise TypeError(f"zeta: got {self.zeta!r}; pass a number with 0 < zeta <= 1, such as 0.999")
        object.__setattr__(self, "zeta", float(self.zeta))
        if not 0 < self.zeta <= 1:
            raise ValueError(f"zeta: got {self.zeta}; pass a number with 0 < zeta <= 1, such as 0.999")

    @property
    def claims(self) -> Claims:
        base = self.base.claims
        # A strong order is a weak one (W3). More is proved of Runge-Kutta bases only (W4).
        weak = max(base.weak, base.strong) if isinstance(self.base, RungeKutta) else base.strong
        return replace(base, evaluations=2 * base.evaluations, weak=weak)

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        (d,) = state or (torch.zeros_like(y),)
        yh = y - d
        up = self._increment(drift, interval, yh)
        y = yh + (self.zeta * d + up)
        down = self._increment(drift, interval.reversed, y)
        return y, (self.zeta * d + (up + down),)

    def invert(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        (d,) = state
        down = self._increment(drift, interval.reversed, y)
        yh = y - (d - down)
        up = self._increment(drift, interval, yh)
        d = (d - (up + down)) / self.zeta
        return yh + d, (d,)

    def _increment(self, drift: Drift, interval: Interval, y: Tensor) -> Tensor:
        """``Psi(y)``: the base run from 0 on the shifted drift, as ``step(y) - y`` would round at the size of y."""
        return self.base.step(lambda s, Y: drift(s, y + Y), interval, torch.zeros_like(y), ())[0]

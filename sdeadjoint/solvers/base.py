"""What a solver is: a pure step for ``dy = F(s, y) ds + dB`` and the claims that go with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Drift = Callable[[float, Tensor], Tensor]
"""``F(s, y)``: clock (a float), state of any shape; returns a tensor like the state."""

State = tuple[Any, ...]
"""What a multistep method remembers: a nest of tuples of tensors and numbers, ``()`` for one-step methods."""


@dataclass(frozen=True)
class Claims:
    """What a solver promises for ``dy = F(s, y) ds + dB`` with F smooth, each backed by ``theory/guarantees.py``.

    Args:
        ode: order of convergence without noise.
        strong: strong order (root mean square, pathwise) with additive noise.
        evaluations: drift evaluations per step, each of them one network call.
        levy: ``"space-time"`` if steps use the noise's space-time Levy area, ``"none"`` otherwise. The strong order
            above 1 of such methods needs a noise clock with a nonzero derivative in the drift clock (every frame with
            eta > 0) and the path on that clock: theory/orders.md, O4.
        weak: order of expectations of smooth functions with additive noise, on any noise clock. A strong order is a
            weak order (theory/weak.md, W3), so it is no less where both are stated in full.
        starting: drift evaluations of the first steps, where they are more: of methods that another one starts.
    """

    ode: int
    strong: float
    evaluations: int
    levy: str = "none"
    weak: float = 1.0
    starting: tuple[int, ...] = ()

    def calls(self, steps: int) -> int:
        """Drift evaluations of a solve of so many steps."""
        first = self.starting[:steps]
        return sum(first) + (steps - len(first)) * self.evaluations


@dataclass(frozen=True)
class Interval:
    """One step: clock values ``s0``, ``s1``, the noise's increment ``dB`` and space-time Levy area ``H``.

    ``H = 1/h int (B_r - B_0 - (r/h) dB) dr`` over the step, of variance a twelfth of ``dB``'s. Both are 0.0 for an ODE;
    ``H`` is 0.0 too where the solver's claims do not ask for it.
    """

    s0: float
    s1: float
    dB: Tensor | float = 0.0
    H: Tensor | float = 0.0

    @property
    def ds(self) -> float:
        """The clock's step, of either sign."""
        return self.s1 - self.s0

    @property
    def reversed(self) -> Interval:
        """The same step and path run backwards: ``ds`` and ``dB`` change sign, ``H`` does not."""
        return Interval(self.s1, self.s0, -self.dB, self.H)

    def at(self, c: float) -> float:
        """The clock at the fraction ``c`` of the step, bitwise ``s0`` and ``s1`` at its ends."""
        return self.s1 if c == 1 else self.s0 + c * self.ds


class Solver(ABC):
    """A numerical method for ``dy = F(s, y) ds + dB``. The contract:

    1. ``step`` is pure: the same arguments give the same bits; nothing is kept on the solver.
    2. It is made of differentiable tensor operations and keeps the state's shape, dtype and device.
    3. ``state`` holds what the next step needs and nothing else; the first step gets ``initial_state``.
    4. It works on any strictly monotone sequence of clock values, rising or falling.
    5. ``claims`` are constants of the method; the drift is called ``claims.evaluations`` times per step at most, in
       the first steps ``claims.starting`` times, and one more time in the first step at most.

    A solver knows nothing of diffusion: clocks, weights and predictions are the frame's business.
    """

    @property
    @abstractmethod
    def claims(self) -> Claims:
        """Orders, cost and needs of the method."""

    @property
    def initial_state(self) -> State:
        """The state before the first step."""
        return ()

    @abstractmethod
    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        """The solution at ``interval.s1`` and the state for the next step, from those at ``interval.s0``."""


class ReversibleSolver(Solver):
    """A solver whose steps can be undone in closed form: what ``Reversible()`` needs.

    ``invert(drift, interval, *step(drift, interval, y, state))`` is ``(y, state)`` but for round-off, with the state
    written out where ``step`` was given ``initial_state``.
    """

    @abstractmethod
    def invert(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        """The solution and the state at ``interval.s0`` from those at ``interval.s1``."""


def refuse_without_log(solver: Solver, interval: Interval, state: State) -> None:
    """Refuse a step for a solver that interpolates in ``log s``. It may start from 0, where it has no past."""
    if interval.s0 < 0 or interval.s1 < 0 or (state and interval.s1 == 0):
        raise ValueError(
            f"solver: {solver!r} interpolates in log s, and a step from s = {interval.s0} to {interval.s1} has no log; "
            "pass a clock of positive numbers, or a solver such as AdamsBashforth(2, 'clock')"
        )

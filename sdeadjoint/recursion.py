"""An equation, a solver and its noise as a recursion: one pure step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from . import nests
from .equation import Equation
from .noise import BoundNoise, Increment, Noise
from .solvers import Interval, ReversibleSolver, Solver, State


class Carry(NamedTuple):
    """Hold what one step hands to the next: the state y and what the solver remembers."""

    y: Tensor
    state: State


AfterStep = Callable[[int, float, Any], Any]
"""``after_step(n, t, x)``: the user's state to go on from after step n = 1 .. N; pure, differentiable."""

Observer = Callable[[int, Carry], None]
"""Called with ``(n, carry_n)`` after the forward pass has made ``carry_n``; never during recomputation."""


@dataclass(frozen=True)
class Recursion:
    """``carry_{n+1} = step(n, carry_n, increment_n)`` for ``n = 0 .. steps - 1``, with any equation and any solver.

    Args:
        equation: what is solved.
        solver: takes each step, except a last one that the equation makes by itself (``equation.projects``).
        noise: bound to the equation's noise clock; None for an ODE.
        hook: ``hook(n, dL/dy_n)`` in the backward pass, n = N .. 1; what it returns goes on in its place.
        after_step: changes the user's state after each step.
    """

    equation: Equation
    solver: Solver
    noise: BoundNoise | None = None
    hook: Callable[[int, Tensor], Tensor] | None = None
    after_step: AfterStep | None = None

    @classmethod
    def create(
        cls,
        equation: Equation,
        solver: Solver,
        noise: Noise | None,
        y: Tensor,
        after_step: AfterStep | None = None,
    ) -> Recursion:
        """The recursion from states like ``y``, its noise bound; refuses noise that does not fit."""
        bound = equation.bind(noise, y, levy=solver.claims.levy != "none")
        return cls(equation, solver, bound, after_step=after_step)

    @property
    def steps(self) -> int:
        return self.equation.steps

    def start(self, y: Tensor) -> Carry:
        """``carry_0``."""
        return Carry(y, self.solver.initial_state)

    def run(self, carry: Carry) -> Iterator[Carry]:
        """``carry_1, ..., carry_N`` from ``carry_0``: the loop, and nothing but the loop."""
        for n in range(self.steps):
            carry = self.step(n, carry, self.increment(n))
            yield carry

    def increment(self, n: int) -> Increment | None:
        """The noise of step n, None for an ODE."""
        return None if self.noise is None else self.noise.increment(n)

    def step(self, n: int, carry: Carry, increment: Increment | None) -> Carry:
        """One pure step; errors of the drift are annotated with the step they happened at."""
        equation, y = self.equation, carry.y
        try:
            if n == self.steps - 1 and equation.projects:
                out = Carry(equation.project(y), carry.state)
            else:
                out = Carry(*self.solver.step(equation.drift(n), self.interval(n, increment, y), *carry))
            if self.after_step is not None:
                out = Carry(self._changed(n + 1, out.y), out.state)
        except Exception as error:
            error.add_note(f"(step {n} of {self.steps}, from t={equation.times[n]} to t={equation.times[n + 1]})")
            raise
        if self.hook is not None and out.y.requires_grad:
            out.y.register_hook(partial(self.hook, n + 1))
        return out

    def _changed(self, n: int, y: Tensor) -> Tensor:
        """``y_n`` after the user's ``after_step``."""
        assert self.after_step is not None
        x = self.equation.leave(n, y)
        changed = self.after_step(n, self.equation.times[n], x)
        shapes = [[tuple(tensor.shape) for tensor in nests.tensors(nest)] for nest in (changed, x)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"after_step: returned {shapes[0] or type(changed).__name__} for a state of {shapes[1]}; "
                "return a state like the one it is given"
            )
        return self.equation.enter(changed, n).to(y.dtype)

    def invert(self, n: int, carry: Carry, increment: Increment | None) -> Carry:
        """``carry_n`` from ``carry_{n+1}``, for a ``ReversibleSolver`` and steps that are not the final map."""
        assert isinstance(self.solver, ReversibleSolver)
        return Carry(*self.solver.invert(self.equation.drift(n), self.interval(n, increment, carry.y), *carry))

    def interval(self, n: int, increment: Increment | None, like: Tensor) -> Interval:
        """Step n as a solver sees it, its noise in the dtype and on the device of ``like``."""
        clocks = self.equation.clocks
        dB: Tensor | float = 0.0 if increment is None else increment.dB.to(like)
        H: Tensor | float = 0.0 if increment is None or increment.H is None else increment.H.to(like)
        return Interval(clocks[n], clocks[n + 1], dB, H)

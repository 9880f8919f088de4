"""The sampler undone: from its last state to where it started, or to the noise that makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .diffusion.equation import Diffusion
from .equation import Equation
from .fixed_point import fixed_point
from .noise import Increment
from .recursion import Carry, Recursion
from .solvers import Euler, Heun, ReversibleSolver, Solver
from .solvers.facts import remembers

CLOSER = 1e-2  # equations inside an iteration are solved this much better than its own error
ROUND_OFF = 64  # ulps: what a step's equation can be solved to, with a network of ordinary conditioning


@dataclass(frozen=True)
class Limits:
    """How hard to try.

    Args:
        tol: largest relative error of a sample's round trip.
        max_iterations: iterations for the equation of one step, and sweeps over the grid.
        advance: called after each step that is done for good, or after each sweep.
    """

    tol: float
    max_iterations: int
    advance: Callable[[], object]


def round_off(x: Tensor) -> float:
    """The least relative error that can be asked of states such as x."""
    return ROUND_OFF * torch.finfo(x.dtype).eps


def undo(equation: Diffusion, solver: Solver, x_0: Tensor, limits: Limits) -> Tensor:
    """``x_T`` that the sampler, an ODE's, takes to ``x_0``.

    The trajectory is found by sweeps from the last step to the first. Each solves the equations of a one-step method
    (the base), ``y_{n+1} = base_n(y_n) + defect_n``, where the defect, what the solver's step differs from the base's
    by, is taken from the trajectory before. A one-step solver is its own base: no defect, and one sweep is enough.
    """
    if not remembers(solver):
        sweeps = _Sweeps(equation, solver, solver, x_0, limits)
        start = sweeps.backwards(None, None, max(limits.tol / (10 * equation.steps), round_off(x_0)))
    else:
        # The base should be close to the solver, and its equations easy to solve: see theory/encoding.md.
        base = Heun() if isinstance(solver, ReversibleSolver) else Euler()
        sweeps = _Sweeps(equation, solver, base, x_0, limits)
        start = sweeps.backwards(None, None, max(CLOSER, limits.tol))
    found = fixed_point(sweeps.update, sweeps.stacked(start), tol=limits.tol, max_iterations=limits.max_iterations)
    if bool((found.error > limits.tol).any()):
        raise RuntimeError(
            f"encode: after {found.iterations} sweeps sample {int(found.error.argmax())} of the batch comes back with "
            f"a relative error of {found.error.max().item():.2g}, above tol={limits.tol:.2g}; pass a grid with more "
            "steps, a one-step solver such as Euler() or Heun(), whose steps are undone one by one, a frame with "
            "eta > 0, a larger tol, or float64. A network with dropout is not a function: call eval()"
        )
    return sweeps.x_T(found.x)


@dataclass(frozen=True)
class _Sweeps:
    equation: Diffusion
    solver: Solver
    base: Solver
    x_0: Tensor
    limits: Limits

    def update(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """The next trajectory less this one, and the relative error of the round trip from where this one starts."""
        error = relative(self._forward(self.x_T(stack)) - self.x_0, self.x_0)
        if bool((error <= self.limits.tol).all()):
            return torch.zeros_like(stack), error
        ys = [*(piece / scale for piece, scale in zip(stack.unbind(1), self._scales, strict=True)), self._end]
        tol = (CLOSER * error).clamp(round_off(self.x_0), CLOSER)
        tol = torch.where(error <= self.limits.tol, 1.0, tol)  # those that are done stay as they are
        return self.stacked(self.backwards(self._defects(ys), ys, tol)) - stack, error

    def backwards(
        self, defects: Sequence[Tensor] | None, guesses: Sequence[Tensor] | None, tol: Tensor | float
    ) -> list[Tensor]:
        """``y_0, ..., y_{N-1}`` from y_N, by the base's steps and the defects."""
        ys: list[Tensor] = []
        y = self._end
        for n in reversed(range(self.equation.steps)):
            target = y if defects is None else y - defects[n]

            def update(y: Tensor, n: int = n, target: Tensor = target) -> tuple[Tensor, Tensor]:
                r = target - self._step(n, y)
                return r, relative(r, target)

            guess = self._step_back(n, y) if guesses is None else guesses[n]
            found = fixed_point(update, guess, tol=tol, max_iterations=self.limits.max_iterations)
            if isinstance(tol, float) and self.base is self.solver:
                refuse_unsolved(self.equation, n, found.error, found.iterations, tol)
                self.limits.advance()
            y = found.x
            ys.insert(0, y)
        if self.base is not self.solver:
            self.limits.advance()
        return ys

    def stacked(self, ys: Sequence[Tensor]) -> Tensor:
        """A trajectory as one tensor, (batch, steps, ...), all of it of the size of the data."""
        return torch.stack([scale * y for y, scale in zip(ys, self._scales, strict=True)], dim=1)

    def x_T(self, stack: Tensor) -> Tensor:
        return stack[:, 0] * (self.equation.weights[0] / self._scales[0])

    @cached_property
    def _end(self) -> Tensor:
        return self.equation.enter(self.x_0, self.equation.steps)

    @cached_property
    def _scales(self) -> list[float]:
        """From y to ``x / sqrt(alpha^2 + sigma^2)``."""
        times = torch.tensor(self.equation.times[:-1], dtype=torch.float64, device="cpu")
        schedule = self.equation.frame.schedule
        size = torch.hypot(schedule.alpha(times), schedule.sigma(times))
        return [weight / unit for weight, unit in zip(self.equation.weights, size.tolist(), strict=False)]

    def _forward(self, x_T: Tensor) -> Tensor:
        recursion = Recursion(self.equation, self.solver)
        *_, last = recursion.run(recursion.start(self.equation.enter(x_T)))
        return self.equation.leave(recursion.steps, last.y)

    def _defects(self, ys: Sequence[Tensor]) -> list[Tensor]:
        """What the solver's steps differ from the base's by, along a trajectory that need not be the solver's."""
        defects, state = [], self.solver.initial_state
        recursion = Recursion(self.equation, self.solver)
        for n in range(self.equation.steps):
            out = recursion.step(n, Carry(ys[n], state), None)
            defects.append(out.y - self._step(n, ys[n]))
            state = out.state
        return defects

    def _step(self, n: int, y: Tensor) -> Tensor:
        interval = Recursion(self.equation, self.base).interval(n, None, y)
        return self.base.step(self.equation.drift(n), interval, y, ())[0]

    def _step_back(self, n: int, y: Tensor) -> Tensor:
        """The explicit approximation of ``y_n`` from ``y_{n+1}``."""
        interval = Recursion(self.equation, self.base).interval(n, None, y).reversed
        return self.base.step(self.equation.drift(n), interval, y, ())[0]


def drive(
    recursion: Recursion, states: Sequence[Tensor], areas: Sequence[Tensor | None], limits: Limits
) -> Tensor:
    """Increments, (steps, batch, ...), with which the sampler goes from ``states[0]`` through all other states.

    Each step starts where the sampler really is and aims at the recorded state, so that round-off does not add up. A
    step that adds its increment as it is (Euler's, the multistep methods') is evaluated twice, any other until its
    equation ``step(n, carry, dB).y = y_{n+1}`` is solved.
    """
    equation = recursion.equation.starting_at(states[0])
    recursion, increments = replace(recursion, equation=equation), []
    carry = recursion.start(equation.enter(states[0]))
    tol = max(limits.tol / 10, round_off(states[0]))
    for n in range(recursion.steps):
        target, reached = equation.enter(states[n + 1], n + 1), [carry]

        def update(
            dB: Tensor, n: int = n, carry: Carry = carry, target: Tensor = target, reached: list[Carry] = reached
        ) -> tuple[Tensor, Tensor]:
            reached[0] = recursion.step(n, carry, Increment(dB, areas[n]))
            r = target - reached[0].y
            return r, relative(r, target)

        found = fixed_point(update, target - carry.y, tol=tol, max_iterations=limits.max_iterations)
        refuse_unsolved(equation, n, found.error, found.iterations, tol)
        carry = reached[0]  # of the increments found: samples that are done do not change any more
        increments.append(found.x)
        limits.advance()
    return torch.stack(increments)


def refuse_unsolved(equation: Equation, n: int, error: Tensor, iterations: int, tol: float) -> None:
    """Raise if a step's equation was not solved."""
    if bool((error > tol).any()):
        times = f"from t={equation.times[n]} to t={equation.times[n + 1]}"
        remedy = "Euler(), whose increments have a closed form" if equation.driven else "a frame with eta > 0"
        raise RuntimeError(
            f"encode: step {n} of {equation.steps} ({times}) was not undone: sample {int(error.argmax())} of the "
            f"batch has a relative residual of {error.max().item():.2g} after {iterations} iterations, above "
            f"{tol:.2g}; pass a grid with more steps, {remedy}, a larger tol or max_iterations, or float64. A network "
            "with dropout is not a function: call eval()"
        )


def relative(r: Tensor, x: Tensor) -> Tensor:
    """``|r| / |x|`` of each sample, float64; an x of zero counts as one of size 1."""
    wide = torch.promote_types(x.dtype, torch.float32)
    size, of = (torch.linalg.vector_norm(v.flatten(1).to(wide), dim=1).double() for v in (r, x))
    return size / torch.where(of > 0, of, 1.0)

"""What a study compares between a coarse solve and the truth: states, gradients, expectations, round trips."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint, Direct
from ..noise import FixedNoise
from ..recursion import Recursion
from ..solvers import ReversibleSolver, Solver
from .settings import Run, Setting

Functional = Callable[[Tensor], Tensor]
"""``f(x)``: (paths, *event) to (paths,), one number for each path from that path alone."""

SOURCES = ("x_T", "cond", "weights", "noise")


@dataclass(frozen=True)
class Power:
    """``f(x) = sum x^exponent / exponent`` over the event."""

    exponent: int = 2

    def __call__(self, x: Tensor) -> Tensor:
        return (x**self.exponent / self.exponent).reshape(len(x), -1).sum(1)


class Quantity(ABC):
    """Something of each path (or block of paths) that converges as the grid is refined.

    ``statistic`` says which number of the errors ``|value - reference|`` of all paths the order is read from:
    ``"rms"``, or ``"mean"`` for signed errors (weak). ``has_reference`` is False where the true value is zero.
    """

    statistic: ClassVar[str] = "rms"
    has_reference: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """A word or two, for titles."""

    @property
    def error_name(self) -> str:
        """The number of all paths' errors that is drawn, for the axis of a figure."""
        return f"rms error of {self.name} on the same paths"

    @abstractmethod
    def evaluate(self, run: Run) -> Tensor:
        """Return (units, numbers): detached values of independent units, each a path or a block of paths."""

    @property
    def exactly(self) -> Quantity:
        """The quantity as the reference has it, computed by nothing that is under test."""
        return self

    @property
    def unit(self) -> int:
        """How many paths one row of ``evaluate`` is of."""
        return 1

    def check(self, setting: Setting, steps: tuple[int, ...]) -> None:  # noqa: B027 (nothing to refuse by default)
        """Raise ``ValueError`` where the quantity does not exist."""

    def order(self, setting: Setting, solver: Solver) -> float:
        """Return the order that the solver's claims imply: gradients inherit the states' order."""
        return setting.order(solver)


@dataclass(frozen=True)
class State(Quantity):
    """The state at the end of the grid, compared in the Euclidean norm."""

    @property
    def name(self) -> str:
        return "states"

    def evaluate(self, run: Run) -> Tensor:
        with torch.no_grad():
            return run.solve().reshape(len(run.x_T), -1)


@dataclass(frozen=True)
class Weak(Quantity):
    """``E f(x)``: the mean of ``f(coarse) - f(reference)`` on common random numbers.

    The difference on one path has a standard deviation of the size of the strong error, where that of two independent
    runs would not shrink at all. A level whose mean is below three standard errors is dropped; more paths keep it.
    """

    functional: Functional = Power()
    statistic: ClassVar[str] = "mean"

    @property
    def name(self) -> str:
        return "weak errors"

    @property
    def error_name(self) -> str:
        return "modulus of the mean error, on common random numbers"

    def evaluate(self, run: Run) -> Tensor:
        with torch.no_grad():
            return self.functional(run.solve()).reshape(-1, 1)

    def order(self, setting: Setting, solver: Solver) -> float:
        """Return the claimed weak order; the law does not depend on the clock that the paths were drawn on."""
        return float(solver.claims.weak) if setting.is_noisy else setting.order(solver)


@dataclass(frozen=True)
class Gradient(Quantity):
    """The gradient of ``loss(x)`` of each path, computed by an adjoint.

    Args:
        of: ``"x_T"``; ``"cond"``, all tensors of the setting's conditioning; ``"weights"``, the denoiser's parameters,
            for the mean loss over each ``block`` of paths; ``"noise"``, the derivatives along Brownian paths that are
            linear on one cell of the study's coarsest grid and constant elsewhere, of unit Cameron-Martin norm:
            ``sum_n dL/d(dB_n) dnu_n / sqrt(cell)`` over the cell's steps, which all grids have in common.
        loss: (paths, *event) to (paths,).
        adjoint: what computes it, except for the reference, whose gradient is by ``Direct()`` or ``Checkpoint()``.
            ``Direct()`` with ``"weights"`` solves once for all blocks, the others once a block.
        block: paths per gradient in the weights.
    """

    of: str = "x_T"
    loss: Functional = Power()
    adjoint: Adjoint = Checkpoint()  # noqa: RUF009 (frozen)
    block: int = 25

    def __post_init__(self) -> None:
        if self.of not in SOURCES:
            raise ValueError(f"of: got {self.of!r}; pass one of {SOURCES}")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"block: got {self.block!r}; pass the number of paths per gradient in the weights")

    @property
    def unit(self) -> int:
        return self.block if self.of == "weights" else 1

    @property
    def name(self) -> str:
        return f"gradients in {self.of}"

    @property
    def exactly(self) -> Gradient:
        """By ``Direct()`` or ``Checkpoint()``, the exact gradients of a solve: else an adjoint would judge itself."""
        return self if type(self.adjoint) in (Direct, Checkpoint) else replace(self, adjoint=Checkpoint())

    def check(self, setting: Setting, steps: tuple[int, ...]) -> None:
        if self.of == "cond" and not setting.cond:
            raise ValueError("of: got 'cond', but the setting has none; pass one with cond, such as settings.steered()")
        if self.of == "weights" and not any(True for _ in setting.equation.weights):
            raise ValueError("of: got 'weights', but the drift has no parameters; pass settings.steered(), for one")
        if self.of in ("weights", "cond") and setting.exact is not None:
            raise ValueError(f"of: got {self.of!r}, which a closed form does not give; pass exact=None")
        if self.of == "noise" and (not setting.is_noisy or setting.clock is not None):
            raise ValueError(
                "of: got 'noise'; pass a setting with noise (eta > 0), whose paths live on the equation's own clock"
            )
        if self.of == "noise" and any(n % steps[0] for n in steps):
            raise ValueError(f"steps: got {steps}; gradients in the noise need multiples of the first one")

    def evaluate(self, run: Run) -> Tensor:
        if self.of == "weights":
            return self._in_weights(run)
        if self.of == "noise":
            return self._in_noise(run)
        x_T, cond = run.x_T.clone(), {name: value.clone() for name, value in run.cond.items()}
        leaves = [x_T] if self.of == "x_T" else list(cond.values())
        for leaf in leaves:
            leaf.requires_grad_()
        with torch.enable_grad():
            x = replace(run, x_T=x_T, cond=cond).solve(self.adjoint)
            found = torch.autograd.grad(self.loss(x).sum(), leaves)
        return torch.cat([grad.reshape(len(x_T), -1) for grad in found], 1)

    def _in_noise(self, run: Run) -> Tensor:
        assert run.paths is not None
        dB = run.paths.dB.clone().requires_grad_()
        with torch.enable_grad():
            x = run.driven_by(FixedNoise(dB, run.paths.H), self.adjoint)
            (found,) = torch.autograd.grad(self.loss(x).sum(), dB)
        column = (-1, *[1] * (dB.dim() - 1))
        dnu, clock = run.paths.clock.diff().reshape(column), run.paths.clock
        along = (found * dnu).reshape(run.cells, -1, *dB.shape[1:]).sum(1)
        lengths = clock[:: run.paths.steps // run.cells].diff().reshape(column)
        return (along / lengths.sqrt()).transpose(0, 1).reshape(len(x), -1)

    def _in_weights(self, run: Run) -> Tensor:
        weights = list(run.setting.equation.weights)
        blocks = [slice(i, i + self.block) for i in range(0, len(run.x_T), self.block)]
        rows = []
        with torch.enable_grad():
            losses = self.loss(run.solve(self.adjoint)) if isinstance(self.adjoint, Direct) else None
            for block in blocks:
                own = self.loss(run.part(block).solve(self.adjoint)) if losses is None else losses[block]
                found = torch.autograd.grad(own.mean(), weights, retain_graph=losses is not None)
                rows.append(torch.cat([grad.flatten() for grad in found]))
        return torch.stack(rows)


@dataclass(frozen=True)
class RoundTrip(Quantity):
    """The distance from x_T after a solve and the way back along the same grid and path.

    A ``ReversibleSolver`` goes back by ``invert``, and the distance is round-off; others by steps of negative length,
    as DDIM inversion does, and the distance has the solver's order.
    """

    has_reference: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "round trips"

    @property
    def error_name(self) -> str:
        return "rms distance from x_T after the way there and back"

    def evaluate(self, run: Run) -> Tensor:
        solver = run.solver
        assert solver is not None
        with torch.no_grad():
            equation = run.equation.starting_at(run.x_T)
            y = equation.enter(run.x_T)
            recursion = Recursion.create(equation, solver, run.noise, y)
            *_, carry = recursion.run(recursion.start(y))
            if isinstance(solver, ReversibleSolver):
                for n in reversed(range(recursion.steps)):
                    carry = recursion.invert(n, carry, recursion.increment(n))
                y = carry.y
            else:
                y = _back(recursion, carry.y)
            x_T = run.equation.leave(0, y)  # which knows no start: from y alone
        return (x_T - run.x_T).reshape(len(x_T), -1)


def _back(recursion: Recursion, y: Tensor) -> Tensor:
    """``y_0`` by the same method on the reversed grid and path, its memory empty at the start."""
    state = recursion.solver.initial_state
    for n in reversed(range(recursion.steps)):
        interval = recursion.interval(n, recursion.increment(n), y).reversed
        y, state = recursion.solver.step(recursion.equation.drift(n), interval, y, state)
    return y

"""The backward pass of the continuous adjoints: from the last state's cotangent to all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import nests
from ...compiling import eagerly
from ...noise import Increment
from ...solvers import Solver
from ...solvers.facts import Weights, quadrature_weights
from ..replay.backward import BackwardSweep, Plan, Totals
from ..replay.leaves import Stage
from .adaptive import Adaptive, AdaptiveMarch
from .course import Course
from .equation import AdjointEquation, March, SolverMarch
from .recorded import Recorded

STATE = (
    "network: its forward pass changes {name!r} (a running statistic, a counter), and the adjoint equation of a "
    "function that changes has no meaning; call network.eval(), or pass adjoint=Checkpoint(), which restores it"
)


@dataclass(frozen=True)
class BackwardSolve:
    """One frozen backward solve.

    Args:
        plan: the solve that is differentiated.
        course: coordinates and nodes.
        solver: the adjoint's.
        weights: of its evaluations, without restarts; empty if adaptive.
        recorded: whether states are stored; otherwise they are part of the solution.
        start: the user's initial state.
        first: the noise of the first step as it was in the forward sweep, where states are not recorded.
    """

    plan: Plan
    course: Course
    solver: Solver | Adaptive
    weights: Weights
    recorded: bool
    start: Any
    first: Increment | None

    @property
    def end(self) -> int:
        """The sampler's node at which the equation starts."""
        equation = self.plan.recursion.equation
        return equation.steps - equation.projects

    def gradients(
        self, sweep: BackwardSweep, outputs: Sequence[Tensor], stage: Stage, grads: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The inputs' gradients.

        ``outputs``: y_N last, and y_1, ..., y_{N-1} before it if they are recorded or asked for. ``stage``: that before
        the last step, which is evaluated again: it must give y_N, and if it leads to sigma = 0 it is pulled back.
        """
        recursion, last = self.plan.recursion, self.plan.recursion.steps - 1
        self._refuse_other_noise()
        a = torch.zeros_like(outputs[-1]) if grads[-1] is None else grads[-1]
        done, y = sweep.recompute(last, stage, outputs[-1]), outputs[-1]
        if recursion.equation.projects:
            back = sweep.pull_back(last, done, [a])
            if last == 0:
                return sweep.totals.finished()
            a = torch.zeros_like(a) if back[0] is None else back[0]
            y = stage.carry.y
        del done
        course = self.course.of(recursion.equation)
        states = [self.plan.start, *outputs[: self.end]] if self.recorded else []
        recorded = Recorded(recursion.equation, states) if self.recorded else None
        equation = AdjointEquation(sweep, course, recorded)
        x = None if self.recorded else recursion.equation.scaled(self.end, y)
        a = self._descend(equation, self._march(equation, grads), x, a, grads)
        # In the user's coordinates, and given to the user's own tensors: rounded once.
        sweep.totals.add(list(nests.tensors(self.start)), list(nests.tensors(course.equation.outward(0, a))))
        return sweep.totals.finished()

    def _refuse_other_noise(self) -> None:
        """Recorded states are compared where they are; reconstructed ones are as good as the replay."""
        if self.first is None:
            return
        again = self.plan.recursion.increment(0)
        if not all(map(torch.equal, nests.tensors(self.first), nests.tensors(again))):
            raise RuntimeError(
                "noise: the first step has another increment in the backward pass than in the forward pass, so that "
                "states cannot be reconstructed; make increment(n) a function of n alone, or pass adjoint=Checkpoint()"
            )

    def _march(self, equation: AdjointEquation, grads: Sequence[Tensor | None]) -> March:
        if isinstance(self.solver, Adaptive):
            # y_0 itself is not an unknown: its cotangent is the solution.
            wanted = [tensor for tensor in self.plan.wanting if tensor is not self.plan.start]
            return AdaptiveMarch(equation, self.solver, wanted)
        jumps = {n for n in range(1, self.end) if self._cotangent(n, grads) is not None}
        weights = quadrature_weights(self.solver, self.course.clocks, jumps) if jumps else self.weights
        return SolverMarch(equation, self.solver, weights)

    def _descend(
        self, equation: AdjointEquation, march: March, x: Tensor | None, a: Tensor, grads: Sequence[Tensor | None]
    ) -> Tensor:
        """``a`` at node 0 in the course's frame. It enters as ``dL/dy`` in the sampler's, at the last node."""
        course, weights = equation.course, self.plan.recursion.equation.weights
        y = None if x is None else x / course.weights[-1]
        a = above = self._arrive(self.end, a, grads, march)
        a = a * (course.weights[-1] / weights[self.end])
        for m in reversed(range(course.steps)):
            y, a = march.advance(m, y, a)
            n = course.nodes[m]
            if n is None:
                continue
            ratio = course.weights[m] / weights[n]
            below = a / ratio
            if course.refines:
                self._add_noise(equation.totals, n, below, above)
            if n > 0:
                above = self._arrive(n, below, grads, march)
                a = a if above is below else above * ratio
        return a

    def _arrive(self, n: int, a: Tensor, grads: Sequence[Tensor | None], march: March) -> Tensor:
        """``dL/dy_n`` with what an output y_n adds to it and after the hook; ``a`` itself if neither changes it."""
        if (extra := self._cotangent(n, grads)) is not None:
            a = a + extra
            march.restart()
        hook = self.plan.recursion.hook
        hooked = a if hook is None else hook(n, a)
        # Hooks see dL/dx: one that changes nothing, such as a clip above the norm, gives a back with two roundings.
        if hooked is a or torch.allclose(hooked, a, rtol=4 * torch.finfo(a.dtype).eps, atol=0):
            return a
        if march.remembers:
            raise RuntimeError(
                f"hook: it changed the adjoint at node {n}, but {self.solver!r} goes on from evaluations made before; "
                "pass a one-step solver such as Heun(), or a hook that only looks"
            )
        return hooked

    def _cotangent(self, n: int, grads: Sequence[Tensor | None]) -> Tensor | None:
        """What the output y_n has of its own, if that is not zero; y_N's is where the solution starts."""
        if not self.plan.keep or n == self.plan.recursion.steps:
            return None
        grad = grads[n - 1]
        return grad if grad is not None and bool(grad.any()) else None

    def _add_noise(self, totals: Totals, n: int, below: Tensor, above: Tensor) -> None:
        """The derivatives in dB_n, a ramp of the path over step n, and in H_n, a parabola: theory/continuous.md, C7."""
        totals.add_noise(n, [(below + above) / 2, below - above])


class Descended(torch.autograd.Function):
    """``apply(descent, states, stage, *inputs)``: the forward sweep's outputs, ``(y_N,)`` or ``(y_1, ..., y_N)``."""

    @staticmethod
    def forward(
        ctx: Any, descent: BackwardSolve, states: tuple[Tensor, ...], stage: Stage, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.descent, ctx.stage, ctx.count = descent, nests.emptied(stage), len(states)
        ctx.set_materialize_grads(False)
        # Saved rather than kept, see ``Replay``.
        ctx.save_for_backward(*inputs, *descent.plan.watched, *states, *nests.tensors(stage))
        return states if descent.plan.keep else states[-1:]

    @staticmethod
    @eagerly
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        descent: BackwardSolve = ctx.descent
        plan = descent.plan
        plan.check()
        saved = iter(ctx.saved_tensors[len(plan.inputs) + len(plan.watched) :])
        states = [next(saved) for _ in range(ctx.count)]
        stage = nests.refilled(ctx.stage, saved)
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(plan.inputs))
        with BackwardSweep(plan) as sweep:
            return (None, None, None, *descent.gradients(sweep, states, stage, grads))

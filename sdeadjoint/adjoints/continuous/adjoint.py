"""The adjoint equation of the continuous diffusion, solved by itself: not the gradient of the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ...arguments import check_types
from ...conditioning import scheduled
from ...recursion import Observer, Recursion
from ...solvers import Euler, Solver
from ...solvers.facts import quadrature_weights
from ..base import Adjoint
from ..direct import Direct
from ..replay.forward import Sweep, sweep_and_plan
from ..replay.snapshots import Snapshots
from ..tangents import refuse_tangents, refuse_transforms
from .adaptive import Adaptive
from .course import Course
from .descent import STATE, BackwardSolve, Descended
from .equation import RANDOM

STATES = ("recorded", "reconstructed")
KINDS = ("data", "noise", "flow")  # that diffusions have; other equations refuse all but None
LAST = Snapshots(1)  # the stage before the last step, which is evaluated again


@dataclass(frozen=True)
class ContinuousAdjoint(Adjoint):
    """Solves the adjoint equation of ``dy = F(s, y) ds + dB`` from data to noise, next to the sampler:

        da/ds = -(dF/dy)^T a,    a(s_N) = dL/dy_N,    dL/dp = int (dF/dp)^T a ds,    dL/dx_T = a(s_0) / w(T)

    for every tensor p of the conditioning, the guidance and the network. The noise is additive, so the equation has no
    noise term: along a replayed path it is the same for the ODE and the SDE.

    **It is not the gradient of the sampler that ran**, but an approximation of the continuous equation's, from which
    the sampler's differs by its own error. At 10 steps it may point the wrong way (theory/continuous.md has numbers).
    Order of the error: the least of the solver's order, that of the states, 4 for interpolated ones, and 1 on SDE
    paths. Use it to reproduce published results, to compare with, and where M adjoint steps, fewer than the sampler's
    N, are accurate enough; for a gradient to optimise with, ``Checkpoint()`` costs no more states and is exact.

    Args:
        solver: any of our solvers, or ``Adaptive(...)`` (ODE only); it need not be the sampler's.
        states: ``"recorded"`` stores the forward states: one VJP per evaluation, N states. Between the nodes they are
            interpolated over lambda, for the ODE by local cubics, on SDE paths linearly. ``"reconstructed"`` stores the
            last one only and solves for y backwards too, with the noise replayed, as one system (y, a): one network
            call and VJP per evaluation, no states, and the error of the way back, which the equation amplifies
            where the sampler contracts.
        kind: the frame of the adjoint, ``a_y = w a_x``; None is the sampler's. With eta > 0 reconstruction is
            possible in the sampler's only, whose increments are known.
        grid: None is the sampler's; else decreasing times with bitwise the same ends (with a last step to sigma = 0:
            the same last two).
        ode_only: refuse eta > 0, for methods that were proposed for the ODE.

    Noise: the gradients are the pathwise derivatives of a ramp (dB) and a parabola (H) over each step, by the
    trapezium, ``(a_n + a_{n+1}) / 2`` and ``a_n - a_{n+1}``. ``Scheduled`` conditioning: the step from node n + 1 to n
    sees slot n; a multistep solver extrapolates a across slots, but each slot's gradient is made of the evaluations in
    it, of first order. For both, a grid of the adjoint's own must contain the sampler's. A last step to sigma = 0 is
    pulled back exactly. With ``trajectory=True`` a jumps at the nodes, and a multistep solver starts anew there.

    Cost: the forward pass; then, with p evaluations per step of the solver, M p network calls with their VJPs, and the
    sampler's last step once more, to see that the network still is the same function.
    Errors, each with what works instead: alpha(T) = 0 with eta > 0; singular frames and other ends; trajectories and
    hooks with a grid of its own; hooks that change a within a multistep solver; networks that draw random numbers; and
    what ``Checkpoint`` refuses.
    Sources: Pontryagin et al. (1962); Chen et al. (2018), Appendix B; Li et al. (2020); Blasingame and Liu (2024).
    """

    solver: Solver | Adaptive = Euler()  # noqa: RUF009 (frozen)
    states: str = "recorded"
    _: KW_ONLY
    kind: str | None = None
    grid: Tensor | Sequence[float] | None = None
    ode_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Adaptive):
            check_types(("solver", self.solver, Solver, "a solver such as Heun(), or Adaptive()"))
        if self.states not in STATES:
            raise ValueError(f"states: got {self.states!r}; pass one of {STATES}")
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}; pass one of {KINDS}, or None for the sampler's own")
        if self.grid is not None:
            object.__setattr__(self, "grid", _times(self.grid))

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return Direct().solve(recursion, y, keep=keep, observe=observe)
        refuse_transforms()
        refuse_tangents(recursion, y, "ContinuousAdjoint()")
        if recursion.after_step is not None:
            raise ValueError(
                "after_step: it changes the state by jumps, and the adjoint equation of this method has none; pass "
                "adjoint=Checkpoint()"
            )
        course = Course.create(recursion.equation, self.kind, None if self.grid is None else _times(self.grid))
        self._refuse_sde(recursion, course)
        self._refuse_grid(recursion, course, keep=keep)
        weights = () if isinstance(self.solver, Adaptive) else quadrature_weights(self.solver, course.clocks)
        recorded = self.states == "recorded"
        first = None if recorded else recursion.increment(0)
        how = Sweep(LAST.stored(0, recursion.steps), keep, observe, states=recorded)
        swept, plan = sweep_and_plan(recursion, y, LAST, how)
        if swept.random:
            raise RuntimeError(RANDOM)
        if name := swept.state.unsettled:
            raise RuntimeError(STATE.format(name=name))
        if plan is None:
            return swept.outputs if keep else swept.outputs[-1:]
        descent = BackwardSolve(plan, course, self.solver, weights, recorded, recursion.equation.start, first)
        outputs: tuple[Tensor, ...] = Descended.apply(descent, swept.outputs, swept.stages[-1][1], *plan.inputs)
        plan.parallel.prepare(outputs)
        return outputs

    def _refuse_sde(self, recursion: Recursion, course: Course) -> None:
        """What is known only of the ODE, or only with the sampler's own increments."""
        if not (driven := recursion.equation.driven):
            return
        if self.ode_only:
            raise ValueError(
                f"adjoint_dpm: it is a method for the ODE, but {driven}; pass adjoint_deis(order=1), which has a form "
                "for the SDE, or adjoint=Checkpoint()"
            )
        if isinstance(self.solver, Adaptive):
            raise ValueError(
                f"solver: {self.solver!r} adapts its steps to smooth solutions, but {driven}; pass a solver such as "
                "Heun(), or a Frame(..., eta=0.0)"
            )
        if self.states == "recorded":
            return
        if course.equation.kind != recursion.equation.kind:
            raise ValueError(
                f"kind: with {driven} the increments of the {recursion.equation.kind} kind do not determine those of "
                f"the {course.equation.kind} kind, so that states cannot be reconstructed there; pass kind=None, "
                "states='recorded', or adjoint=Checkpoint()"
            )
        if not course.coarsens:
            raise ValueError(
                f"grid: with {driven} states can be reconstructed only where the path is known; pass times of the "
                "sampler's own grid, states='recorded', or adjoint=Checkpoint()"
            )
        if self.solver.claims.levy != "none" and recursion.solver.claims.levy == "none":
            raise ValueError(
                f"solver: {self.solver!r} asks for Levy areas to reconstruct states, and the sampler's "
                f"{recursion.solver!r} had none drawn; pass a solver with claims.levy == 'none' such as Heun(), or "
                "states='recorded'"
            )

    def _refuse_grid(self, recursion: Recursion, course: Course, *, keep: bool) -> None:
        """What a grid of the adjoint's own does not allow."""
        if course.refines and course.coarsens:
            return
        if keep:
            raise ValueError(
                "trajectory=True: cotangents arrive at the sampler's nodes, and the adjoint has a grid of its own; "
                "pass grid=None, or trajectory=False"
            )
        if recursion.hook is not None:
            raise ValueError(
                "hook: it is called at the sampler's nodes, and the adjoint has a grid of its own; pass grid=None"
            )
        if course.refines:
            return
        if any(True for _ in scheduled(recursion.equation.tensors)):
            raise ValueError(
                "grid: the conditioning is Scheduled, and an adjoint step over several of its slots would reach "
                "only some; pass a grid that contains all of the sampler's times, or None"
            )
        if recursion.noise is not None and any(tensor.requires_grad for tensor in recursion.noise.tensors):
            raise ValueError(
                "grid: the noise requires a gradient, one per step of the sampler; pass a grid that contains all of "
                "the sampler's times, or None"
            )


def _times(grid: Tensor | Sequence[float]) -> tuple[float, ...]:
    """A grid as numbers, which can be compared and printed in full."""
    if isinstance(grid, Tensor) and grid.requires_grad:
        raise ValueError("grid: requires a gradient, but adjoints are not differentiated in time; pass grid.detach()")
    try:
        return tuple(float(t) for t in (grid.tolist() if isinstance(grid, Tensor) else grid))
    except (TypeError, ValueError) as error:
        raise ValueError(f"grid: got {type(grid).__name__}; pass a 1-D tensor of decreasing times ({error})") from None

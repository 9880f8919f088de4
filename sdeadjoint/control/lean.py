"""The lean adjoint: a base model's discrete adjoint along another model's trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..adjoints.hooked import Hook
from ..arguments import check_types
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..fixed_point import fixed_point
from ..inversion import relative, round_off
from ..noise import BoundNoise, Increment, Noise
from ..recursion import Carry, Recursion
from ..solvers import Solver
from ..solvers.facts import remembers, sees_noise
from .path import check_like, equation_of, plain, states_of


def lean_adjoint(
    base: Denoiser,
    trajectory: Tensor,
    cotangent: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    noise: Noise | None = None,
    guided: bool | None = None,
    hook: Hook | None = None,
) -> Tensor:
    """Return the adjoint of the base model's steps along a trajectory, which need not be its own.

        how = {"frame": frame, "grid": grid, "solver": sa.Euler()}
        path = sa.sample(tuned, x_T, noise=noise, trajectory=True, **how)
        adjoints = sa.lean_adjoint(base, path, -reward_gradient, **how)

        a_N = cotangent,    a_n = (d step_n / d x)^T a_{n+1},    step_n the base's, at x_n

    In the user's coordinates x, so ``a_n = dL/dx_n`` where the trajectory is the base's. It is lean
    because it leaves out how the tuned model depends on x: for Adjoint Matching that part has mean
    zero at the optimum.

    Args:
        base: the denoiser before tuning.
        trajectory: (steps + 1, batch, ...), x_T first; a constant.
        cotangent: ``dL/dx_N`` like ``trajectory[-1]``: minus the reward's gradient.
        frame, grid, cond: of the trajectory, as for ``sample``.
        solver: a one-step method.
        noise: that of the trajectory, for eta > 0 and solvers whose network calls see it (all but
            Euler). Without it each step has the increment by which the base would make it, found by
            iteration; methods with Levy areas (SRA1, ShARK) need it.
        guided: needed if base has guidance: whether to take it with it.
        hook: ``hook(n, t, a)`` for n = N .. 1, as ``Hooked`` has it; what it returns goes on in the
            place of a_n, and is what is returned: ``clip_norm``, ``clip_quantile``.

    Returns (steps + 1, batch, ...), a_0 first, like the trajectory, without gradients. A last step
    to sigma = 0 is the projection x_0. Gradients in cond and weights are not formed.

    Cost: one evaluation and one vector-Jacobian product of each network call, and some ten
    evaluations more where increments are to be found. Memory: one step's graph, and the result.
    Errors: ``TypeError`` for a solver with memory; ``ValueError`` for shapes that do not fit;
    ``RuntimeError`` where no increment is found.
    Not for gradients of a tuned sampler: take ``sample`` and ``backward``.
    Source: Domingo-Enrich, Drozdzal, Karrer and Chen, "Adjoint Matching" (ICLR 2025), whose steps
    are Euler's.
    """
    check_types(("solver", solver, Solver, "a solver such as Euler()"))
    if remembers(solver):
        raise TypeError(
            f"solver: {solver!r} remembers earlier steps; pass a one-step method such as Euler()"
        )
    equation = equation_of("base", base, frame, grid, cond, guided)
    states = states_of(equation, trajectory)
    check_like("cotangent", cotangent, states[-1], "dL/dx_N, like trajectory[-1]")
    if hook is not None and not callable(hook):
        raise TypeError(f"hook: got {type(hook).__name__}; pass a function hook(n, t, a)")
    with torch.inference_mode(False):
        states, a = plain(states), plain(cotangent).clone()
        equation = equation.starting_at(states[0])
        steps = _Steps(Recursion(equation, solver, _bound(equation, solver, noise, states[0])))
        found = [a]
        for n in reversed(range(equation.steps)):
            found[-1] = a = _hooked(hook, n + 1, equation.times[n + 1], a)
            a = steps.pulled(n, states[n], states[n + 1], a)
            found.append(a)
    return torch.stack(found[::-1])


def _bound(
    equation: Diffusion, solver: Solver, noise: Noise | None, like: Tensor
) -> BoundNoise | None:
    """The noise of the steps, None where no network call sees it or it is to be found."""
    if equation.noise_clock is None or not sees_noise(solver):
        return None
    levy = solver.claims.levy != "none"
    if noise is None and levy:
        raise ValueError(
            f"noise: got None, but the network calls of {solver!r} see Levy areas, which a "
            "trajectory does not tell; pass the noise that it was sampled with, or take Euler()"
        )
    return None if noise is None else equation.bind(noise, equation.enter(like), levy=levy)


@dataclass(frozen=True)
class _Steps:
    """The base's steps, each by itself."""

    recursion: Recursion

    def pulled(self, n: int, x: Tensor, following: Tensor, a: Tensor) -> Tensor:
        """``(d x_{n+1} / d x_n)^T a``; at node 0 also through what the network sees of x_T."""
        increment = self._increment(n, x, following)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            end = self.recursion.equation.leave(n + 1, self._made(n, x, increment))
            (back,) = torch.autograd.grad(end, x, a, allow_unused=True)
        return torch.zeros_like(x) if back is None else back.detach()

    def _made(self, n: int, x: Tensor, increment: Increment | None) -> Tensor:
        """``y_{n+1}`` from ``x_n``."""
        equation = self.recursion.equation
        if n == 0:
            equation = equation.starting_at(x)
        entry = Carry(equation.enter(x, n), self.recursion.solver.initial_state)
        return replace(self.recursion, equation=equation).step(n, entry, increment).y

    @torch.no_grad()
    def _increment(self, n: int, x: Tensor, following: Tensor) -> Increment | None:
        """The step's noise: none where no network call sees it, else given, or found."""
        equation, solver = self.recursion.equation, self.recursion.solver
        if self.recursion.noise is not None:
            return self.recursion.increment(n)
        if equation.noise_clock is None or not sees_noise(solver) or equation.is_projected(n + 1):
            return None
        aim = equation.enter(following, n + 1)

        def update(dB: Tensor) -> tuple[Tensor, Tensor]:
            r = aim - self._made(n, x, Increment(dB, None))
            return r, relative(r, aim)

        tol = round_off(x)
        found = fixed_point(update, aim - equation.enter(x, n), tol=tol)
        if bool((found.error > tol).any()):
            raise RuntimeError(
                f"noise: got None, and no increment is found by which {solver!r} makes step {n} of "
                f"the trajectory (relative residual {float(found.error.max()):.2g}); pass the "
                "noise that it was sampled with, Euler(), or a grid with more steps"
            )
        return Increment(found.x, None)


def _hooked(hook: Hook | None, n: int, t: float, a: Tensor) -> Tensor:
    """The adjoint that goes on from node n."""
    changed = None if hook is None else hook(n, t, a)
    if changed is None:
        return a
    check_like("hook", changed, a, "a tensor like the adjoint, or None")
    return plain(changed)

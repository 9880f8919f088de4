"""One call that samples and can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from . import nests
from .adjoints import Adjoint, Checkpoint
from .arguments import check_state, check_types
from .diffusion.denoiser import Denoiser
from .diffusion.equation import Diffusion
from .diffusion.frames import Frame
from .noise import Noise
from .progress import progress_bar
from .recursion import Carry, Recursion
from .solvers import Solver

Callback = Callable[[int, float, Tensor], None]
"""``callback(n, t, x)`` after step n = 1 .. N: the time reached and the detached state there."""


def sample(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    trajectory: bool = False,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Solve the reverse diffusion from ``x_T`` along ``grid``; the result can be differentiated.

    In the frame's coordinates ``y = x / w`` this integrates ``dy = F(s, y) ds + dB_nu`` from ``s(grid[0])`` to
    ``s(grid[-1])``. ``loss(sample(...)).backward()`` fills the ``.grad`` of x_T, of every tensor in ``cond``, of the
    parameters, of ``FixedNoise``'s tensors and of any other leaf the network reads; all of them, exactly, for this
    discrete sampler.

    Args:
        denoiser: the network with its schedule and prediction kind.
        x_T: state at ``grid[0]``, (batch, ...), float64, float32 or bfloat16; it sets dtype, device and memory layout.
            Standard normal times ``sigma(grid[0])`` for a sample from pure noise.
        frame: the member of the family (``eta``) and the coordinates (``kind``); over the denoiser's schedule.
        grid: N + 1 strictly decreasing times; a last one with sigma = 0 makes the last step the x_0 projection.
        solver: the method; ``solver.claims`` says its orders and network calls per step.
        noise: for eta > 0, ``BrownianPath(seed)`` or ``FixedNoise(increments)``.
        cond: keyword arguments of the network, by name: tensors, nests of them, or anything else.
        adjoint: how gradients are computed; ``Checkpoint()`` stores states, ``Direct()`` every activation.
        trajectory: return all states, (N + 1, batch, ...), x_T first; gradients flow from each.
        callback: ``callback(n, t, x)`` after each forward step, x detached; not called during recomputation.
        progress: show a progress bar (needs tqdm).

    Returns ``x`` at ``grid[-1]``, shape, dtype and device of x_T; or the trajectory.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, before any network call; ``ValueError`` for a
    network that returns a wrong shape or non-finite values, with the step; ``RuntimeError`` when gradients are
    globally off although x_T, cond or the noise requires one.

    Not for adaptive step sizes: the grid is data here, so that the gradient is that of what was computed.
    Source: Blasingame and Liu (2024); Griewank and Walther (2000) for ``Checkpoint(snapshots=...)``.
    """
    check_types(("solver", solver, Solver, "a solver such as Heun()"))
    equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)
    check_state("x_T", x_T)
    check_types(("adjoint", adjoint, Adjoint, "an adjoint such as Checkpoint()"))
    if callback is not None and not callable(callback):
        raise TypeError(f"callback: got {type(callback).__name__}; pass a function callback(n, t, x)")
    if not isinstance(trajectory, bool):
        raise TypeError(f"trajectory: got {trajectory!r}; pass True or False")
    equation = equation.starting_at(x_T)
    y = equation.enter(x_T)
    recursion = Recursion.create(equation, solver, noise, y)
    _check_gradients_on(recursion)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(recursion.steps, "sampling")) if progress else None

        def observe(n: int, carry: Carry) -> None:
            if bar is not None:
                bar.update()
            if callback is not None:
                callback(n, equation.times[n], equation.leave(n, carry.y.detach()))

        states = adjoint.solve(recursion, y, keep=trajectory, observe=observe)
    if trajectory:
        return torch.stack([x_T, *(equation.leave(n, y) for n, y in enumerate(states, start=1))])
    return equation.leave(recursion.steps, states[-1])


def _check_gradients_on(recursion: Recursion) -> None:
    """Tensors that were made to require gradients are a request that a disabled gradient mode would drop in silence."""
    if torch.is_grad_enabled():
        return
    given = {**recursion.equation.tensors, "noise": () if recursion.noise is None else recursion.noise.tensors}
    for name, nest in given.items():
        if any(tensor.requires_grad for tensor in nests.tensors(nest)):
            shown = "x_T" if name == "start" else name
            raise RuntimeError(
                f"{shown} requires a gradient, but gradients are globally off (torch.no_grad or torch.inference_mode); "
                f"call sample outside of it, or pass a detached {shown} to sample without gradients"
            )

"""One call that samples and can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .adjoints import Adjoint, Checkpoint
from .arguments import check_state
from .diffusion.denoiser import Denoiser
from .diffusion.equation import Diffusion
from .diffusion.frames import Frame
from .noise import Noise
from .recursion import AfterStep
from .solve import Call, Callback
from .solvers import Solver


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
    after_step: AfterStep | None = None,
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
        after_step: ``after_step(n, t, x)`` returns the state to go on from after step n = 1 .. N, at time t: inpainting
            masks, projections, known regions. Pure and differentiable; it is replayed, and it acts after a last step to
            sigma = 0, too.
        callback: ``callback(n, t, x)`` after each forward step, x detached; not called during recomputation.
        progress: show a progress bar (needs tqdm).

    Returns ``x`` at ``grid[-1]``, shape, dtype and device of x_T; or the trajectory.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, before any network call; ``ValueError`` for a
    network that returns a wrong shape or non-finite values, with the step; ``RuntimeError`` when gradients are
    globally off although x_T, cond or the noise requires one.

    Not for adaptive step sizes: the grid is data here, so that the gradient is that of what was computed.
    Source: Blasingame and Liu (2024); Griewank and Walther (2000) for ``Checkpoint(snapshots=...)``.
    """
    call = Call(solver, noise, adjoint, trajectory, after_step, callback, progress)
    equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)
    check_state("x_T", x_T)
    out: Tensor = call.run(equation, x_T, "x_T", "sampling")
    return out

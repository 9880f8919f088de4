"""A real image in, the latent and the noise that make it out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import nests
from .arguments import check_state, check_types
from .compiling import eagerly
from .diffusion.denoiser import Denoiser
from .diffusion.equation import Diffusion
from .diffusion.frames import Frame
from .inversion import Limits, drive, round_off, undo
from .noise import BoundNoise, BrownianPath, FixedNoise
from .progress import progress_bar
from .recursion import Recursion
from .solvers import Solver
from .solvers.facts import remembers


class Encoded(NamedTuple):
    """``sample(denoiser, x_T, noise=noise, ...)`` gives the image back. ``noise`` is None for an ODE."""

    x_T: Tensor
    noise: FixedNoise | None


@eagerly
def encode(
    denoiser: Denoiser,
    x_0: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    cond: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    tol: float | None = None,
    max_iterations: int = 50,
    progress: bool = False,
) -> Encoded:
    """The latent ``x_T``, and for an SDE the noise, from which the sampler makes ``x_0``.

        x_T, noise = encode(denoiser, x_0, frame=frame, grid=grid, solver=solver, seed=0)
        sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise)       # x_0, to tol

    **ODE** (eta = 0): the discrete sampler itself is inverted, not the equation. One-step solvers step by step: the
    equation ``y_{n+1} = step_n(y_n)`` is solved for y_n by Anderson-accelerated fixed-point iteration, 5 to 10 network
    calls per stage. (With an exact denoiser every Euler step has exactly one solution.) Solvers with a memory, the
    multistep and the reversible ones, by sweeps over the grid that solve the steps of a one-step method and correct
    what it differs by: 40 to 100 calls per step in all. The reversible solvers' own inverse is not used: it starts from
    the memory that the sampler ends with, unknown here, and multiplies errors where the sampler damps them.

    **SDE** (eta > 0): the image is noised by the forward process, step by step, and each step's increment is the one
    that takes the sampler back: two network calls per step for Euler and the multistep solvers, about 10 for others,
    and one more for eta other than 1. The forward process is that of this member of the family:

        x_n = alpha_n x0 + sigma_n (e^(-eta h) eps + sqrt(1 - e^(-2 eta h)) z),    h = lambda_{n+1} - lambda_n

    with x0 the network's prediction at ``x_{n+1}``, and eps the noise that goes with it. For eta = 1 the prediction
    drops out and this is CycleDiffusion: with ``a = alpha_n / alpha_{n+1}``,
    ``x_n = a x_{n+1} + sqrt(sigma_n^2 - a^2 sigma_{n+1}^2) z``. As steps become small the increments found are
    N(0, dnu), if x_0 is a draw from the model at ``grid[-1]``; at finite steps they also hold the error of the
    sampler's step, and where the sampler is unstable they are large. Levy areas, where the solver asks for them, are
    drawn from N(0, dnu/12).

    Args:
        denoiser, frame, grid, solver, cond: as for ``sample``; the grid must end at sigma > 0.
        x_0: the state at ``grid[-1]``, (batch, ...): an image, if sigma is small there. float64 or float32.
        seed: of the forward process, for eta > 0: one integer, or a list with one for each sample, like
            ``BrownianPath``'s; no global generator is touched.
        tol: largest relative error ``|sample(...) - x_0| / |x_0|`` of any sample, at least 64 ulps of x_0's dtype.
            None is 1e-10, or 512 ulps where that is more (6e-5 in float32).
        max_iterations: iterations for the equation of one step, and sweeps for solvers with a memory.
        progress: show a progress bar (needs tqdm).

    Memory: a few states for one-step solvers, 16 trajectories for those with a memory, 2 for an SDE. Samples are solved
    independently of their batch mates. Nothing is differentiated: the network runs under ``no_grad``, and inputs that
    require a gradient are refused. There PyTorch may choose other kernels than in ``sample``: the round trip
    is exact to their round-off.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit; ``RuntimeError`` where the iteration does not
    reach ``tol``, with the step or the sample and the residual: too few steps for the network's steepness, a reversible
    solver where it is unstable (noise kind), dropout, or a dtype too narrow.

    Not for a latent that looks like pure noise: an image that the model finds unlikely has an unlikely latent.
    Source: Wu and De la Torre (2022), CycleDiffusion; Song et al. (2021a), section 4.3, for the ODE; Blasingame and Liu
    (2024) use both. See ``theory/encoding.md``.
    """
    check_types(("solver", solver, Solver, "a solver such as Heun()"))
    equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)
    check_state("x_0", x_0)
    if x_0.dtype == torch.bfloat16:
        raise TypeError(
            "x_0: got bfloat16, too coarse to tell a latent that works from one that does not; pass x_0.float()"
        )
    tol = max(1e-10, 8 * round_off(x_0)) if tol is None else tol
    _check_effort(x_0, tol, max_iterations)
    _check_grid(equation)
    _check_seed(frame, seed)
    _refuse_gradients(x_0, equation)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        known = frame.eta > 0 or not remembers(solver)
        unit = "step" if known else "sweep"
        bar = progress_bar(equation.steps if known else None, "encoding", unit) if progress else None
        if bar is not None:
            stack.enter_context(bar)
        limits = Limits(float(tol), max_iterations, advance=lambda: bar is not None and bar.update())
        if seed is None:
            with _divergence_explained():
                return Encoded(undo(equation, solver, x_0, limits), None)
        # On the clock 0, 1, ..., N the path's increments are standard normals, and its Levy areas N(0, 1/12).
        unit_clock = torch.arange(equation.steps + 1, dtype=torch.float64, device="cpu")
        drawn = BrownianPath(seed).bind(unit_clock, x_0, levy=solver.claims.levy != "none")
        with _divergence_explained():
            return _driven(Recursion(equation, solver), x_0, drawn, limits)


@contextmanager
def _divergence_explained() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        error.add_note("(encode was solving for a state; where sample runs, its iteration diverged: pass more steps)")
        raise


def _driven(recursion: Recursion, x_0: Tensor, drawn: BoundNoise, limits: Limits) -> Encoded:
    equation, states = recursion.equation, [x_0]
    assert isinstance(equation, Diffusion)
    for n in reversed(range(recursion.steps)):
        states.insert(0, equation.reversal(n, states[0], drawn.increment(n).dB))
    clock = equation.noise_clock
    assert clock is not None
    areas: list[Tensor | None] = []
    for n, length in enumerate(b - a for a, b in pairwise(clock)):
        H = drawn.increment(n).H
        areas.append(None if H is None else math.sqrt(length) * H)
    increments = drive(recursion, states, areas, limits)
    kept = [H for H in areas if H is not None]
    return Encoded(states[0], FixedNoise(increments, torch.stack(kept) if kept else None))


def _check_effort(x_0: Tensor, tol: float, max_iterations: int) -> None:
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 < tol < 1:
        raise ValueError(f"tol: got {tol!r}; pass a relative error such as 1e-10")
    if tol < round_off(x_0):
        raise ValueError(
            f"tol: got {tol}, but {x_0.dtype} states cannot be told apart below {round_off(x_0):.1e}; "
            "pass a larger tol, such as 1e-4 for float32, or x_0.double()"
        )
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations!r}; pass an integer >= 1")


def _check_grid(equation: Diffusion) -> None:
    if equation.projects:
        raise ValueError(
            f"grid: ends at t={equation.times[-1]}, where sigma = 0 and the last step is the projection to the "
            "predicted x_0, which cannot be undone; end the grid earlier, at schedule.t_min for instance"
        )
    if equation.noise_clock is None:
        return
    still = [n for n, (a, b) in enumerate(pairwise(equation.noise_clock)) if b - a <= 0]
    if still:
        raise ValueError(
            f"grid: the noise clock of {equation.frame!r} stands still in steps {still}, to float64's precision, and "
            "no noise can be found there; pass a larger eta, or larger steps"
        )


def _check_seed(frame: Frame, seed: int | Sequence[int] | None) -> None:
    if frame.eta > 0 and seed is None:
        raise ValueError(
            f"seed: got None, but eta = {frame.eta} > 0 noises the image at random; pass seed=0, or one for each sample"
        )
    if frame.eta == 0 and seed is not None:
        raise ValueError(f"seed: got {seed!r}, but eta = 0 is the ODE, which has no noise; pass seed=None")


def _refuse_gradients(x_0: Tensor, equation: Diffusion) -> None:
    for name, nest in {"x_0": x_0, **equation.tensors}.items():
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in nests.tensors(nest)):
            raise RuntimeError(
                f"{name} requires a gradient, but none flows through encode; pass it detached, or call encode under "
                "torch.no_grad()"
            )

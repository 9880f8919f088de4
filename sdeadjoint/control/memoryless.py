"""What a sampler's memory of its start costs a tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..arguments import check_types, is_number
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..noise import Increment
from ..problems import Gaussian
from ..recursion import Carry, Recursion
from ..solvers import Euler, Solver
from ..solvers.facts import remembers


def memoryless_deficit(
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver = Euler(),  # noqa: B008 (frozen)
    variance: float = 1.0,
) -> float:
    """Return the share of a linear tilt that is lost because a sample remembers its start.

    For Gaussian data of the given variance each step is ``x' = A_n x + B_n + s_n e``. Under a
    reward ``k x`` the best control is ``-s_n a_{n+1}``, constant: it moves the sample's mean by ``k
    (V_N - (prod A)^2 V_0)``, where the tilted law's has moved by ``k V_N``. What is lost is

        (prod A)^2 V_0 / V_N

    with ``V_0 = alpha^2 variance + sigma^2`` at the start and V_N the sample's own variance: the
    square of the correlation of the two. With fine steps it is ``((v + r_N^2) / (v + r_0^2))^eta``,
    r = sigma / alpha. So eta = 0 loses all, having no noise to control, and ``eta = 1``, which is
    called memoryless, no more than the start has signal. ``VPLinear()``: 37 % at eta = 0.1, 8 % at
    0.25, 0.7 % at 0.5.

    Args:
        frame, grid: of the sampler.
        solver: a one-step method; ``dB`` and its Levy area count as noise.
        variance: of the data.

    Exact, in float64: no sampling. Data that is not Gaussian has no such number: take it as a
    warning.
    Errors: ``TypeError`` for a solver with memory; ``ValueError`` for a variance that is not
    positive.
    Source: Domingo-Enrich et al. (ICLR 2025), on memoryless schedules.
    """
    check_types(("solver", solver, Solver, "a solver such as Euler()"))
    if remembers(solver):
        raise TypeError(
            f"solver: {solver!r} remembers earlier steps; pass a one-step method such as Euler()"
        )
    if not is_number(variance) or not 0 < variance < float("inf"):
        raise ValueError(f"variance: got {variance!r}; pass a positive number")
    check_types(("frame", frame, Frame, "Frame(schedule, eta, kind)"))
    denoiser = Gaussian(0.0, variance).denoiser(frame.schedule)
    equation = Diffusion.create(denoiser, frame, grid, {})
    alpha, sigma = (
        float(part(equation.times[0])) for part in (frame.schedule.alpha, frame.schedule.sigma)
    )
    start = alpha**2 * variance + sigma**2
    kept, spread = 1.0, start
    for n in range(equation.steps):
        A, noise = _step(equation, solver, n)
        kept, spread = A**2 * kept, A**2 * spread + noise
    return kept * start / spread


@torch.no_grad()
def _step(equation: Diffusion, solver: Solver, n: int) -> tuple[float, float]:
    """``A`` and ``s^2`` of one step, which is linear: by its values at x = 1, dB = 1 and H = 1."""
    x, dB, H = torch.eye(3, dtype=torch.float64, device="cpu")[:, :, None]
    equation = replace(equation).starting_at(x)
    entry = Carry(equation.enter(x, n), solver.initial_state)
    out = Recursion(equation, solver).step(n, entry, Increment(dB, H))
    A, by_dB, by_H = equation.leave(n + 1, out.y).flatten().tolist()
    if equation.noise_clock is None or equation.is_projected(n + 1):
        return A, 0.0
    variance = equation.noise_clock[n + 1] - equation.noise_clock[n]
    return A, variance * (by_dB**2 + by_H**2 / 12)

"""What a sampler does to fine detail: ``python -m tests.benchmarks.flow_grpo_detail``.

The data are N(0, c^2) with c = 0.02, so the exact velocity is linear in x, the sample is linear in the latent and in
the noise of each step, and its standard deviation is computed, not estimated. Printed is its ratio to c, for
Flow-GRPO's published step on its own grid (shift 3, ending at 0) and for samplers of this library at as many network
calls, on the same grid and on one that is uniform in log SNR down to sigma = c / 4. The right answer is 1 on the first
grid, and on the second that of the marginal at its end.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.probability import flow_grpo

FLOW = sa.RectifiedFlow()
LEVEL = 0.7
DOUBLE = torch.float64


def shifted(steps: int, shift: float = 3.0) -> Tensor:
    """The published grid."""
    sigma = torch.linspace(1, 0, steps + 1, dtype=DOUBLE)
    return shift * sigma / (1 + (shift - 1) * sigma)


def responses(steps: int) -> tuple[Tensor, Tensor]:
    """One latent or one standard normal of one step at a time: x_T (N + 1, 1) and normals (N, N + 1, 1)."""
    unit = torch.eye(steps + 1, dtype=DOUBLE)
    return unit[:, :1], unit[:, 1:].T[..., None]


def deviation(sample: Tensor) -> float:
    """The standard deviation of a linear sampler's result, from its responses."""
    return float(sample.square().sum().sqrt())


def published(denoiser: sa.Denoiser, grid: Tensor) -> float:
    x_T, normals = responses(len(grid) - 1)
    equation = flow_grpo(denoiser, grid, level=LEVEL)
    return deviation(sa.solve(equation, x_T, solver=sa.Euler(), noise=sa.NormalNoise(normals)))


def ours(denoiser: sa.Denoiser, grid: Tensor, solver: sa.Solver, eta: float) -> float:
    x_T, normals = responses(len(grid) - 1)
    frame = sa.Frame(FLOW, eta=eta)
    noise = sa.NormalNoise(normals) if eta > 0 else None
    return deviation(sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise))


def main(c: float) -> None:
    denoiser, eta = sa.problems.Gaussian(0.0, c**2).denoiser(FLOW), LEVEL**2 / 2
    print(f"standard deviation of samples over that of the data, N(0, {c}^2), eta = {eta:.3f}\n")
    print("| sampler | grid | 10 calls | 20 | 40 |\n|---|---|---|---|---|")
    low = c / 4

    def log(steps: int) -> Tensor:
        return sa.uniform_logsnr(FLOW, steps, t_max=0.999, t_min=low)

    def marginal(grid: Tensor) -> float:
        return math.sqrt((1 - float(grid[-1])) ** 2 * c**2 + float(grid[-1]) ** 2) / c

    rows = [
        ("Flow-GRPO's step", "shift 3", lambda grid: published(denoiser, grid) / c, shifted),
        ("`Euler()`", "shift 3", lambda grid: ours(denoiser, grid, sa.Euler(), eta) / c, shifted),
        ("`DPMSolverPP2M()`", "shift 3", lambda grid: ours(denoiser, grid, sa.DPMSolverPP2M(), eta) / c, shifted),
        ("Flow-GRPO's step", "log SNR", lambda grid: published(denoiser, grid) / c, log),
        ("`Euler()`", "log SNR", lambda grid: ours(denoiser, grid, sa.Euler(), eta) / c, log),
        ("`DPMSolverPP2M()`", "log SNR", lambda grid: ours(denoiser, grid, sa.DPMSolverPP2M(), eta) / c, log),
        ("exact", "log SNR", marginal, log),
    ]
    for name, kind, ratio, grids in rows:
        print(f"| {name} | {kind} | " + " | ".join(f"{ratio(grids(steps)):.3g}" for steps in (10, 20, 40)) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--c", type=float, default=0.02)
    main(parser.parse_args().c)

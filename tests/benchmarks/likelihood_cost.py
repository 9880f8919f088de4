"""Cost and error of divergences on digits (64 numbers): ``python -m tests.benchmarks.likelihood_cost``.

For each divergence: vector-Jacobian products per network call, seconds without and with the gradient in x_0 over those
of one probe, the standard deviation of the log-density over repeated probes, and the standard error that is reported.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.probability import Divergence

VP = sa.VPLinear()


def timed(denoiser: sa.Denoiser, x: Tensor, grid: Tensor, divergence: Divergence, *, gradient: bool) -> float:
    x = x.clone().requires_grad_(gradient)
    start = time.perf_counter()
    with torch.set_grad_enabled(gradient):
        found = sa.log_likelihood(denoiser, x, grid=grid, solver=sa.Heun(), divergence=divergence)
    if gradient:
        found.log_prob.sum().backward()
    return time.perf_counter() - start


def main(steps: int, repeats: int) -> None:
    problem = sa.problems.Digits(bandwidth=0.3)
    denoiser = problem.denoiser(VP)
    t_min = float(VP.time(torch.tensor(2.0, dtype=torch.float64)))
    grid = sa.uniform_logsnr(VP, steps, t_min=t_min)
    draws = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = VP.alpha(t_min) * problem.sample(2, seed=1) + VP.sigma(t_min) * draws
    with torch.no_grad():
        exact = sa.log_likelihood(denoiser, x, grid=grid, solver=sa.Heun()).log_prob
    print(f"digits, {steps} steps of Heun; exact log-densities {exact.tolist()}, the law's own", end=" ")
    print(f"{problem.log_prob(x, t_min, VP).tolist()}\n")
    print("| divergence | products per call | time | with gradient | deviation | reported |\n|---|---|---|---|---|---|")
    base = [min(timed(denoiser, x, grid, sa.Hutchinson(), gradient=g) for _ in range(2)) for g in (False, True)]
    kinds = [sa.Hutchinson(), sa.Hutchinson(kind="normal"), sa.Hutchinson(4), sa.Hutchinson(16), sa.ExactDivergence()]
    for divergence in kinds:
        seconds = [min(timed(denoiser, x, grid, divergence, gradient=g) for _ in range(2)) for g in (False, True)]
        times = " | ".join(f"{one / other:.1f}" for one, other in zip(seconds, base, strict=True))
        if isinstance(divergence, sa.ExactDivergence):
            print(f"| `{divergence!r}` | 64 | {times} | 0 | 0 |")
            continue
        with torch.no_grad():
            many = [
                sa.log_likelihood(
                    denoiser,
                    x,
                    grid=grid,
                    solver=sa.Heun(),
                    divergence=sa.Hutchinson(divergence.probes, seed, divergence.kind),
                )
                for seed in range(repeats)
            ]
        spread = (torch.stack([found.log_prob for found in many]) - exact).square().mean().sqrt()
        errors = [found.standard_error for found in many if found.standard_error is not None]
        told = f"{float(torch.stack(errors).square().mean().sqrt()):.2g}" if errors else "none"
        print(f"| `{divergence!r}` | {divergence.probes} | {times} | {float(spread):.2g} | {told} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    main(given.steps, given.repeats)

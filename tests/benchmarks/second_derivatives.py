"""Time and memory of Hessian-vector products: ``python -m tests.benchmarks.second_derivatives``.

A gradient and a product by ``Checkpoint()``, and a product by ``Direct()``, are timed in turn in one process, by its
CPU time: other processes do not count. It prints the median of the ratios to the gradient, and the peak of tensor
memory of each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory

from .checkpoint_cost import SCHEDULE, Network


def seconds(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def cost(steps: int, rounds: int, *, weights: bool) -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(2, 3, 16, 16).requires_grad_()
    leaves = [x, *network.parameters()] if weights else [x]
    directions = [torch.randn_like(leaf) for leaf in leaves]

    def value(adjoint: sa.Adjoint) -> Tensor:
        grid = sa.uniform_logsnr(SCHEDULE, steps)
        denoiser = sa.Denoiser(network, SCHEDULE)
        out = sa.sample(denoiser, x, frame=sa.Frame(SCHEDULE), grid=grid, solver=sa.Euler(), adjoint=adjoint)
        return out.sin().sum()

    def gradient() -> None:
        torch.autograd.grad(value(sa.Checkpoint()), leaves)

    def product(adjoint: sa.Adjoint) -> Callable[[], None]:
        def call() -> None:
            grads = torch.autograd.grad(value(adjoint), leaves, create_graph=True)
            torch.autograd.grad(grads, leaves, directions)

        return call

    calls = {
        "gradient, Checkpoint()": gradient,
        "product, Checkpoint()": product(sa.Checkpoint()),
        "product, Checkpoint(4)": product(sa.Checkpoint(4)),
        "product, Direct()": product(sa.Direct()),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    base = times["gradient, Checkpoint()"]
    print(f"{steps} steps, in x_T" + (" and all weights" if weights else ""))
    for name, call in calls.items():
        with PeakMemory() as memory:
            call()
        ratio = statistics.median(a / b for a, b in zip(times[name], base, strict=True))
        print(f"  {name:<24} {ratio:5.2f} gradients, {memory.peak / 2**20:7.2f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for steps in given.steps:
        for weights in (False, True):
            cost(steps, given.rounds, weights=weights)


if __name__ == "__main__":
    main()

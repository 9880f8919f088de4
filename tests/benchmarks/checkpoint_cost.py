"""Time and memory of ``Checkpoint`` against the least possible: ``python -m tests.benchmarks.checkpoint_cost``.

The floor of an exact gradient that stores no activations is, for every network call, one forward pass without a graph,
one with it, and its backward pass. Both sides are timed in turn in one process; the median of the ratios is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory

SCHEDULE = sa.VPLinear()


class Network(nn.Module):
    """A small residual convolutional network: its forward pass takes 20 ms or more on one core."""

    def __init__(self, width: int = 48, blocks: int = 6) -> None:
        super().__init__()
        self.inward = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.outward = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.inward(x) + t[:, None, None, None]
        for block in self.blocks:
            h = h + block(h)
        return self.outward(h)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cost(steps: int, rounds: int) -> None:
    torch.manual_seed(0)
    network, x = Network(), torch.randn(8, 3, 32, 32)
    denoiser, frame, grid = sa.Denoiser(network, SCHEDULE), sa.Frame(SCHEDULE), sa.uniform_logsnr(SCHEDULE, steps)
    t = torch.full((8,), 0.5)

    def floor() -> None:
        for _ in range(steps):
            with torch.no_grad():
                network(x, t)
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(network(leaf, t), [leaf, *network.parameters()], torch.ones_like(x))

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        out = sa.sample(denoiser, leaf, frame=frame, grid=grid, solver=sa.Euler(), adjoint=sa.Checkpoint())
        torch.autograd.grad(out.sum(), [leaf, *network.parameters()])

    with torch.no_grad():
        forward = statistics.median(seconds(lambda: network(x, t)) for _ in range(20))
    floor(), gradient()
    ratios = [seconds(gradient) / seconds(floor) for _ in range(rounds)]
    print(f"network forward: {1e3 * forward:.1f} ms; N = {steps}; {rounds} pairs of runs")
    print(
        f"Checkpoint() over its floor: median {statistics.median(ratios):.3f} "
        f"(min {min(ratios):.3f}, max {max(ratios):.3f})"
    )


def budgets(steps: int, rounds: int) -> None:
    """Seconds over those of ``Checkpoint()`` for budgets from nothing to everything, runs interleaved."""
    torch.manual_seed(0)
    network, x = Network(), torch.randn(8, 3, 32, 32)
    denoiser, frame, grid = sa.Denoiser(network, SCHEDULE), sa.Frame(SCHEDULE), sa.uniform_logsnr(SCHEDULE, steps)

    def gradient(adjoint: sa.Adjoint) -> None:
        leaf = x.clone().requires_grad_()
        out = sa.sample(denoiser, leaf, frame=frame, grid=grid, solver=sa.Euler(), adjoint=adjoint)
        torch.autograd.grad(out.sum(), [leaf, *network.parameters()])

    def peak(adjoint: sa.Adjoint) -> int:
        with PeakMemory() as memory:
            gradient(adjoint)
        return memory.peak

    whole, states = peak(sa.Direct()), peak(sa.Checkpoint())
    adjoints = [sa.Checkpoint(), sa.Direct()]
    adjoints += [sa.Checkpoint(memory=int(part * whole)) for part in (0.02, 0.25, 0.5, 0.75, 1.0)]
    times: list[list[float]] = [[] for _ in adjoints]
    for _ in range(rounds):
        for adjoint, column in zip(adjoints, times, strict=True):
            column.append(seconds(lambda adjoint=adjoint: gradient(adjoint)))  # type: ignore[misc]
    print(f"\nN = {steps}; {rounds} interleaved rounds; seconds over those of Checkpoint(), and peak tensor memory")
    for adjoint, column in zip(adjoints, times, strict=True):
        ratio = statistics.median(a / b for a, b in zip(column, times[0], strict=True))
        bytes_ = {sa.Direct(): whole, sa.Checkpoint(): states}.get(adjoint) or peak(adjoint)
        print(f"{adjoint!r:55}{ratio:>8.2f}{bytes_ / 2**20:>10.1f} MiB")


def memory() -> None:
    torch.manual_seed(0)
    network, x = Network(width=16, blocks=2), torch.randn(4, 3, 16, 16, requires_grad=True)
    denoiser, frame = sa.Denoiser(network, SCHEDULE), sa.Frame(SCHEDULE, eta=1.0)
    state = x.numel() * x.element_size()
    print(f"\npeak tensor memory of one gradient (SDE, replayed noise), in states of {state} bytes")
    print(f"{'adjoint':28}{'N = 10':>10}{'N = 100':>10}{'N = 1000':>10}   per step")
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=8)):
        peaks = []
        for steps in (10, 100, 1000) if adjoint != sa.Direct() else (10, 100):
            with PeakMemory() as peak:
                out = sa.sample(
                    denoiser, x, frame=frame, grid=sa.uniform_logsnr(SCHEDULE, steps), solver=sa.Euler(),
                    noise=sa.BrownianPath(seed=0), adjoint=adjoint,
                )  # fmt: skip
                torch.autograd.grad(out.sum(), [x, *network.parameters()])
            del out
            peaks.append(peak.peak / state)
        slope = (peaks[-1] - peaks[0]) / (990 if len(peaks) == 3 else 90)
        row = "".join(f"{p:>10.1f}" for p in peaks) + " " * (10 * (3 - len(peaks)))
        print(f"{adjoint!r:28}{row}   {slope:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cost(arguments.steps, arguments.rounds)
    budgets(arguments.steps // 2, arguments.rounds)
    memory()

"""Time and memory of Hessian-vector products: ``python -m tests.benchmarks.second_derivatives``.

Gradients and products by each adjoint are timed in turn in one process, by its CPU time: other processes do not count.
It prints medians of ratios, to the gradient by ``Checkpoint()`` and to the adjoint's own gradient, and the peak of
tensor memory. With several numbers of steps it prints how many bytes each step adds, in states of the solve, and what
is left without these: the memory of one step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory

from .checkpoint_cost import SCHEDULE, Network

ADJOINTS = (sa.Checkpoint(), sa.Checkpoint(4), sa.Direct())
CASES = ("in x_T, weights frozen", "in x_T", "in x_T and all weights")


class Row(NamedTuple):
    """What is measured: the adjoint, and whether a product or a gradient is taken."""

    adjoint: sa.Adjoint
    second: bool

    @property
    def name(self) -> str:
        adjoint = repr(self.adjoint).replace("snapshots=", "").replace("None, ", "").replace("memory=None", "")
        return f"{'product' if self.second else 'gradient'}, {adjoint.replace(', )', ')')}"


ROWS = [Row(adjoint, second) for adjoint in ADJOINTS for second in (False, True)]


def seconds(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def calls(case: str, steps: int) -> tuple[dict[Row, Callable[[], None]], int]:
    """What to measure, and the bytes of one state."""
    torch.manual_seed(0)
    network, x = Network(), torch.randn(2, 3, 16, 16).requires_grad_()
    network.requires_grad_(case != CASES[0])
    leaves = [x, *network.parameters()] if case == CASES[2] else [x]
    directions = [torch.randn_like(leaf) for leaf in leaves]
    denoiser, frame, grid = sa.Denoiser(network, SCHEDULE), sa.Frame(SCHEDULE), sa.uniform_logsnr(SCHEDULE, steps)

    def value(adjoint: sa.Adjoint) -> Tensor:
        out = sa.sample(denoiser, x, frame=frame, grid=grid, solver=sa.Euler(), adjoint=adjoint)
        return out.sin().sum()

    def call(row: Row) -> Callable[[], None]:
        def run() -> None:
            grads = torch.autograd.grad(value(row.adjoint), leaves, create_graph=row.second)
            if row.second:
                torch.autograd.grad(grads, leaves, directions)

        return run

    return {row: call(row) for row in ROWS}, x.numel() * x.element_size()


def times(measured: dict[Row, Callable[[], None]], rounds: int, title: str) -> None:
    """Print ratios of CPU seconds."""
    found: dict[Row, list[float]] = {row: [] for row in measured}
    for _ in range(rounds):
        for row, call in measured.items():
            found[row].append(seconds(call))
    print(f"time, {title}: in gradients by Checkpoint(), and by the same adjoint")
    for row, column in found.items():
        ratios = [
            statistics.median(a / b for a, b in zip(column, found[base], strict=True))
            for base in (ROWS[0], row._replace(second=False))
        ]
        print(f"  {row.name:<26}{ratios[0]:8.2f}{ratios[1]:8.2f}", flush=True)


def memory(case: str, steps: list[int], direct_up_to: int) -> None:
    """Print peaks in MiB, and what they are made of."""
    print(f"peak memory, {case}, MiB at {steps} steps; states that a step adds; MiB without these")
    peaks: dict[Row, list[tuple[int, int]]] = {row: [] for row in ROWS}
    for n in steps:
        measured, state = calls(case, n)
        for row, call in measured.items():
            if row.adjoint == sa.Direct() and n > direct_up_to:
                continue
            with PeakMemory() as peak:
                call()
            peaks[row].append((n, peak.peak))
    for row, column in peaks.items():
        line = "".join(f"{peak / 2**20:10.2f}" for _, peak in column)
        if len(column) > 1:
            (n0, first), (n1, last) = column[0], column[-1]
            grown = (last - first) / (n1 - n0)
            line += f"   + {grown / state:.3f} a step, from {(first - n0 * grown) / 2**20:.2f}"
        print(f"  {row.name:<26}{line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--rounds", type=int, default=5, help="0: memory only")
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--direct-up-to", type=int, default=50, help="the most steps whose memory by Direct() is tried")
    given = parser.parse_args()
    for case in (CASES[k] for k in given.cases):
        memory(case, given.steps, given.direct_up_to)
        for n in given.steps if given.rounds else ():
            times(calls(case, n)[0], given.rounds, f"{case}, {n} steps")


if __name__ == "__main__":
    main()

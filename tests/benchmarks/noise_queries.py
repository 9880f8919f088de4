"""What a noise query costs: ``python -m tests.benchmarks.noise_queries``.

The first table has draws of ``torch.randn`` of the state's size and dtype that cost as much CPU time as one query, over
all steps in order, on the SNR clock, lambda in [-8, 8]. Draws and queries alternate, and the least time of some rounds
counts. The floor is what is drawn at all: about 1.6 draws a query without areas, two with areas; on a refinable
path 2 (16 + 2) for each node that has a cell of its own, and two for each cell without a node. The rest is arithmetic.

The second has milliseconds for a state of 4 numbers, areas on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from sdeadjoint.noise import BrownianPath

SHAPES = ((4, 4, 64, 64), (1, 3, 512, 512))
ROUNDS = 3


def clock(steps: int) -> Tensor:
    return torch.exp(2 * torch.linspace(-8.0, 8.0, steps + 1, dtype=torch.float64, device="cpu"))


def query_seconds(path: BrownianPath, like: Tensor, steps: int, *, levy: bool, reverse: bool = False) -> float:
    """CPU time of a query, over all steps in order."""
    order = range(steps)[::-1] if reverse else range(steps)
    start = time.process_time()
    bound = path.bind(clock(steps), like, levy=levy)
    for n in order:
        bound.increment(n)
    return (time.process_time() - start) / steps


def draw_seconds(like: Tensor, repeats: int = 10) -> float:
    """CPU time of a draw of a state's size."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    start = time.process_time()
    for _ in range(repeats):
        torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu")
    return (time.process_time() - start) / repeats


def draws_per_query(seed: int | Sequence[int], like: Tensor, *, refinable: bool, levy: bool) -> float:
    """The cost of a query over that of a draw: the least of each in alternating rounds."""
    path = BrownianPath(seed, refinable, dtype=like.dtype)
    queries, draws = list[float](), list[float]()
    for _ in range(ROUNDS):
        draws.append(draw_seconds(like))
        queries.append(query_seconds(path, like, 20 if refinable else 50, levy=levy))
        draws.append(draw_seconds(like))
    return min(queries) / min(draws)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'path':10} {'areas':6} {'shape':18} {'dtype':8} {'one seed':>9} {'a list':>9}   (draws per query)")
    for refinable in (False, True):
        for levy in (False, True):
            for shape in SHAPES:
                for dtype in (torch.float32, torch.float64):
                    if refinable and shape == SHAPES[1] and dtype == torch.float64:
                        continue  # half a minute a round
                    like = torch.zeros(shape, dtype=dtype)
                    seeds = (0, list(range(shape[0])))
                    costs = [draws_per_query(seed, like, refinable=refinable, levy=levy) for seed in seeds]
                    name, kind = "refinable" if refinable else "default", str(dtype).removeprefix("torch.")
                    print(f"{name:10} {levy!s:6} {shape!s:18} {kind:8} {costs[0]:9.1f} {costs[1]:9.1f}", flush=True)
    print(f"\n{'path':10} {'steps':>6} {'forward':>9} {'reverse':>9}   (ms per query)")
    few = torch.zeros(4, dtype=torch.float64)
    for refinable in (False, True):
        for steps, repeats in ((20, 10), (200, 4), (2000, 1)):
            path = BrownianPath(0, refinable)
            best = [
                1e3 * min(query_seconds(path, few, steps, levy=True, reverse=reverse) for _ in range(repeats))
                for reverse in (False, True)
            ]
            name = "refinable" if refinable else "default"
            print(f"{name:10} {steps:6} {best[0]:9.3f} {best[1]:9.3f}", flush=True)


if __name__ == "__main__":
    main()

"""Milliseconds per noise query on the SNR clock, lambda in [-8, 8]: ``python -m tests.benchmarks.noise_queries``.

Each row is the best of a few fresh paths (building the tree included), Levy areas on, a state of 4 numbers. The budget
is 0.5 ms for the default path and 6 ms for a refinable one.
"""

from __future__ import annotations

import time

import torch

from sdeadjoint.noise import BrownianPath

BUDGET = {False: 0.5, True: 6.0}


def query_ms(steps: int, refinable: bool, reverse: bool) -> float:
    """Average time of a query, over all steps in order."""
    lam = torch.linspace(-8.0, 8.0, steps + 1, dtype=torch.float64, device="cpu")
    like = torch.zeros(4, dtype=torch.float64, device="cpu")
    order = range(steps)[::-1] if reverse else range(steps)
    start = time.perf_counter()
    bound = BrownianPath(seed=0, refinable=refinable).bind(torch.exp(2 * lam), like, levy=True)
    for n in order:
        bound.increment(n)
    return (time.perf_counter() - start) / steps * 1e3


def main() -> None:
    torch.set_num_threads(1)
    query_ms(20, refinable=True, reverse=False)  # warm up
    print(f"{'path':10} {'steps':>6} {'forward':>9} {'reverse':>9} {'budget':>9}   (ms per query)")
    for refinable in (False, True):
        for steps, repeats in ((20, 10), (200, 4), (5000, 1)):
            best = [min(query_ms(steps, refinable, reverse) for _ in range(repeats)) for reverse in (False, True)]
            name = "refinable" if refinable else "default"
            print(f"{name:10} {steps:6} {best[0]:9.3f} {best[1]:9.3f} {BUDGET[refinable]:9.1f}")


if __name__ == "__main__":
    main()

"""Seconds for a study of one strong order: ``python -m tests.benchmarks.strong_order_study``.

ShARK, 1000 paths, 7 grids from 16 to 1024 steps and a reference of 4096, a mixture in the plane, eta = 1, float64. The
budget is 15 s on two cores; it runs on one. diffrax's ShARK with a virtual Brownian tree takes 116 s, half of it
compilation, and reads 0.059, 0.017 and 0.0048 at 16, 32 and 64 steps.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

import sdeadjoint as sa
from sdeadjoint.convergence import Study, measure, settings

BUDGET = 15.0


def main() -> None:
    torch.set_num_threads(1)
    setting = replace(settings.mixture(), scale=0.0)  # y = 0 at the start
    wall, busy = time.perf_counter(), time.process_time()
    result = measure(Study(sa.ShARK(), setting))
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    print(result)
    print(f"{wall:.1f} s, of which {busy:.1f} s of one core; budget {BUDGET:g} s")


if __name__ == "__main__":
    main()

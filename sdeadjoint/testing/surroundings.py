"""What steps and noise must not see, nor change: global generators, torch's default dtype, the gradient mode."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..solvers import Solver
from .contract import distance, require
from .walks import Walk, solve

ROUND_OFF = 256
"""In units of eps, what steps in a narrow dtype may be off."""


@contextmanager
def global_generators() -> Iterator[Callable[[], str]]:
    """Put the global generators' states back afterwards; gives a function that names those that have moved."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def moved() -> str:
        now = np.random.get_state()
        found = {
            "torch": not torch.equal(torch.get_rng_state(), states[0]),
            "numpy": not np.array_equal(now[1], states[1][1]) or now[2] != states[1][2],  # type: ignore[index]
            "random": random.getstate() != states[2],
        }
        return " and ".join(name for name, changed in found.items() if changed)

    try:
        yield moved
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def reseed() -> None:
    """Another state for each of the global generators; within ``global_generators()``."""
    torch.manual_seed(12345), np.random.seed(12345), random.seed(12345)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default dtype, for a while."""
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


def check_surroundings(solver: Solver, walk: Walk) -> None:
    """Bits that are the same with and without gradients, under another default dtype and after other random numbers."""
    with global_generators() as moved:
        want = _end(solver, walk)
        require(not moved(), f"the steps changed the global generator of {moved()}")
        reseed()
        surroundings: tuple[tuple[str, AbstractContextManager[Any]], ...] = (
            ("after the global generators were seeded", nullcontext()),
            ("under torch.no_grad()", torch.no_grad()),
            ("under torch.inference_mode()", torch.inference_mode()),
            ("with float32 as torch's default dtype", default_dtype(torch.float32)),
            ("with float64 as torch's default dtype", default_dtype(torch.float64)),
        )
        for where, entered in surroundings:
            with entered:
                got = _end(solver, walk)
            require(torch.equal(got, want), f"{where} the steps end at {got.tolist()}, not at {want.tolist()}")
        with torch.enable_grad():
            got = _end(solver, walk, graph=True)
        require(
            torch.equal(got, want),
            f"where y requires a gradient the steps end at {got.tolist()}, not at {want.tolist()}",
        )


def check_precision(solver: Solver, walk: Walk) -> None:
    """Steps in the state's dtype differ by its round-off from steps in float64, from the same numbers."""
    wide = replace(walk, dtype=torch.float64)
    y, exact = (_end(solver, case) for case in (walk, wide))
    eps, error = torch.finfo(walk.dtype).eps, distance(y, exact)
    # Some ten sums a step, of weights below ten, and of states that grow by e over the clock at most.
    allowed = ROUND_OFF * eps * (1 + float(exact.abs().max()))
    require(
        error <= allowed,
        f"in {walk.dtype} the steps end at {y.tolist()}, and in float64 at {exact.tolist()}: off by {error:.2g}, where "
        f"round-off is below {allowed:.2g}",
    )


def _end(solver: Solver, walk: Walk, graph: bool = False) -> Tensor:
    """The last state, from inputs that are made anew."""
    y, _ = solve(solver, walk.drift, walk.intervals(), walk.state().requires_grad_(graph))
    return y.detach()

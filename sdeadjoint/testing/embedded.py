"""What a second row of weights promises: an estimate of the error of a step, of the order of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..solvers import Interval, RungeKutta, Solver
from .contract import Case, numbers, require
from .walks import COUPLED

SIZES = (0.2, 0.1, 0.05)
SLACK = 0.3
"""Of the orders of estimates on three steps; those that are possible lie 1 apart."""


@dataclass(frozen=True)
class OneStep(Case):
    """One step of ``y' = COUPLED(s, y)`` from s = 1, from 16 starting points.

    Args:
        falling: the clock falls.
    """

    falling: bool = False

    def interval(self, h: float) -> Interval:
        return Interval(1.0, 1.0 - h if self.falling else 1.0 + h)

    def start(self) -> Tensor:
        return numbers(16, 2)

    def code(self, name: str) -> str:
        return "\n".join(
            [
                "from sdeadjoint.testing.embedded import OneStep, estimates",
                f"# the drift is F(s, y) = {COUPLED.text}",
                f"print(estimates({name}, {self!r}))",
            ]
        )


def estimates(solver: RungeKutta, case: OneStep) -> list[float]:
    """Root mean squares of the estimated errors of steps of the sizes ``SIZES``."""
    found = []
    for h in SIZES:
        _, error = solver.step_with_error(COUPLED, case.interval(h), case.start())
        found.append(float(error.square().mean().sqrt()))
    return found


def check_error_estimate(solver: Solver, case: OneStep) -> None:
    """The same step as ``step``, and an estimate of the size ``h^p``, which is above the step's own error."""
    if not isinstance(solver, RungeKutta) or not solver.tableau.embedded:
        return
    y0, coarse = case.start(), case.interval(SIZES[0])
    with_error, error = solver.step_with_error(COUPLED, coarse, y0)
    require(
        torch.equal(with_error, solver.step(COUPLED, coarse, y0, ())[0]),
        "step_with_error ends elsewhere than step",
    )
    require(
        (error.shape, error.dtype) == (y0.shape, y0.dtype),
        f"step_with_error returned an error of {error.dtype} {tuple(error.shape)}",
    )
    found, claimed = estimates(solver, case), solver.claims.ode
    slopes = [math.log2(max(a, 1e-300) / max(b, 1e-300)) for a, b in pairwise(found)]
    # A slope that still moves will move about as much again.
    reached = slopes[1] + (slopes[1] - slopes[0])
    require(
        abs(reached - claimed) < SLACK,
        f"order {claimed} is claimed, so the error of a step of the embedded row is O(h^{claimed}), "
        f"and steps of the sizes {SIZES} estimate "
        f"{', '.join(f'{size:.3g}' for size in found)}: orders {slopes[0]:.2f} and {slopes[1]:.2f}",
    )

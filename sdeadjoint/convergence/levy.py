"""The two conditions without which no method has a strong order above 1, read off the solver itself."""

from __future__ import annotations

import math
from itertools import pairwise, product

import torch

from ..solvers import Interval, Solver

STEPS, NOISY = 8, 3  # so many steps, of which this one has noise: a method may remember earlier steps
SIZE = 1e-6  # of a step, in units of the clock
TOLERANCE = 1e-4  # of what a step adds per unit of h; the terms of next order are of the size of the step
MOST = 1.5  # the strong order that increments and space-time Levy areas allow: Clark and Cameron (1980)


def response(
    solver: Solver, power: int, dB: float, H: float, *, falling: bool = False, h: float = SIZE
) -> float:
    """Return ``(y_8 - y_0 - dB) / h`` for ``dy = y^power ds + dB`` from ``y_0 = 0`` in eight steps of size h.

    Only the fourth step has noise, ``dB`` and ``H``. As h goes to 0 that step adds ``int B^power ds`` over itself, and
    the four steps after it add ``4 dB^power``. For a Runge-Kutta method the former is ``sum_i b_i Y_i^power`` with
    ``Y_i = noise_i dB + levy_i H``. A method that claims no Levy areas is given none.
    """

    def drift(s: float, y: torch.Tensor) -> torch.Tensor:
        return y**power

    sign = -h if falling else h
    zero = torch.zeros(1, dtype=torch.float64, device="cpu")
    area = zero + H if solver.claims.levy != "none" else 0.0
    y, state = zero, solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(1 + n * sign for n in range(STEPS + 1))):
        noise = (zero + dB, area) if n == NOISY else (zero, 0.0 * area)
        y, state = solver.step(drift, Interval(s0, s1, *noise), y, state)
    return (float(y) - dB) / sign


def mean_square(solver: Solver, *, falling: bool = False, h: float = SIZE) -> float:
    """Return the mean over ``dB ~ N(0, 1)`` and ``H ~ N(0, 1/12)`` of what the noisy step adds with ``F = y^2``.

    Exactly, by the four points that have these moments. It is 1/2 for ``int B^2 ds`` itself.
    """
    thin = 1 / math.sqrt(12)
    points = product((1.0, -1.0), repeat=2)
    return sum(response(solver, 2, a, b * thin, falling=falling, h=h) for a, b in points) / 4 - (STEPS - 1 - NOISY)


def why_not(solver: Solver, order: float, *, weak: bool = False) -> str:
    """Say why a solver cannot have a strong (or weak) order above 1, in additive noise; empty if it may.

    Necessary for a strong order above 1 (``theory/orders.md``, O4 and O5): with ``F = y`` a step of size h adds
    ``int B ds = (dB/2 + H) h``, and with ``F = y^2`` it adds ``h/2`` in the mean. For a tableau these are
    ``sum b noise = 1/2``, ``sum b levy = 1`` and ``sum b (noise^2 + levy^2/12) = 1/2``. A weak order above 1 asks for
    the same but for the Levy area's own part. Other conditions, such as an order 2 without noise, are not looked at.
    """
    if order <= 1:
        return ""
    if not weak and order > MOST:
        return f"a strong order above {MOST} needs more of the path than increments and space-time Levy areas"
    after = STEPS - 1 - NOISY
    for dB, H, due, what in ((1.0, 0.0, 0.5, "dB"), (0.0, 1.0, 1.0, "H")):
        got = response(solver, 1, dB, H) - after * dB
        if not abs(got - due) <= TOLERANCE and not (weak and what == "H"):
            return f"with F = y a small step of size h adds {got:.4f} {what} h, and int B ds has {due:g} {what} h"
    mean = mean_square(solver)
    if not abs(mean - 0.5) <= TOLERANCE:
        return f"with F = y^2 a small step of size h adds {mean:.4f} h in the mean, and int B^2 ds has h/2"
    return ""

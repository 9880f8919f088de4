"""Scalar equations driven by one set of Brownian paths on nested grids, for the tests of ``theory/``.

The clocks are the frames', written out: no code of ``sdeadjoint`` but Chen's relation is in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.noise.refinable import Piece, combine

PATHS = 2000

Noise = tuple[Tensor, Tensor]
"""Increments and Levy areas, (N, paths)."""

Pieces = Noise | tuple[list[Tensor], list[Tensor]]
"""The same, or step by step."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drift(s: float, y: Tensor) -> Tensor:
    return torch.tanh(y) * math.cos(s) + 0.3 * torch.sin(2 * y)


def slope_of_drift(s: Tensor, y: Tensor) -> Tensor:
    """``F_y`` of ``drift``."""
    return torch.cos(s)[:, None] / torch.cosh(y) ** 2 + 0.6 * torch.cos(2 * y)


def trajectory(
    solver: sa.Solver, F: Callable[[float, Tensor], Tensor], s: Sequence[float], y: Tensor, noise: Pieces
) -> tuple[list[Tensor], tuple[object, ...]]:
    """All states, and what the solver remembers at the end."""
    states, state = [y], solver.initial_state
    for n, (s0, s1) in enumerate(pairwise(s)):
        y, state = solver.step(F, sa.Interval(s0, s1, noise[0][n], noise[1][n]), states[-1], state)
        states.append(y)
    return states, state


def solve(
    solver: sa.Solver, F: Callable[[float, Tensor], Tensor], s: Sequence[float], y: Tensor, noise: Noise
) -> Tensor:
    return trajectory(solver, F, s, y, noise)[0][-1]


def back(
    solver: sa.Solver, F: Callable[[float, Tensor], Tensor], s: Sequence[float], y: Tensor, noise: Noise
) -> Tensor:
    """The states at ``s`` that the solver finds from the last one backwards, (N + 1, paths)."""
    states, state = [y], solver.initial_state
    for n in reversed(range(len(s) - 1)):
        interval = sa.Interval(s[n], s[n + 1], noise[0][n], noise[1][n]).reversed
        y, state = solver.step(F, interval, states[0], state)
        states.insert(0, y)
    return torch.stack(states)


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def slopes(errors: Sequence[Tensor]) -> list[float]:
    """Of root mean squares, over grids that halve."""
    return [math.log2(rms(coarse) / rms(fine)) for coarse, fine in pairwise(errors)]


def slope(errors: Sequence[Tensor]) -> float:
    """The mean over all halvings."""
    found = slopes(errors)
    return sum(found) / len(found)


@dataclass(frozen=True)
class Clock:
    """A range of s and Brownian motion on a function tau of it."""

    ends: tuple[float, float]
    tau: Callable[[Tensor], Tensor]


def flow(eta: float) -> Callable[[Tensor], Tensor]:
    """The flow kind's noise clock; ``q = 1/(1 + r)``."""

    def nu(s: Tensor) -> Tensor:
        q = (1 - s) ** (1 / (1 + eta))
        return q ** (2 * eta) * (1 - 2 * eta / (1 + 2 * eta) * q)

    return nu


CLOCKS = {
    "data, eta = 0.5": Clock((0.5, 2.0), lambda s: s ** (2 / 3)),
    "data, eta = 2": Clock((0.5, 2.0), lambda s: s ** (4 / 3)),
    "noise, eta = 0.5": Clock((2.0, 0.5), lambda s: -0.5 * (s / 1.5) ** 2),
    "flow, eta = 0.5": Clock((0.8, 0.2), flow(0.5)),
    "flow, eta = 2": Clock((0.95, 0.3), flow(2.0)),
    # The data kind with eta = 1, driven by a path on sigma/alpha: nu = s, tau = -s^(-1/2).
    "sigma": Clock((0.25, 2.0), lambda s: -(s**-0.5)),
}
FRAMES = [name for name in CLOCKS if "eta" in name]


def coarser(h: Tensor, noise: Noise) -> Noise:
    """The same path on every other node; ``h`` are the lengths of its steps on the noise clock."""
    W, H = noise
    lengths = h.reshape(-1, *[1] * (W.dim() - 1))
    left, right = (Piece(lengths[k::2], W[k::2], H[k::2]) for k in (0, 1))  # type: ignore[arg-type]
    return combine(left, right)[1:]


def paths(h: Tensor) -> Noise:
    """Brownian paths over steps of these lengths."""
    lengths = h[:, None]
    return randn(len(h), PATHS, seed=1) * lengths.sqrt(), randn(len(h), PATHS, seed=2) * (lengths / 12).sqrt()


@cache
def levels(name: str) -> list[tuple[Tensor, Tensor, Noise]]:
    """Nested geometric grids of 16 to 512 steps, coarse to fine: s, tau, and one set of paths on tau."""
    clock = CLOCKS[name]
    s = torch.from_numpy(np.geomspace(*clock.ends, 513))
    noise = paths(clock.tau(s).diff())
    found = [(s, clock.tau(s), noise)]
    while len(s) > 17:
        noise = coarser(clock.tau(s).diff(), noise)
        s = s[::2]
        found.append((s, clock.tau(s), noise))
    return found[::-1]

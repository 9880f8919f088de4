"""Weak orders as claimed, without sampling: expectations of quadratic polynomials of the noise are finite sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from ..solvers import Interval, Solver
from .contract import Case, require
from .orders import ENDS, SLACK
from .walks import solve

PROBLEMS = 20
FREQUENCIES = np.linspace(0.5, 2.5, PROBLEMS)
START = (0.7, -0.3)


@dataclass(frozen=True)
class Triangular(Case):
    r"""Twenty problems with a linear and a quadratic equation, w their frequencies:

        dy1 = cos(w s) y1 ds + dB1,        dy2 = (cos(w s) y2 + sin(s + w) y1^2) ds + dB2.

    A solver's y1 is linear in its increments and Levy areas and its y2 quadratic, so ``E y1^2`` and ``E y2`` follow
    from the solver's values at zero and at plus and minus one standard deviation of each of them:
    ``E q(X) = q(0) + sum_i (q(v_i e_i) + q(-v_i e_i) - 2 q(0)) / 2``. Both drift terms of a weak order 2 are in it: the
    covariance of noise and drift in ``y1^2``, the drift's second derivative in y2.

    Args:
        falling: the clock falls from 2 to 0.5, with noise on ``-s^2/4``; else it rises, with noise on s itself.
    """

    falling: bool = False

    def nodes(self, steps: int) -> NDArray[np.float64]:
        found = np.geomspace(*ENDS, steps + 1)
        return found[::-1].copy() if self.falling else found

    def noise_clock(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        return -(s**2) / 4 if self.falling else s

    def code(self, name: str) -> str:
        return "\n".join(
            [
                "from sdeadjoint.testing.weak import Triangular, weak_errors",
                f"print(weak_errors({name}, {self!r}, (16, 32, 64)))  # (steps, problems)",
            ]
        )


@lru_cache(maxsize=4096)
def _rates(s: float) -> tuple[Tensor, Tensor]:
    w = torch.from_numpy(FREQUENCIES)
    return torch.cos(w * s), torch.sin(s + w)


def _drift(s: float, y: Tensor) -> Tensor:
    a, c = _rates(s)
    return torch.stack([a * y[..., 0], a * y[..., 1] + c * y[..., 0] ** 2], -1)


@cache
def _exact(falling: bool) -> NDArray[np.float64]:
    """``E y1^2`` and ``E y2`` at the end, (2, problems), by scipy's DOP853 on their own equations."""

    def right(s: float, moments: NDArray[np.float64]) -> NDArray[np.float64]:
        square, mean = moments.reshape(2, PROBLEMS)
        a, c = np.cos(FREQUENCIES * s), np.sin(s + FREQUENCIES)
        slope = -s / 2 if falling else 1.0  # of the noise clock
        return np.concatenate([2 * a * square + slope, a * mean + c * square])

    span = tuple(reversed(ENDS)) if falling else ENDS
    start = np.repeat([START[0] ** 2, START[1]], PROBLEMS)
    ends: NDArray[np.float64] = solve_ivp(right, span, start, method="DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
    return ends.reshape(2, PROBLEMS)


def moments(solver: Solver, case: Triangular, steps: int) -> NDArray[np.float64]:
    """The solver's own ``E y1^2`` and ``E y2`` at the end, (2, problems)."""
    s = case.nodes(steps)
    dnu = np.diff(case.noise_clock(s))
    parts = (1.0, 1 / 12) if solver.claims.levy != "none" else (1.0,)  # variances of dB and H per dnu
    points = 1 + 2 * len(parts) * steps
    intervals = []
    for n, ends in enumerate(pairwise(s.tolist())):
        noise = torch.zeros(len(parts), points, 1, 2, dtype=torch.float64, device="cpu")
        for k, part in enumerate(parts):
            plus = 1 + 2 * (n * len(parts) + k)
            noise[k, plus, 0, 0] = math.sqrt(part * dnu[n])
            noise[k, plus + 1, 0, 0] = -math.sqrt(part * dnu[n])
        intervals.append(Interval(*ends, *noise))
    y0 = torch.tensor(START, dtype=torch.float64, device="cpu").expand(points, PROBLEMS, 2)
    y, _ = solve(solver, _drift, intervals, y0)
    values = torch.stack([y[..., 0] ** 2, y[..., 1]])
    bends = values[:, 1::2] + values[:, 2::2] - 2 * values[:, :1]
    found: NDArray[np.float64] = (values[:, 0] + bends.sum(1) / 2).numpy()
    return found


def weak_errors(solver: Solver, case: Triangular, steps: Sequence[int]) -> NDArray[np.float64]:
    """Distances of the two moments from the exact ones, (steps, problems)."""
    errors = [moments(solver, case, count) - _exact(case.falling) for count in steps]
    return np.linalg.norm(np.stack(errors), axis=1)


def check_weak_order(solver: Solver, case: Triangular) -> None:
    """The two directions together: the constants of one may cancel, as they do for ``AdamsBashforth(3)``.

    On grids twice as fine too before it is called wrong: terms of higher orders may cross there, as those of
    ``AdamsBashforth(4, start=RK4())`` do on 16 steps. A lower order is no higher on them.
    """
    claimed = solver.claims.weak
    for steps in ((16, 32, 64), (32, 64, 128)):
        both = [weak_errors(solver, Triangular(falling), steps) for falling in (case.falling, not case.falling)]
        rms = np.sqrt((np.concatenate(both, axis=1) ** 2).mean(axis=1))
        before, slope = (math.log2(a / max(b, 1e-300)) for a, b in pairwise(rms.tolist()))
        reached = slope + max(0.0, slope - before)  # a slope that still rises will rise about as much again
        if bool(np.isfinite(rms).all()) and reached >= claimed - SLACK:
            return
    require(
        False,
        f"weak order {claimed:g} is claimed, and on {', '.join(map(str, steps))} steps the errors of E y1^2 and E y2 "
        f"are {', '.join(f'{error:.3g}' for error in rms)}: orders {before:.2f} and {slope:.2f}",
    )

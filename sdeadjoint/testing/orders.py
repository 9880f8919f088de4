"""Orders as claimed: without noise, along straight paths, in the limit of small steps, and pathwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..convergence import Setting, Study, measure, settings
from ..convergence.levy import SIZE, TOLERANCE, mean_square, response
from ..noise.paths import Paths
from ..solvers import Interval, RungeKutta, ShARK, Solver
from .contract import Case, numbers, require
from .walks import COUPLED, solve

ENDS = (0.5, 2.0)
ROUND_OFF = 1e-11  # below it errors say nothing: the reference is good to 1e-13, and steps round
SLACK = 0.15


@dataclass(frozen=True)
class Refinement(Case):
    """The problem ``y' = COUPLED(s, y)`` on grids of more and more steps.

    Args:
        falling: the clock runs from 2 to 0.5 and not from 0.5 to 2.
        pattern: relative lengths of steps, again and again.
        velocity: the path is straight, ``dB = velocity ds``, as if the drift were ``F + velocity``.
    """

    falling: bool = False
    pattern: tuple[int, ...] = (1,)
    velocity: float = 0.0

    def nodes(self, steps: int) -> list[float]:
        """About this many steps, a multiple of the pattern's."""
        lengths = np.tile(np.asarray(self.pattern, dtype=np.float64), max(1, steps // len(self.pattern)))
        places = np.cumsum([0.0, *lengths]) / lengths.sum()
        start, end = reversed(ENDS) if self.falling else ENDS
        return [float(s) for s in start + (end - start) * places]

    def start(self) -> Tensor:
        return numbers(16, 2)

    def intervals(self, steps: int) -> list[Interval]:
        ends = pairwise(self.nodes(steps))
        if self.velocity == 0:
            return [Interval(s0, s1) for s0, s1 in ends]
        unit = torch.ones(16, 2, dtype=torch.float64, device="cpu")
        return [Interval(s0, s1, self.velocity * (s1 - s0) * unit) for s0, s1 in ends]

    def code(self, name: str) -> str:
        return "\n".join(
            [
                "from sdeadjoint.testing.orders import Refinement, errors, grid_sizes",
                f"# the drift is F(s, y) = {COUPLED.text}",
                f"print(errors({name}, {self!r}, grid_sizes({name}.claims.ode)))",
            ]
        )


def grid_sizes(order: int) -> tuple[int, int, int]:
    """Fine enough for a coefficient that is 1 % off to show, coarse enough to stay above round-off."""
    finest = {1: 128, 2: 256, 3: 96, 4: 48}.get(order, 32)
    return finest // 4, finest // 2, finest


@lru_cache(maxsize=64)
def _reference(falling: bool, velocity: float) -> Tensor:
    """The solution at the end by scipy's DOP853, good to 1e-13."""
    y0 = numbers(16, 2)

    def right(s: float, y: np.ndarray) -> np.ndarray:
        F: np.ndarray = (COUPLED(float(s), torch.from_numpy(y.reshape(16, 2))) + velocity).numpy()
        return F.reshape(-1)

    span = tuple(reversed(ENDS)) if falling else ENDS
    solution = solve_ivp(right, span, y0.numpy().reshape(-1), method="DOP853", rtol=1e-13, atol=1e-13)
    return torch.from_numpy(solution.y[:, -1].reshape(16, 2))


def errors(solver: Solver, case: Refinement, steps: Sequence[int]) -> list[float]:
    """Root mean square errors at the end, over 16 starting points, on grids of these many steps."""
    exact, found = _reference(case.falling, case.velocity), []
    for count in steps:
        y, _ = solve(solver, COUPLED, case.intervals(count), case.start())
        found.append(float((y - exact).square().mean().sqrt()))
    return found


REFINEMENTS = tuple(
    Refinement(falling, pattern) for pattern, falling in product(((1,), (2, 1, 3), (1, 10, 4)), (False, True))
)
"""Rising and falling clocks: uniform, with steps that grow up to threefold, and up to tenfold."""


def check_ode_order(solver: Solver, case: Refinement) -> None:
    claimed = solver.claims.ode
    steps = grid_sizes(claimed)
    found = errors(solver, case, steps)
    require(all(map(math.isfinite, found)), f"on {steps} steps the errors are {_list(found)}")
    if found[-1] < ROUND_OFF:
        return
    counts = [len(case.nodes(count)) - 1 for count in steps]
    before, slope = (
        math.log2(a / max(b, 1e-300)) / math.log2(m / n)
        for (a, b), (n, m) in zip(pairwise(found), pairwise(counts), strict=True)
    )
    # A slope that still rises with the steps will rise about as much again; one that falls is a lower order's.
    reached = slope + max(0.0, slope - before)
    kind = "" if case.velocity == 0 else f" along dB = {case.velocity} ds"
    excuse = "" if case.velocity == 0 else '; if no stage is meant to see the increment, pass skip=("straight path",)'
    require(
        reached >= claimed - SLACK,
        f"order {claimed} is claimed{kind}, and on {', '.join(map(str, counts))} steps the errors are {_list(found)}: "
        f"orders {before:.2f} and {slope:.2f}{excuse}",
    )


def check_straight_path(solver: Solver, case: Refinement) -> None:
    """The order along dB = v ds; and of a tableau, where a coefficient may hide, that ``noise`` is ``c``."""
    if isinstance(solver, RungeKutta):
        seen, nodes = solver.tableau.noise, solver.tableau.c
        require(
            all(abs(n - c) <= 1e-12 for n, c in zip(seen, nodes, strict=True)),
            f"stages at the nodes {_list(nodes)} see {_list(seen)} of the increment: along a straight "
            'path they miss it; if they are meant to, pass skip=("straight path",)',
        )
    check_ode_order(solver, case)


@dataclass(frozen=True)
class Impulse(Case):
    """Eight tiny steps of size h with noise in the fourth alone: how the drift of power ``power`` sees its noise.

    Args:
        power: 1 or 2, of the drift ``F = y^power``.
        falling: the clock falls.
        h: the step.
    """

    power: int
    falling: bool = False
    h: float = SIZE

    def response(self, solver: Solver, dB: float, H: float) -> float:
        """Return ``(y_8 - y_0 - dB) / h`` for ``y_0 = 0``, to order h."""
        return response(solver, self.power, dB, H, falling=self.falling, h=self.h)

    def code(self, name: str) -> str:
        return "\n".join(
            [
                "from sdeadjoint.testing.orders import Impulse",
                f"print({self!r}.response({name}, dB=1.0, H=0.0))",
                f"print({self!r}.response({name}, dB=0.0, H=1.0))",
            ]
        )


def check_levy(solver: Solver, case: Impulse) -> None:
    """Compare ``int F(B) ds`` over the fourth step, and F at the path's end over the four after it, per h, as h -> 0.

    For ``F = y`` it is ``dB/2 + H`` and ``4 dB``. For ``F = y^2`` its mean over dB and H of variances 1 and 1/12 is
    ``1/2 + 4``; four points have the moments that a square asks for.
    """
    if solver.claims.strong <= 1:
        return
    if case.power == 1:
        for dB, H in ((1.0, 0.0), (0.0, 1.0)):
            got, want = case.response(solver, dB, H), 4.5 * dB + H
            require(
                abs(got - want) < TOLERANCE,
                f"strong order {solver.claims.strong} is claimed, and with F = y a step of size h -> 0 adds "
                f"{got - 4 * dB:.6f} h for dB = {dB}, H = {H}; int B ds is (dB/2 + H) h = {want - 4 * dB} h",
            )
        return
    mean = mean_square(solver, falling=case.falling, h=case.h)
    require(
        abs(mean - 0.5) < TOLERANCE,
        f"strong order {solver.claims.strong} is claimed, and with F = y^2 a step of size h -> 0 adds {mean:.6f} h "
        "in the mean over dB ~ N(0, 1), H ~ N(0, 1/12); the mean of int B^2 ds is h/2",
    )


@dataclass(frozen=True)
class Measured(Case):
    """A study of one of the equations that ``sdeadjoint.convergence.settings`` has beside diffusions.

    Args:
        name: of the setting.
        eta: 0 without noise, 1 with it.
        steps: of the three grids.
    """

    name: str
    eta: float
    steps: tuple[int, ...] = (16, 32, 64)

    def study(self, solver: Solver) -> Study:
        setting: Setting = getattr(settings, self.name)(self.eta)
        return Study(solver, setting, steps=self.steps, paths=100, finer=2)

    def code(self, name: str) -> str:
        return "\n".join(
            [
                "from sdeadjoint.testing.orders import Measured",
                "from sdeadjoint.convergence import measure",
                f"print(measure({self!r}.study({name})))",
            ]
        )


MEASURED = tuple(Measured(name, eta) for name in settings.EQUATIONS for eta in (0.0, 1.0))
"""Every equation of the laboratory that is no diffusion, without noise and with it."""


def check_equations(solver: Solver, case: Measured) -> None:
    found = measure(case.study(solver))
    require(found.verdict.outcome != "violated", f"on {found.subject}: {found.verdict.reason}")


@dataclass(frozen=True)
class Brownian(Case):
    """Many Brownian paths on a clock from 0.5 to 2, or back, and on all grids nested in it.

    Args:
        falling: the clock falls.
        steps: of the coarsest and the finest grid that are measured.
        paths: how many.
    """

    falling: bool = False
    steps: tuple[int, int] = (16, 64)
    paths: int = 400

    def code(self, name: str) -> str:
        return f"from sdeadjoint.testing.orders import Brownian, strong_errors\nprint(strong_errors({name}, {self!r}))"


@lru_cache(maxsize=8)
def _paths(case: Brownian) -> tuple[Paths, Tensor]:
    """The paths on a grid of 512 steps, and their ends by ShARK there."""
    clock = torch.linspace(*ENDS, 513, dtype=torch.float64, device="cpu")
    paths = Paths.draw(clock, (case.paths, 2), seed=0)
    return paths, _ends(ShARK(), paths, case)


def _ends(solver: Solver, paths: Paths, case: Brownian) -> Tensor:
    nodes = (sum(ENDS) - paths.clock if case.falling else paths.clock).tolist()
    areas = paths.H if solver.claims.levy != "none" else [0.0] * paths.steps
    steps = [Interval(*ends, dB, H) for ends, dB, H in zip(pairwise(nodes), paths.dB, areas, strict=True)]
    return solve(solver, COUPLED, steps, numbers(case.paths, 2))[0]


def strong_errors(solver: Solver, case: Brownian) -> dict[int, float]:
    """Root mean square errors over the paths at the end, by the number of steps."""
    paths, exact = _paths(case)
    return {
        count: float((_ends(solver, paths.coarsened(paths.steps // count), case) - exact).square().mean().sqrt())
        for count in case.steps
    }


def check_strong_order(solver: Solver, case: Brownian) -> None:
    found, claimed = strong_errors(solver, case), solver.claims.strong
    (few, coarse), (many, fine) = found.items()
    slope = math.log2(coarse / max(fine, 1e-300)) / math.log2(many / few)
    # 400 paths, the same on both grids, tell the slope to 0.05; orders that are possible lie 0.5 apart.
    require(
        math.isfinite(fine) and (fine < ROUND_OFF or slope >= claimed - 0.25),
        f"strong order {claimed} is claimed, and over {case.paths} paths the rms errors are {coarse:.3g} on {few} "
        f"steps and {fine:.3g} on {many}: order {slope:.2f}",
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)

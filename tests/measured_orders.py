"""Measured orders of every solver, for ``theory/README.md``: ``python -m tests.measured_orders`` prints its rows.

Each entry of ``GUARANTEES`` is measured once. Without noise, along paths and for their gradients by
``sa.convergence.measure`` on a scalar mixture with lambda from -1 to 1; in law without sampling, by
``sdeadjoint.testing.weak``. ``tests/test_guarantees.py`` holds them against what is proved.

The drift of the mixture is written out in the solver's coordinates, which takes a tenth of the time of a solve through
``Denoiser`` and ``Frame``. ``tests/test_guarantees.py`` holds such solves and their gradients against those of
``sdeadjoint.solve`` on the diffusion itself, in every frame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.convergence import Gradient, Quantity, Reverse, Setting, State, Study, fit, measure, settings
from sdeadjoint.convergence.exact import Transport
from sdeadjoint.convergence.settings import Run
from sdeadjoint.solvers import Interval, Solver
from sdeadjoint.testing.strategies import SOLVERS
from sdeadjoint.testing.walks import solve
from sdeadjoint.testing.weak import Triangular, weak_errors
from theory.guarantees import GUARANTEES

from .quick_settings import quick
from .written_drifts import COMPONENTS, tangent
from .written_drifts import written_out as written_out  # for others too

SCHEDULE = sa.VPLinear()
MIXTURE = sa.problems.Mixture(*map(list, COMPONENTS))
PATHS, SAMPLES = 500, 60  # Brownian paths; starting points where there is no noise
STEPS = (16, 32, 64, 128)
# Polynomials through four drifts in the clock itself, which grows sevenfold, overshoot on 16 steps.
LATER = dict.fromkeys(
    (f"AdamsBashforth(order=4, variable='clock'{start})" for start in ("", ", start=RK4()")), (32, 64, 128, 256)
)
FRAMES = (("data", 1.0), ("data", 0.5), ("noise", 0.5), ("flow", 0.5), ("flow", 1.0))
COLUMNS = ("ode", "ode gradient", "strong", "gradient", "weak")


@dataclass(frozen=True)
class Measured:
    """An order, its 95 % interval, and between neighbouring levels, coarse to fine.

    The interval is over paths; without noise over starting points, and over problems for weak orders.
    """

    slope: float
    interval: tuple[float, float]
    local: tuple[float, ...]

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def rising(self) -> float:
        """What a slope without noise still lacks: the last level is ahead of the fit, and will gain as much again as
        it gained last (of a drift c h half is left). A slope that falls lacks nothing: it is a lower order's."""
        before, last = self.local[-2:]
        return max(0.0, last - self.slope) + max(0.0, last - before)

    def __str__(self) -> str:
        return f"{self.slope:.2f} [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"


@dataclass(frozen=True)
class Shared(Quantity):
    """States, or gradients in x_T, of kept solves: all studies have the same paths, and one solve gives both."""

    of: State | Gradient

    @property
    def name(self) -> str:
        return self.of.name

    def evaluate(self, run: Run) -> Tensor:
        noise = 0.0 if run.paths is None else float(run.paths.dB.sum())
        key = (repr(run.solver), run.setting.equation.member, len(run.grid), float(run.x_T.sum()), noise)
        if key not in _KEPT:
            _KEPT[key] = _solved(run)
        states, gradients = _KEPT[key]
        return states if isinstance(self.of, State) else gradients


_KEPT: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def _solved(run: Run) -> tuple[Tensor, Tensor]:
    """The states at the end, and the gradients in x_T of a loss on them, both (paths, event)."""
    states, slopes = with_slopes(run)
    x = states.clone().requires_grad_()
    with torch.enable_grad():
        (gradients,) = torch.autograd.grad(Gradient().loss(x).sum(), x)
    return states.reshape(len(x), -1), (gradients * slopes).reshape(len(x), -1)


def with_slopes(run: Run) -> tuple[Tensor, Tensor]:
    """The states at the end and their derivatives in x_T, of each path.

    A solver's steps are linear in states, drifts and noise. So the same steps of ``(y, v)`` with the drift
    ``(F, F_y v)``, and noise in y alone, have the derivative of y for their v. A path is one number, so that it is the
    gradient. It takes half of the time of a backward pass.
    """
    if run.solver is None:
        x_T = run.x_T.clone().requires_grad_()
        with torch.enable_grad():
            x = integrated(run, x_T)
            return x.detach(), torch.autograd.grad(x.sum(), x_T)[0]
    frame, weights, steps = _prepared(run)
    if run.paths is not None:
        still = torch.zeros_like(run.paths.dB)
        noise = [torch.stack([part, still], 1) for part in (run.paths.dB, run.paths.H)]
        parts = zip(*noise[: 2 if run.solver.claims.levy != "none" else 1], strict=True)
        steps = [Interval(step.s0, step.s1, *part) for step, part in zip(steps, parts, strict=True)]
    start = torch.stack([run.x_T, torch.ones_like(run.x_T)]) / weights[0]
    with torch.no_grad():
        x, slopes = weights[-1] * solve(run.solver, tangent(frame.kind, frame.eta), steps, start)[0]
    return x, slopes


def integrated(run: Run, x_T: Tensor) -> Tensor:
    """The states at the end of the run, or the exact ones, by the drift that is written out."""
    if run.solver is None:
        assert run.setting.exact is not None
        return run.setting.exact(x_T, run.grid, None)
    frame, weights, steps = _prepared(run)
    if run.paths is not None:
        has_areas = run.solver.claims.levy != "none"
        areas = run.paths.H if has_areas else [0.0] * len(steps)
        parts = zip(run.paths.dB, areas, strict=True)
        steps = [Interval(step.s0, step.s1, *part) for step, part in zip(steps, parts, strict=True)]
    y, _ = solve(run.solver, written_out(frame.kind, frame.eta), steps, x_T / weights[0])
    return weights[-1] * y


def _prepared(run: Run) -> tuple[sa.Frame, Tensor, list[Interval]]:
    """The frame, its weights at the nodes, and the steps without noise."""
    equation = run.setting.equation
    assert isinstance(equation, Reverse)
    frame = equation.frame
    return frame, frame.weight(run.grid), [Interval(*ends) for ends in pairwise(frame.clock(run.grid).tolist())]


def setting(eta: float, kind: str = "data") -> Setting:
    t_max, t_min = SCHEDULE.time(torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
    exact = Transport(MIXTURE, SCHEDULE) if eta == 0 else None
    equation = Reverse(MIXTURE.denoiser(SCHEDULE), sa.Frame(SCHEDULE, eta, kind), t_max, t_min)
    return Setting(equation, (), exact=exact)


def study(solver: Solver, quantity: State | Gradient, kind: str, eta: float) -> Study:
    """On the steps that belong to the solver; a method of order 1.5 needs a finer reference."""
    steps, finer = LATER.get(repr(solver), STEPS), 4 if solver.claims.strong > 1 else 2
    return Study(solver, setting(eta, kind), Shared(quantity), steps, SAMPLES if eta == 0 else PATHS, finer=finer)


def _orders(study: Study) -> Measured:
    found = measure(study)
    if found.fit is None:
        raise ValueError(f"study: {study!r} tells no order: {found.verdict}")
    kept = [error for steps, error in zip(found.steps, found.rms, strict=True) if steps in found.fit.steps]
    return Measured(found.slope, found.interval, _local(kept))


def _local(errors: list[float]) -> tuple[float, ...]:
    return tuple(math.log2(coarse / fine) for coarse, fine in pairwise(errors))


@cache
def pathwise(solver: Solver, quantity: str, kind: str = "data", eta: float = 1.0) -> Measured:
    """The order of states or gradients: without noise for eta = 0, else along Brownian paths."""
    what = State() if quantity == "states" else Gradient(adjoint=sa.Direct())
    return _orders(study(solver, what, kind, eta))


@cache
def capped(solver: Solver) -> Measured:
    """The strong order with increments standardised on the sigma clock, of which no method makes more than 1."""
    return _orders(Study(solver, quick(settings.standardised()), State(), (32, 64, 128, 256), PATHS))


@cache
def in_law(solver: Solver) -> Measured:
    """The weak order: over the problems of both directions together, as the constants of one may cancel."""
    both = [weak_errors(solver, Triangular(falling), STEPS) for falling in (False, True)]
    errors = np.concatenate(both, axis=1)
    found = fit(STEPS, errors)
    rms = np.sqrt((errors**2).mean(axis=1))[[STEPS.index(steps) for steps in found.steps]]
    return Measured(found.slope, found.interval, _local(rms.tolist()))


def measured(solver: Solver, column: str) -> Measured:
    """The entry of a column of the table."""
    if column == "weak":
        return in_law(solver)
    quantity = "gradients" if column.endswith("gradient") else "states"
    return pathwise(solver, quantity, "data", 0.0 if column.startswith("ode") else 1.0)


PROVED = {(g.subject, g.quantity): g.order for g in GUARANTEES}


def row(solver: Solver) -> str:
    """The solver's row: the order that is proved, and the measured one, for each column."""
    orders = [PROVED[repr(solver), column.removesuffix(" gradient")] for column in COLUMNS]
    cells = (f"{order:g}: {measured(solver, column)}" for order, column in zip(orders, COLUMNS, strict=True))
    return f"| `{solver!r}` | {' | '.join(cells)} |"


def frame_row(solver: Solver, kind: str, eta: float) -> str:
    """The row of a method of strong order 1.5 in one frame."""
    cells = (f"1.5: {pathwise(solver, quantity, kind, eta)}" for quantity in ("states", "gradients"))
    return f"| `{solver!r}`, {kind} kind, eta = {eta:g} | {' | '.join(cells)} |"


LEVY = (sa.SRA1(), sa.ShARK())
CELL = re.compile(r"([\d.]+): (-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]")


def cells(line: str) -> tuple[str, list[tuple[float, ...]]]:
    """What a row is of, and the numbers of its cells: order proved, slope, ends of the interval."""
    name, *rest = line.strip("| \n").split(" | ")
    return name, [tuple(map(float, found.groups())) for cell in rest if (found := CELL.fullmatch(cell.strip(" |")))]


def summary(lines: Iterable[str]) -> dict[str, str]:
    """For each guarantee, the entry of the table's rows that exceeds its order by least."""
    found: dict[str, list[tuple[float, str]]] = {}

    def add(number: str, name: str, cell: tuple[float, ...]) -> None:
        order, slope, low, high = cell
        text = f"least: {name}: {slope:.2f} [{low:.2f}, {high:.2f}] for {order:g}"
        found.setdefault(number, []).append((slope - order, text))

    sources = {(g.subject, g.quantity): re.findall(r"[A-Z]\d", g.source)[0] for g in GUARANTEES}
    for name, numbers in map(cells, lines):
        if len(numbers) == len(COLUMNS):
            for column, cell in zip(COLUMNS, numbers, strict=True):
                add("D2" if column == "ode gradient" else sources[name.strip("`"), column], name, cell)
        else:
            for number, cell in zip(("O4", "D3"), numbers, strict=True):
                add(number, name, cell)
    return {number: min(entries)[1] for number, entries in sorted(found.items())}


def main() -> None:
    torch.set_num_threads(1)
    lines = [row(solver) for solver in SOLVERS]
    frames = [frame_row(solver, kind, eta) for solver in LEVY for kind, eta in FRAMES]
    print(*lines, "", *frames, sep="\n", end="\n\n")
    for number, text in summary([*lines, *frames]).items():
        print(f"{number}: {text}")
    print(f"B1: {', '.join(f'`{solver!r}`: {capped(solver)}' for solver in LEVY)}")


if __name__ == "__main__":
    main()

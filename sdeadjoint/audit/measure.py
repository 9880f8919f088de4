"""Every sampler measured: orders on nested grids, errors on its own grid, and the spread of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..adjoints import Direct
from ..convergence import Gradient, Quantity, State, Study, TooFewLevelsError, fit, measure, settings
from ..diffusion.frames import Frame
from ..diffusion.grids import uniform_logsnr
from ..diffusion.schedules import VE
from ..solvers import Solver
from .courses import Errors, errors, spread
from .result import Audit, Own, Row, Slope
from .subjects import Course, Subject, subjects

CALLS = (10, 20, 50)
MORE = 100  # network calls, for the order on a sampler's own grid only
STATE, GRADIENT = State(), Gradient(adjoint=Direct())
REGULAR = VE(math.exp(-2.5), math.exp(3.0))  # that of ``settings.mild``
ROUNDING = 1e-13  # of variances of size 1


@dataclass(frozen=True)
class Plan:
    """The size of an audit. Numbers of steps are multiples of 2 and 3, which groups of steps need."""

    steps: tuple[int, ...] = (12, 24, 48, 96)
    paths: int = 200  # of orders
    starts: int = 64  # of errors on own grids
    seed: int = 0


QUICK = Plan((12, 24, 48), 50, 32)


def audit(
    chosen: Iterable[Subject] | None = None,
    *,
    plan: Plan = Plan(),
    watch: Callable[[str], None] | None = None,
) -> Audit:
    """Measure every subject (unless given: all of ``subjects()``) and return the table.

        print(audit(subjects(quick=True)))

    Args:
        chosen: what is measured.
        plan: numbers of steps, paths and starts, and the seed.
        watch: called with each subject's title before it is measured.

    Methods that several subjects share are measured once.
    """
    rows = []
    for subject in subjects() if chosen is None else chosen:
        if watch is not None:
            watch(subject.title)
        rows.append(_row(subject, plan))
    return Audit(tuple(rows))


def _row(subject: Subject, plan: Plan) -> Row:
    frame, _, solver = subject.course(subject.steps(CALLS[0]))
    method, eta, kind = subject.method, frame.eta, frame.kind
    measured: dict[str, Slope | None] = dict.fromkeys(("ode", "strong", "gradient", "weak"))
    if method is not None:
        measured["ode"] = _order(method, 0.0, kind, STATE, plan)
        measured["gradient"] = _order(method, eta, kind, GRADIENT, plan)
        if eta > 0:
            measured["strong"] = _order(method, eta, kind, STATE, plan)
            measured["weak"] = _of_variances(method, eta, kind, plan.steps)
    noisy = eta > 0 and subject.order is not None
    strong, weak = (solver.claims.strong, solver.claims.weak) if noisy else (None, None)
    claimed = {"ode": subject.order, "strong": strong, "gradient": strong if noisy else subject.order, "weak": weak}
    found: dict[int, Errors] = {}
    if subject.order is not None:
        found = {n: errors(subject.course(subject.steps(n)), plan.starts, plan.seed) for n in (*CALLS, MORE)}
    on_grid = _on_grid(subject, found) if found else None
    own = tuple(_own(subject, calls, found.get(calls)) for calls in CALLS)
    return Row(subject.title, subject.family, eta, kind, claimed, measured, on_grid, own)


@cache
def _order(solver: Solver, eta: float, kind: str, quantity: Quantity, plan: Plan) -> Slope | None:
    """The slope on nested grids, uniform in lambda, with regular ends."""
    setting = settings.mild(eta, kind) if eta > 0 else settings.line(0.0, kind)
    found = measure(Study(solver, setting, quantity, plan.steps, plan.paths, plan.seed))
    return None if found.fit is None else Slope(found.slope, found.interval)


@cache
def _of_variances(solver: Solver, eta: float, kind: str, steps: tuple[int, ...]) -> Slope | None:
    """The order of the variance for Gaussian data, without sampling: a weak order's on linear equations."""
    frame, sizes = Frame(REGULAR, eta, kind), []
    for n in steps[-2:]:
        law = spread(Course(frame, uniform_logsnr(REGULAR, n), solver))
        sizes.append(abs(law.sampled**2 - law.exact**2))
    if min(sizes) <= ROUNDING:
        return None
    return Slope(math.log(sizes[0] / sizes[1]) / math.log(steps[-1] / steps[-2]), None)


def _own(subject: Subject, calls: int, found: Errors | None) -> Own:
    steps = subject.steps(calls)
    state = None if found is None else float(found.state.square().mean().sqrt())
    gradient = None if found is None else found.relative
    return Own(calls, steps, state, gradient, spread(subject.course(steps)).excess)


def _on_grid(subject: Subject, found: dict[int, Errors]) -> Slope | None:
    """The slope of states on the sampler's own grids, as it is run."""
    try:
        law = fit([subject.steps(calls) for calls in found], np.stack([each.state.numpy() for each in found.values()]))
    except TooFewLevelsError:
        return None
    return Slope(law.slope, law.interval)

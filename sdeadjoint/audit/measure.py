"""Every sampler measured: orders on nested grids, errors on its own grid, and the spread of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..adjoints import Direct
from ..convergence import Gradient, Quantity, Setting, State, Study, TooFewLevelsError, fit, measure, settings
from ..diffusion.frames import Frame
from ..diffusion.grids import uniform_logsnr
from ..solvers import Solver
from .courses import Errors, errors, spread
from .result import Audit, Own, Row, Slope
from .subjects import Course, Subject, subjects

CALLS = (10, 20, 50)
MORE = 100  # network calls, for the order on a sampler's own grid only


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

        print(sa_audit.audit(subjects(quick=True), plan=QUICK))

    Args:
        chosen: what is measured.
        plan: numbers of steps, paths and starts, and the seed.
        watch: called with each subject's title before it is measured.

    Methods that several subjects share are measured once. All of it takes some two minutes on one free core.
    """
    rows = []
    for subject in subjects() if chosen is None else chosen:
        if watch is not None:
            watch(subject.title)
        rows.append(_row(subject, plan))
    return Audit(tuple(rows))


def _row(subject: Subject, plan: Plan) -> Row:
    frame, _, solver = subject.course(subject.steps(MORE))
    method, claims = subject.method, solver.claims
    orders: dict[str, Slope | None] = dict.fromkeys(("ode", "strong", "gradient", "weak"))
    if method is not None:
        orders["ode"] = _order(method, settings.line(0.0, frame.kind), State(), plan)
        setting = settings.mild(frame.eta, frame.kind) if frame.eta else settings.line(0.0, frame.kind)
        orders["strong"] = _order(method, setting, State(), plan) if frame.eta else None
        orders["gradient"] = _order(method, setting, Gradient(adjoint=Direct()), plan)
        orders["weak"] = _of_variances(method, frame.eta, frame.kind, plan.steps) if frame.eta else None
    strong, weak = (claims.strong, claims.weak) if frame.eta and subject.order is not None else (None, None)
    found = {n: errors(subject.course(subject.steps(n)), plan.starts, plan.seed) for n in (*CALLS, MORE)}
    claimed = subject.order if not frame.eta else strong
    return Row(
        subject.title,
        subject.family,
        frame.eta,
        frame.kind,
        {"ode": subject.order, "strong": strong, "gradient": claimed, "weak": weak},
        orders,
        None if subject.order is None else _own_order(subject, found),
        tuple(_own(subject, calls, found[calls]) for calls in CALLS),
    )


@cache
def _order(solver: Solver, setting: Setting, quantity: Quantity, plan: Plan) -> Slope | None:
    """The slope on nested grids, uniform in lambda, with regular ends."""
    found = measure(Study(solver, setting, quantity, plan.steps, plan.paths, plan.seed))
    return None if found.fit is None else Slope(found.slope, found.interval)


@cache
def _of_variances(solver: Solver, eta: float, kind: str, steps: tuple[int, ...]) -> Slope | None:
    """The order of the variance for Gaussian data, without sampling: a weak order's on linear equations."""
    equation = settings.mild(eta, kind).equation
    frame = Frame(equation.schedule, eta, kind)  # type: ignore[attr-defined]
    sizes = []
    for n in steps:
        law = spread(Course(frame, uniform_logsnr(frame.schedule, n), solver))
        sizes.append(abs(law.sampled**2 - law.exact**2))
    if min(sizes) <= 1e-13:
        return None
    return Slope(math.log(sizes[-2] / sizes[-1]) / math.log(steps[-1] / steps[-2]), None)


def _own(subject: Subject, calls: int, found: Errors) -> Own:
    steps = subject.steps(calls)
    size = float(found.state.square().mean().sqrt())
    return Own(calls, steps, size, found.relative, spread(subject.course(steps)).excess)


def _own_order(subject: Subject, found: dict[int, Errors]) -> Slope | None:
    """The slope of states on the sampler's own grids, as it is run."""
    try:
        law = fit([subject.steps(calls) for calls in found], np.stack([each.state.numpy() for each in found.values()]))
    except TooFewLevelsError:
        return None
    return Slope(law.slope, law.interval)

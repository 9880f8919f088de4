"""Gradients against balls that contain the true ones; see ``tests/enclosures.py``. Bounds are derived there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import Drift, Interval, RungeKutta, Solver, State, Tableau

from .enclosures import BITS, SOLVERS, Case, adjoints, cases, compare
from .tape import Number, condition, pulled

FEW = dict(cases(5))
FAULT = 1e-12


@pytest.mark.parametrize("title", FEW)
def test_exact_gradients_lie_within_their_bound_of_the_ball(title: str) -> None:
    direct, *others = adjoints(FEW[title])
    # How many states are stored does not change what is computed from them: each kind with all and with two.
    del others[[*FEW].index(title) // 2 % 2]
    for adjoint in (direct, *others):
        found = compare(FEW[title], adjoint)
        assert found.holds, f"{adjoint!r}: {found}"


def test_balls_are_narrow_and_nested() -> None:
    """Some 70 digits are certain, more bits agree with them, and fewer bits only widen the ball."""
    case = Case.create("Heun", "line", 0.0, "flow", 6)
    (ball,) = case.enclosure(BITS)
    assert float(ball.rad()) < 1e-60
    assert ball.overlaps(case.enclosure(512)[0])
    assert case.enclosure(53)[0].contains(ball.mid())


# ---------------------------------------------------------------- faults of a trillionth


@pytest.mark.parametrize("title", FEW)
def test_an_adjoint_that_is_off_at_one_step_is_seen(title: str) -> None:
    faulty = sa.Hooked(sa.Direct(), lambda n, t, a: a * (1 + FAULT) if n == 3 else None)
    assert not compare(FEW[title], faulty).holds


class _Off(torch.autograd.Function):
    """The identity, with a cotangent that is off."""

    @staticmethod
    def forward(ctx: Any, F: Tensor) -> Tensor:
        return F.clone()

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Tensor:
        return a * (1 + FAULT)


@dataclass(frozen=True)
class Leaning(Solver):
    """A solver with vector-Jacobian products that are off in the step from one clock value."""

    base: Solver
    start: float

    @property
    def claims(self) -> sa.Claims:
        return self.base.claims

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        def leaning(s: float, Y: Tensor) -> Tensor:
            return _Off.apply(drift(s, Y)) if math.isclose(interval.s0, self.start) else drift(s, Y)

        return self.base.step(leaning, interval, y, state)


@pytest.mark.parametrize("title", [title for title in FEW if ", data, " in title])
def test_products_with_a_jacobian_that_are_off_in_one_step_are_seen(title: str) -> None:
    """In the last step of the data kind. Where a step is small against the state its network's part of a is too."""
    case = FEW[title]
    solver = Leaning(SOLVERS[case.name], case.equation.clocks[-2])
    assert not compare(case, sa.Direct(), solver).holds


@dataclass(frozen=True)
class Shifted(RungeKutta):
    """A method one of whose coefficients is off."""

    base: RungeKutta

    @property
    def claims(self) -> sa.Claims:
        return self.base.claims

    @property
    def tableau(self) -> Tableau:
        *most, last = self.base.tableau.b
        return replace(self.base.tableau, b=(*most, last + FAULT))


@pytest.mark.parametrize("title", [t for t in FEW if isinstance(SOLVERS[FEW[t].name], RungeKutta)])
def test_a_coefficient_that_is_off_is_seen(title: str) -> None:
    solver = SOLVERS[FEW[title].name]
    assert isinstance(solver, RungeKutta)
    assert not compare(FEW[title], sa.Direct(), Shifted(solver)).holds


# ---------------------------------------------------------------- the tape


def test_gradients_and_conditions_on_the_tape() -> None:
    """``g = d/dx exp(x y) = y e^(x y)`` is made by ``x y``, ``exp``, the cotangent times that, and times y."""
    x, y = Number(0.7), Number(-1.3)
    z = (x * y).exp()
    (g,) = pulled([z], [Number(1.0)], [x])
    assert g.value == pytest.approx(-1.3 * math.exp(-0.91), rel=1e-15)
    size = abs(g.value)
    assert condition(g) == pytest.approx(0.91 * size + 3 * size, rel=1e-15)


def test_conditions_count_what_cancels_once() -> None:
    """In ``(x + y) - x`` the sum's rounding shows, in a ratio and a difference of logarithms not that of ``x x``."""
    x, y = Number(1e6), Number(2.0)
    assert condition(x + y - x) == pytest.approx(1e6 + 2 + 2)
    square = x * x
    assert condition(square / square) == pytest.approx(1.0)
    assert condition(square.log() - square.log()) == pytest.approx(2 * math.log(1e12))

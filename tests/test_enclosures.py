"""Gradients against balls that contain the true ones; see ``tests/enclosures.py``. Bounds are derived there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta, Tableau

from .enclosures import BITS, SOLVERS, Case, adjoints, cases, compare

FEW = dict(cases(6))


@pytest.mark.parametrize("title", FEW)
def test_exact_gradients_lie_within_their_bound_of_the_ball(title: str) -> None:
    for adjoint in adjoints(FEW[title]):
        found = compare(FEW[title], adjoint)
        assert found.holds, f"{adjoint!r}: {found}"


def test_balls_are_narrow_and_nested() -> None:
    """Some 70 digits are certain, more bits agree with them, and fewer bits only widen the ball."""
    case = Case.create("Heun", "line", 0.0, "flow", 6)
    (ball,) = case.enclosure(BITS)
    assert float(ball.rad()) < 1e-60
    assert ball.overlaps(case.enclosure(512)[0])
    assert case.enclosure(53)[0].contains(ball.mid())


@dataclass(frozen=True)
class Shifted(RungeKutta):
    """A method one of whose coefficients is off by 1e-12."""

    base: RungeKutta

    @property
    def claims(self) -> sa.Claims:
        return self.base.claims

    @property
    def tableau(self) -> Tableau:
        *most, last = self.base.tableau.b
        return replace(self.base.tableau, b=(*most, last + 1e-12))


@pytest.mark.parametrize("name", ["Euler", "Heun", "SRA1"])
def test_a_coefficient_that_is_off_by_a_trillionth_is_seen(name: str) -> None:
    """In cases whose bound is narrow enough: it is 1e-13 to 5e-13 there, and wider in the plane and without noise."""
    case = Case.create(name, "line", 0.5, "data", 6)
    solver = SOLVERS[name]
    assert isinstance(solver, RungeKutta)
    assert not compare(case, sa.Direct(), Shifted(solver)).holds
    assert compare(case, sa.Direct(), solver).holds

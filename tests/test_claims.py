"""Stated order == proved order, for every exported solver."""

from __future__ import annotations

import pytest

import sdeadjoint as sa
from sdeadjoint.solvers import ReversibleSolver
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

QUANTITIES = {"ode", "strong", "gradient", "weak"}


def proved(solver: sa.Solver) -> dict[str, float]:
    return {g.quantity: g.order for g in GUARANTEES if g.subject == repr(solver)}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_claims_are_the_guarantees(solver: sa.Solver) -> None:
    orders = proved(solver)
    assert (orders["ode"], orders["strong"]) == (solver.claims.ode, solver.claims.strong)
    assert orders["gradient"] == orders["strong"]
    # A strong order is a weak order for smooth functions; so is the order without noise an upper bound.
    assert int(orders["strong"]) <= orders.get("weak", 1) <= orders["ode"]


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not isinstance(s, ReversibleSolver)], ids=repr)
def test_weak_orders_are_proved_for_all_but_reversible_solvers(solver: sa.Solver) -> None:
    assert "weak" in proved(solver)


def test_every_guarantee_has_a_solver_and_is_stated_once() -> None:
    subjects = [(g.subject, g.quantity) for g in GUARANTEES]
    assert len(set(subjects)) == len(subjects)
    assert {subject for subject, _ in subjects} == set(map(repr, SOLVERS))
    assert {quantity for _, quantity in subjects} == QUANTITIES


def test_orders_above_one_need_a_regular_noise_clock_and_levy_areas() -> None:
    levy = {repr(solver) for solver in SOLVERS if solver.claims.levy != "none"}
    for g in GUARANTEES:
        if g.quantity in ("strong", "gradient"):
            assert (g.order > 1) == (g.subject in levy) == ("nonzero derivative" in g.hypotheses)

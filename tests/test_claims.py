"""Stated order == proved order, for every exported solver."""

from __future__ import annotations

import pytest

import sdeadjoint as sa
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

QUANTITIES = {"ode", "strong", "gradient", "weak", "log_prob"}


def proved(solver: sa.Solver) -> dict[str, float]:
    return {g.quantity: g.order for g in GUARANTEES if g.subject == repr(solver)}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_claims_are_the_guarantees(solver: sa.Solver) -> None:
    orders, claims = proved(solver), solver.claims
    assert set(orders) == QUANTITIES
    assert (orders["ode"], orders["strong"], orders["weak"]) == (claims.ode, claims.strong, claims.weak)
    assert orders["gradient"] == orders["strong"]
    assert orders["log_prob"] == orders["ode"]
    # A strong order is a weak order for smooth functions (W3); the order without noise is an upper bound of both.
    assert orders["strong"] <= orders["weak"] <= max(orders["ode"], orders["strong"])


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


def test_defaults_are_the_documented_ones() -> None:
    assert repr(sa.AdamsBashforth()) == "AdamsBashforth(order=2, variable='log')"
    assert sa.AdamsBashforth().start is None
    assert repr(sa.Coupled(sa.Heun())) == "Coupled(base=Heun(), zeta=0.999)"

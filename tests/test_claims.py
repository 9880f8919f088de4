"""Stated order == proved order, for every exported solver."""

from __future__ import annotations

import pytest

import sdeadjoint as sa
from theory.guarantees import GUARANTEES

EXPORTED = [
    value for name in sa.__all__ if isinstance(value := getattr(sa, name), type) and issubclass(value, sa.Solver)
]
SOLVERS = [
    solver
    for kind in EXPORTED
    if kind is not sa.Solver
    for solver in (
        [sa.AdamsBashforth(order, variable) for order in (1, 2, 3, 4) for variable in ("log", "clock")]
        if kind is sa.AdamsBashforth
        else [kind()]
    )
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_claims_are_the_guarantees(solver: sa.Solver) -> None:
    proved = {g.quantity: g.order for g in GUARANTEES if g.subject == repr(solver)}
    assert proved == {"ode": solver.claims.ode, "strong": solver.claims.strong}


def test_every_guarantee_has_a_solver_and_is_stated_once() -> None:
    subjects = [(g.subject, g.quantity) for g in GUARANTEES]
    assert len(set(subjects)) == len(subjects)
    assert {subject for subject, _ in subjects} == set(map(repr, SOLVERS))

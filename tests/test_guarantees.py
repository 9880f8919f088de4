"""Proved order <= measured order, for every entry of ``GUARANTEES``; and ``theory/README.md`` prints what is measured.

An order that is proved is a lower bound, so the tests are one-sided: the upper end of the slope's 95 % interval must
not lie below it. And they must be able to fail: the interval is narrow, its lower end above the next lower order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.convergence import State as States
from sdeadjoint.convergence import Study, Weak, measure
from sdeadjoint.convergence.errors import runs
from sdeadjoint.convergence.verdict import MARGIN
from sdeadjoint.solvers import Drift, RungeKutta, State, Tableau
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES

from .measured_orders import (
    COLUMNS,
    FRAMES,
    LEVY,
    Measured,
    capped,
    cells,
    frame_row,
    integrated,
    measured,
    pathwise,
    row,
    setting,
    study,
    summary,
    with_slopes,
)
from .quick_settings import quick

HALF_WIDTH = 0.15
NEXT = 0.5  # orders that are possible lie a half apart
PRINTED = 0.02  # two decimals, and what another CPU's rounding does to a fit
SUBJECTS = {repr(solver): solver for solver in SOLVERS}
LINES = (Path(__file__).parent.parent / "theory/README.md").read_text().splitlines()
TABLE = {name: numbers for name, numbers in map(cells, LINES) if numbers}


def columns(quantity: str) -> tuple[str, ...]:
    """Where an entry stands in the table; what is proved of solutions without noise is so of their gradients (D2)."""
    return ("ode", "ode gradient") if quantity == "ode" else (quantity,)


def shortfalls(found: Measured, order: float, sampled: bool) -> Iterator[str]:
    """Why a measurement does not show an order.

    Without sampling the interval is no allowance for higher-order terms: the slope may lack what it still rises.
    """
    low, high = found.interval
    allowance = 0.0 if sampled else min(found.rising, MARGIN)
    if high < order - allowance:
        yield f"{found} is below {order:g} by more than {allowance:.3f}"
    if low <= order - NEXT:
        yield f"{found} does not exclude the order {order - NEXT:g}"
    if sampled and found.half_width > HALF_WIDTH:
        yield f"{found} is wider than {2 * HALF_WIDTH:g}"


def differences(printed: tuple[float, ...], order: float, found: Measured) -> Iterator[str]:
    numbers = (order, found.slope, *found.interval)
    if any(abs(one - other) > PRINTED for one, other in zip(printed, numbers, strict=True)):
        yield f"theory/README.md prints {printed}, measured is {order:g}: {found}; python -m tests.measured_orders"


# Log-densities are measured by tests/test_likelihood.py.
OF_THE_TABLE = [guarantee for guarantee in GUARANTEES if guarantee.quantity != "log_prob"]


@pytest.mark.parametrize("subject", dict.fromkeys(guarantee.subject for guarantee in OF_THE_TABLE))
def test_what_is_proved_is_measured_and_printed(subject: str) -> None:
    """All of a solver's guarantees together, as its states and gradients are of the same solves."""
    missed = []
    for guarantee in (guarantee for guarantee in OF_THE_TABLE if guarantee.subject == subject):
        sampled = guarantee.quantity in ("strong", "gradient")
        for column in columns(guarantee.quantity):
            found = measured(SUBJECTS[subject], column)
            missed += [f"{column}: {text}" for text in shortfalls(found, guarantee.order, sampled)]
            printed = TABLE[f"`{subject}`"][COLUMNS.index(column)]
            missed += [f"{column}: {text}" for text in differences(printed, guarantee.order, found)]
    assert missed == []


@pytest.mark.parametrize(("kind", "eta"), [("data", 0.0), ("noise", 0.0), ("flow", 0.0), *FRAMES])
def test_the_drift_that_is_written_out_is_the_samplers(kind: str, eta: float) -> None:
    """States and gradients through ``sdeadjoint.solve`` and ``Reverse``; ShARK calls inside of steps, with areas."""
    for solver in (sa.ShARK(), sa.AdamsBashforth(3, "log")):
        tasks = runs(study(solver, States(), kind, eta), 0)
        (run,) = (run for task, run in tasks if task.steps == 16)
        x_T = run.x_T.clone().requires_grad_()
        x = replace(run, x_T=x_T).solve(sa.Direct())
        found = x.detach(), torch.autograd.grad(x.sum(), x_T)[0]
        # 16 steps, of some 30 roundings each, of numbers of size 1.
        torch.testing.assert_close(with_slopes(run), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_derivatives_that_go_along_are_those_of_a_backward_pass(solver: sa.Solver) -> None:
    sde = Study(solver, setting(1.0), States(), steps=(6, 12, 24), paths=30)
    for eta in (0.0, 1.0):
        (run,) = (run for task, run in runs(replace(sde, setting=setting(eta)), 0) if task.name == "6")
        x_T = run.x_T.clone().requires_grad_()
        x = integrated(run, x_T)
        found = x.detach(), torch.autograd.grad(x.sum(), x_T)[0]
        # 6 steps, of some 100 roundings each, of numbers of size 1.
        torch.testing.assert_close(with_slopes(run), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "eta"), FRAMES[1:])  # the first is the table's own
@pytest.mark.parametrize("solver", LEVY, ids=repr)
def test_three_halves_in_every_frame(solver: sa.Solver, kind: str, eta: float) -> None:
    printed = TABLE[cells(frame_row(solver, kind, eta))[0]]
    for quantity, numbers in zip(("states", "gradients"), printed, strict=True):
        found = pathwise(solver, quantity, kind, eta)
        assert [*shortfalls(found, 1.5, sampled=True)] == []
        assert [*differences(numbers, 1.5, found)] == []


@pytest.mark.parametrize("quantity", ["states", "gradients"])
@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), *LEVY], ids=repr)
def test_strong_orders_on_a_nonlinear_mixture(solver: sa.Solver, quantity: str) -> None:
    """Data kind, eta = 1: Euler and Heun 1.0, SRA1 and ShARK at least 1.5."""
    found = pathwise(solver, quantity)
    assert found.half_width <= HALF_WIDTH
    low, high = found.interval
    assert low >= 1.5 if solver in LEVY else low <= 1.0 <= high


@pytest.mark.parametrize("solver", LEVY, ids=repr)
def test_increments_standardised_on_the_sigma_clock_show_order_one(solver: sa.Solver) -> None:
    """The counterexample (B1): driven as k-diffusion drives its samplers."""
    found = capped(solver)
    assert found.interval[0] <= 1.0 <= found.interval[1]
    assert found.half_width <= HALF_WIDTH
    (line,) = (line for line in LINES if line.startswith("| B1 |"))
    numbers = re.findall(r"-?\d+\.\d+", line.split(f"`{solver!r}`: ")[1])[:3]
    assert [*differences((1, *map(float, numbers)), 1, found)] == []


# ---------------------------------------------------------------- and it can fail


@pytest.mark.parametrize(
    ("solver", "column", "raised"),
    [
        (sa.Euler(), "ode", 2),
        (sa.Heun(), "ode", 3),
        (sa.Heun(), "ode gradient", 3),
        (sa.Heun(), "strong", 1.5),
        (sa.Euler(), "gradient", 1.5),
        (sa.Euler(), "weak", 2),
        (sa.RK4(), "weak", 2),
        (sa.Heun(), "weak", 3),
    ],
    ids=str,
)
def test_a_raised_claim_is_seen(solver: sa.Solver, column: str, raised: float) -> None:
    sampled = column in ("strong", "gradient")
    assert any("is below" in reason for reason in shortfalls(measured(solver, column), raised, sampled))


def test_a_raised_claim_of_three_halves_is_seen_where_no_constant_is_small() -> None:
    assert [*shortfalls(pathwise(sa.SRA1(), "states", "flow", 1.0), 2.0, sampled=True)] != []


@dataclass(frozen=True)
class Changed(RungeKutta):
    """A method with another tableau, and its old claims."""

    base: RungeKutta
    changes: tuple[tuple[str, object], ...]

    @property
    def claims(self) -> sa.Claims:
        return self.base.claims

    @property
    def tableau(self) -> Tableau:
        return replace(self.base.tableau, **dict(self.changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "field", "value", "column"),
    [
        (sa.Heun(), "b", (0.505, 0.495), "ode"),  # one per cent
        (sa.Midpoint(), "a", ((), (0.505,)), "ode gradient"),
        (sa.RK4(), "c", (0.0, 0.5, 0.505, 1.0), "ode"),
        (sa.Euler(), "b", (1.01,), "strong"),
        (sa.ShARK(), "levy", (-1.0, -1.0), "strong"),
        (sa.SRA1(), "levy", (0.0, -1.5), "gradient"),
        (sa.ShARK(), "noise", (0.0, -5 / 6), "weak"),
        (sa.Heun(), "noise", (0.0, 0.5), "weak"),
    ],
    ids=str,
)
def test_a_wrong_coefficient_is_seen(base: RungeKutta, field: str, value: object, column: str) -> None:
    order = getattr(base.claims, column.split()[0] if column != "gradient" else "strong")
    found = measured(Changed(base, ((field, value),)), column)
    assert [*shortfalls(found, order, column in ("strong", "gradient"))] != []


def test_what_is_printed_elsewhere_is_seen() -> None:
    found = measured(sa.Heun(), "weak")
    printed = TABLE["`Heun()`"][COLUMNS.index("weak")]
    assert [*differences((printed[0], printed[1] + 0.05, *printed[2:]), 2, found)] != []
    assert [*differences((printed[0] + 1, *printed[1:]), 2, found)] != []


# ---------------------------------------------------------------- the page


def test_the_table_has_a_row_for_each_solver_and_frame_and_no_other() -> None:
    frames = [f"`{solver!r}`, {kind} kind, eta = {eta:g}" for solver in LEVY for kind, eta in FRAMES]
    assert [*TABLE] == [*(f"`{name}`" for name in SUBJECTS), *frames]
    assert {len(TABLE[f"`{name}`"]) for name in SUBJECTS} == {len(COLUMNS)}


def test_the_map_has_what_the_table_has() -> None:
    for number, text in summary(line for line in LINES if cells(line)[0] in TABLE).items():
        mapped = [line for line in LINES if line.startswith(f"| {number} |")]
        assert [line.strip("| ").split(" | ")[-1] for line in mapped] == [text], number


def test_rows_are_read_as_they_are_written() -> None:
    name, numbers = cells(row(sa.Euler()))
    assert name == "`Euler()`"
    assert numbers[0][0] == sa.Euler().claims.ode
    assert numbers[0][1] == pytest.approx(measured(sa.Euler(), "ode").slope, abs=0.005)


# ---------------------------------------------------------------- studies of weak errors


def test_studies_hold_weak_errors_against_the_weak_order() -> None:
    setting = sa.convergence.settings.mild()
    for solver in SOLVERS:
        assert Study(solver, setting, Weak()).order == solver.claims.weak
        assert Study(solver, sa.convergence.settings.standardised(), Weak()).order == solver.claims.weak
        assert Study(solver, sa.convergence.settings.line(), Weak()).order == solver.claims.ode


@dataclass(frozen=True)
class Claiming(sa.Solver):
    """A method that claims weak order 2."""

    base: sa.Solver

    @property
    def claims(self) -> sa.Claims:
        return replace(self.base.claims, weak=2.0)

    def step(self, drift: Drift, interval: sa.Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        return self.base.step(drift, interval, y, state)


@pytest.mark.parametrize(
    ("solver", "outcomes"),
    [
        (sa.Heun(), ("holds", "inconclusive")),  # their slopes rise towards 2
        (sa.AdamsBashforth(2), ("holds", "inconclusive")),
        (Claiming(sa.Euler()), ("violated",)),
    ],
    ids=repr,
)
def test_a_study_of_weak_errors_does_not_call_a_slope_violated_that_still_rises(
    solver: sa.Solver, outcomes: tuple[str, ...]
) -> None:
    setting = quick(sa.convergence.settings.mild(kind="flow"))
    result = measure(Study(solver, setting, Weak(), steps=(8, 16, 32, 64), paths=4000, batch=4000))
    assert result.verdict.outcome in outcomes, result

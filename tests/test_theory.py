"""theory/ against sdeadjoint and itself: computed order == guarantee == claim, and every reference leads somewhere."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from sdeadjoint.testing.strategies import SOLVERS
from theory import order_conditions as oc
from theory.guarantees import GUARANTEES, Guarantee
from theory.order_conditions import Coefficients

ROOT = Path(__file__).parent.parent
TEXTS = {path.name: path.read_text() for path in sorted((ROOT / "theory").glob("*.md"))}
STATEMENT = re.compile(r"^\*\*([A-Z]\d+)\b", re.MULTILINE)
TITLES = {n: title for text in TEXTS.values() for n, title in re.findall(r"^\*\*([A-Z]\d+) \(([^()]*)\)", text, re.M)}
RUNGE_KUTTA = {repr(solver): solver for solver in SOLVERS if isinstance(solver, RungeKutta)}
COMPUTED = {
    "ode": oc.ode_order,
    "strong": oc.strong_order,
    "weak": oc.weak_order,
    "gradient": oc.strong_order,  # D3: the tangent map is the same method
    "log_prob": oc.ode_order,  # L1
}


def coefficients(solver: RungeKutta) -> Coefficients:
    tableau = solver.tableau
    return Coefficients.of(tableau.a, tableau.b, tableau.c, tableau.noise, tableau.levy)


# ---------------------------------------------------------------- tableaus


@pytest.mark.parametrize(
    "guarantee", [g for g in GUARANTEES if g.subject in RUNGE_KUTTA], ids=lambda g: f"{g.subject}-{g.quantity}"
)
def test_computed_order_is_the_guarantee(guarantee: Guarantee) -> None:
    assert COMPUTED[guarantee.quantity](coefficients(RUNGE_KUTTA[guarantee.subject])) == guarantee.order


@pytest.mark.parametrize("solver", RUNGE_KUTTA.values(), ids=repr)
def test_tableaus_are_consistent_claim_what_is_computed_and_have_every_guarantee(solver: RungeKutta) -> None:
    method, claims = coefficients(solver), solver.claims
    assert oc.inconsistencies(method) == []
    assert (oc.ode_order(method), oc.strong_order(method)) == (claims.ode, claims.strong)
    assert any(method.levy) == (claims.levy != "none")
    assert len(method.b) == claims.evaluations
    assert {g.quantity for g in GUARANTEES if g.subject == repr(solver)} == set(COMPUTED)


PAIRS = [solver for solver in RUNGE_KUTTA.values() if solver.tableau.embedded]


@pytest.mark.parametrize("solver", PAIRS, ids=repr)
def test_embedded_rows_are_methods_of_one_order_less(solver: RungeKutta) -> None:
    embedded = coefficients(solver).with_weights(solver.tableau.embedded)
    assert oc.inconsistencies(embedded) == []
    assert oc.ode_order(embedded) == solver.claims.ode - 1
    for name, mutant in mutants(embedded):
        assert not name.startswith("b") or oc.ode_order(mutant) == 0, name


def test_an_embedded_row_may_see_the_end_of_the_step_or_not() -> None:
    heun = coefficients(sa.Heun())
    assert oc.ode_order(heun.with_weights((1.0, 0.0))) == 1
    at_the_end = heun.with_weights((0.5, 0.0, 0.5))
    assert (at_the_end.c[-1], at_the_end.a[-1], oc.ode_order(at_the_end)) == (1, (F(1, 2), F(1, 2), F(0)), 2)


JUDGES = (oc.inconsistencies, oc.ode_order, oc.strong_order, oc.weak_order)  # the quickest ones first


def mutants(method: Coefficients) -> Iterator[tuple[str, Coefficients]]:
    """The method with one nonzero coefficient of the other sign, or 1 % larger or smaller."""
    rows = {f.name: getattr(method, f.name) for f in fields(method)}
    places: list[tuple[str, int | None, int]] = [
        (name, None, j) for name in ("b", "c", "noise", "levy") for j in range(len(method.b))
    ]
    places += [("a", i, j) for i in range(len(method.b)) for j in range(i)]
    for name, i, j in places:
        row = list(rows[name] if i is None else rows[name][i])
        for factor in (Fraction(-1), Fraction(101, 100), Fraction(99, 100)):
            new = (*row[:j], factor * row[j], *row[j + 1 :])
            if row[j]:
                yield (
                    f"{name}[{i}][{j}] * {factor}",
                    replace(method, **{name: new if i is None else (*method.a[:i], new, *method.a[i + 1 :])}),
                )


@pytest.mark.parametrize("solver", RUNGE_KUTTA.values(), ids=repr)
def test_no_coefficient_can_change_unnoticed(solver: RungeKutta) -> None:
    method = coefficients(solver)
    verdicts = [(judge, judge(method)) for judge in JUDGES]
    unnoticed = [name for name, mutant in mutants(method) if all(judge(mutant) == known for judge, known in verdicts)]
    assert unnoticed == []


def test_the_trees_are_all_there() -> None:
    def for_y(tree: oc.Tree) -> bool:
        return tree is not None and all(map(for_y, tree))

    # Hairer, Norsett and Wanner (1993), Table II.2.1.
    assert [sum(map(for_y, oc.trees(n))) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]
    assert [len(oc.trees(n)) for n in range(1, 5)] == [1, 2, 5, 13]
    assert all(
        len(set(oc.trees(n))) == len(oc.trees(n)) and set(map(oc.vertices, oc.trees(n))) == {n} for n in (3, 4, 5)
    )
    tall, bush = ((((),),),), ((), (), ())
    assert (oc.density(tall), oc.density(bush), oc.density(((), ((),)))) == (24, 4, 8)


F = Fraction
# Dormand and Prince (1980): six stages, order 5. Its nodes are the rows' sums.
DORMAND_PRINCE = (
    (),
    (F(1, 5),),
    (F(3, 40), F(9, 40)),
    (F(44, 45), F(-56, 15), F(32, 9)),
    (F(19372, 6561), F(-25360, 2187), F(64448, 6561), F(-212, 729)),
    (F(9017, 3168), F(-355, 33), F(46732, 5247), F(49, 176), F(-5103, 18656)),
)
DORMAND_PRINCE_B = (F(35, 384), F(0), F(500, 1113), F(125, 192), F(-2187, 6784), F(11, 84))


def test_methods_of_known_order() -> None:
    square = tuple(row + (F(0),) * (6 - len(row)) for row in DORMAND_PRINCE)
    nodes = tuple(sum(row, F(0)) for row in square)
    assert oc.ode_order(Coefficients(square, DORMAND_PRINCE_B, nodes, nodes, (F(0),) * 6)) == 5
    heun3 = Coefficients.of(((), (1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75), (0.0, 1 / 3, 2 / 3), (0.0, 1 / 3, 2 / 3))
    assert (oc.ode_order(heun3), oc.strong_order(heun3), oc.weak_order(heun3)) == (3, 1.0, 1)
    # A wrong node is found although the rows of a are right: the drift sees another clock.
    assert oc.ode_order(replace(heun3, c=(F(0), F(1, 3), F(1, 2)))) == 1
    # Euler's method at another node keeps its order, and is told from its row.
    assert oc.inconsistencies(replace(coefficients(sa.Euler()), c=(F(1, 2),), noise=(F(1, 2),))) != []
    # Nor is there a weak order 2 without an order 2 for the ODE.
    assert oc.weak_order(replace(coefficients(sa.ShARK()), c=(F(0), F(1, 2)))) == 1
    # Levy areas that miss their mean leave the law's order and lose the path's; inconsistent weights lose both.
    shark = coefficients(sa.ShARK())
    assert (oc.strong_order(replace(shark, levy=(F(-1), F(-1)))), oc.weak_order(replace(shark, levy=(F(-1),) * 2))) == (
        1.0,
        2,
    )
    assert (oc.strong_order(replace(shark, b=(F(1), F(1)))), oc.weak_order(replace(shark, b=(F(1), F(1))))) == (0.0, 0)


def test_levy_areas_alone_do_not_make_three_halves() -> None:
    shark = coefficients(sa.ShARK())
    # The stages see the areas as they must, and another part of the increment than they must.
    method = replace(shark, noise=(F(0), F(1, 2)))
    assert (oc.ode_order(method), oc.strong_order(method), oc.weak_order(method)) == (2, 1.0, 1)
    assert oc.inconsistencies(method) == []  # with Levy areas that part is free
    assert oc.inconsistencies(replace(method, levy=(F(0), F(0)))) != []


def test_coupled_has_weak_order_two_where_its_base_has() -> None:
    """W4, from the base's coefficients; around a base of weak order 1 the strong order is what is left (W3)."""
    for subject, base in {f"Coupled(base={name}, zeta=0.999)": solver for name, solver in RUNGE_KUTTA.items()}.items():
        for guarantee in (g for g in GUARANTEES if (g.subject, g.quantity) == (subject, "weak")):
            assert guarantee.order == oc.weak_order(coefficients(base))
            assert ("W4" in guarantee.source) == (guarantee.order == 2)
        for zeta in (0.5, 1.0):
            assert sa.Coupled(base, zeta).claims.weak == oc.weak_order(coefficients(base))


def test_what_is_computed_of_a_way_back() -> None:
    """R8: 2 for symmetric methods without a bilinear term of dB and H, 1.5 with one, 1 for others."""
    found = {name: oc.return_order(coefficients(solver)) for name, solver in RUNGE_KUTTA.items()}
    new = {"BogackiShampine()": 2, "Dopri5()": 2}
    assert found == {"Euler()": 1, "Heun()": 2, "Midpoint()": 2, "RK4()": 2, "SRA1()": 1.5, "ShARK()": 2} | new
    heun = coefficients(sa.Heun())
    assert oc.return_order(replace(heun, b=(F(1), F(1)))) == 0
    for change in ({"c": (F(0), F(2, 3))}, {"noise": (F(0), F(1, 2))}, {"a": ((F(0), F(0)), (F(2, 3), F(0)))}):
        assert oc.return_order(replace(heun, **change)) == 1


def test_floats_that_are_no_small_fraction_are_refused() -> None:
    assert [oc.rational(x) for x in (1 / 3, 5 / 6, -0.4, 0.0)] == [F(1, 3), F(5, 6), F(-2, 5), F(0)]
    with pytest.raises(ValueError, match="rounding of no fraction"):
        oc.rational(math.nextafter(1 / 3, 1))
    with pytest.raises(ValueError, match="rows of lengths"):
        Coefficients.of(((), (1.0, 0.0)), (0.5, 0.5), (0.0, 1.0), (0.0, 1.0))
    with pytest.raises(ValueError, match="got lengths"):
        Coefficients.of(((),), (1.0,), (0.0,), (0.0, 1.0))


# ---------------------------------------------------------------- multistep methods


def last_weights(solver: sa.Solver, nodes: list[float]) -> list[float]:
    """What the last step adds per unit of each drift, newest first."""
    units, state = torch.eye(len(nodes) - 1, dtype=torch.float64), solver.initial_state
    for unit, (s0, s1) in zip(units, pairwise(nodes), strict=True):
        y, state = solver.step(lambda s, y, F=unit: F, sa.Interval(s0, s1), torch.zeros_like(unit), state)
    return y.flip(0).tolist()


@pytest.mark.parametrize("nodes", [[1, 2, 3, 4, 5], [1, 2, 5, 6, 9], [9, 7, 4, 3, 1]], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_in_the_clock(order: int, nodes: list[int]) -> None:
    # The quadrature of 40 nodes rounds by some ulps; the fractions here have denominators below 10^3, and others of
    # denominators up to 4 10^5 lie 10^-9 away from them.
    got = [oc.rational(w, 1e-13) for w in last_weights(sa.AdamsBashforth(order, "clock"), [float(s) for s in nodes])]
    past, (s0, s1) = [F(s) for s in reversed(nodes[:-1])], nodes[-2:]
    assert got[order:] == [0] * (4 - order)
    assert oc.multistep_order(got[:order], past[:order], partial(oc.clock_integral, F(s0), F(s1))) == order


@pytest.mark.parametrize("u", [[0, 1, 2, 3, 4], [0, 1, 3, 4, 7], [7, 5, 4, 2, 0]], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_bashforth_in_the_logarithm(order: int, u: list[int]) -> None:
    got = [F(w) for w in last_weights(sa.AdamsBashforth(order, "log"), [2.0**v for v in u])]

    def integral(m: int) -> Fraction:
        return sum((part * F(1 / math.log(2)) ** k for k, part in enumerate(oc.log2_integral(u[-2], u[-1], m))), F(0))

    past = [F(v) for v in reversed(u[:-1])]
    # Weights of up to 10^3 and powers of up to 7^3 round by less than 10^-16 times their product, a few times over.
    assert oc.multistep_order(got[:order], past[:order], integral, tolerance=1e-9) == order


@pytest.mark.parametrize("u", [[0, 1, 2, 3, 4], [0, 1, 3, 4, 7], [7, 5, 4, 2, 0]], ids=str)
def test_dpm_solver_pp_2m_is_a_midpoint_rule(u: list[int]) -> None:
    step = 2.0 ** u[-1] - 2.0 ** u[-2]
    got = [oc.rational(w / step, 1e-13) for w in last_weights(sa.DPMSolverPP2M(), [2.0**v for v in u])]
    assert got[2:] == [0, 0]
    value = partial(oc.midpoint_value, F(u[-2]), F(u[-1]))
    assert oc.multistep_order(got[:2], [F(u[-2]), F(u[-3])], value) == 2
    assert oc.multistep_order([got[0], -got[1]], [F(u[-2]), F(u[-3])], value) == 0


MULTISTEP = [solver for solver in SOLVERS if isinstance(solver, sa.AdamsBashforth | sa.DPMSolverPP2M)]


@pytest.mark.parametrize("solver", MULTISTEP, ids=repr)
def test_multistep_guarantees_are_capped_by_the_start(solver: sa.Solver) -> None:
    """O2 and W2: the order that the weights have, and one more than the start's."""
    steps, start = 2, None
    if isinstance(solver, sa.AdamsBashforth):
        steps, start = solver.order, solver.start
    of_start = oc.ode_order(coefficients(start)) if isinstance(start, RungeKutta) else 1
    proved = {g.quantity: g.order for g in GUARANTEES if g.subject == repr(solver)}
    ode = min(steps, of_start + 1)
    assert proved == {"ode": ode, "strong": 1.0, "gradient": 1.0, "weak": min(steps, 2), "log_prob": ode}


# ---------------------------------------------------------------- the texts


@pytest.mark.parametrize("source", sorted({g.source for g in GUARANTEES}))
def test_every_guarantee_has_its_statement(source: str) -> None:
    found = re.match(r"([a-z_]+\.md), ([A-Z]\d+)", source)
    assert found, f"{source!r} does not name a file and a numbered statement"
    assert found[1] in TEXTS
    assert found[2] in STATEMENT.findall(TEXTS[found[1]])


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: f"{g.subject}-{g.quantity}")
def test_every_guarantee_is_proved_by_a_statement_on_such_methods(guarantee: Guarantee) -> None:
    """By the titles: the kind of method and of order, and the hypotheses, are those of the statement that is named."""
    subject, quantity, sources = guarantee.subject, guarantee.quantity, guarantee.source.split("; ")
    file, number = sources[0].split(", ")
    own = found[0] if (found := re.match("Coupled|ReversibleHeun", subject)) else ""  # with statements of its own
    kind = own or ("one-step methods" if subject in RUNGE_KUTTA else "multistep methods")
    in_log = {"DPMSolver3": "singlestep methods in log s", "UniPC": "predictor-corrector methods in log s"}
    named = in_log.get(subject.split("(")[0], kind)
    (strong,) = (g for g in GUARANTEES if (g.subject, g.quantity) == (subject, "strong"))
    beside = strong.source.split("; ")[:1] if own else []
    if quantity == "ode":
        assert TITLES[number] == f"{named}, no noise"
        assert (guarantee.hypotheses == "log s, away from s = 0") == (named != kind)
    elif quantity == "strong":
        assert TITLES[number].removeprefix(f"{own}, ").startswith(f"strong order {guarantee.order}")
        assert TITLES[number].startswith(own)
        assert ("any noise clock" in TITLES[number]) == ("any noise clock" in guarantee.hypotheses)
    elif quantity == "gradient":
        assert (TITLES[number], sources[1:]) == ("gradients, pathwise", beside)
        assert guarantee.hypotheses == strong.hypotheses  # growth of F_yy and of F_p is no hypothesis
    elif quantity == "log_prob":
        (ode,) = (g for g in GUARANTEES if (g.subject, g.quantity) == (subject, "ode"))
        assert (TITLES[number], sources[1:]) == ("log-densities", [ode.source])
    elif own and guarantee.order == strong.order:
        assert (file, sources[1:]) == ("weak.md", beside)
        assert TITLES[number] == "a strong order is a weak order"
    else:
        assert (file, sources[1:]) == ("weak.md", [])
        law = "one-step methods" if "DPMSolver3" in subject else kind
        assert TITLES[number] == (f"{own}, weak order {guarantee.order}" if own else law)
    starts = ("started by a method of order 4" if "start=" in subject else "Euler start",)
    matters = kind == named == "multistep methods" and quantity in ("ode", "weak", "log_prob")
    found = tuple(part for part in guarantee.hypotheses.split("; ") if "start" in part)
    assert found == (starts if matters else ())


def test_statements_are_numbered_once_and_mentioned_only_if_they_exist() -> None:
    numbers = [number for text in TEXTS.values() for number in STATEMENT.findall(text)]
    assert sorted(numbers) == sorted(set(numbers))
    letters = "".join(sorted({number[0] for number in numbers}))
    for name, text in TEXTS.items():
        # Not the likes of RK4 or of H1_0: a capital and a digit that stand alone.
        mentioned = set(re.findall(rf"(?<![\w^(`])[{letters}]\d(?![\w(])", text))
        assert mentioned <= set(numbers), f"{name} mentions {sorted(mentioned - set(numbers))}"


def test_every_reference_is_in_the_bibliography() -> None:
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "theory/references.bib").read_text(), re.MULTILINE)
    assert sorted(keys) == sorted(set(keys))
    cited = {key for text in TEXTS.values() for key in re.findall(r"\[([A-Za-z]+\d{4}[a-z]?)\](?!\()", text)}
    assert cited == set(keys), sorted(cited ^ set(keys))


def test_the_map_leads_to_every_statement_and_nowhere_else() -> None:
    rows = [line.strip("|").split("|") for line in TEXTS["README.md"].splitlines() if re.match(r"\| [A-Z]\d", line)]
    mapped = set()
    for cells in rows:
        ends = [(number[0], int(number[1:])) for number in re.findall(r"[A-Z]\d+", cells[0])]
        if " to " in cells[0]:
            (letter, first), (_, last) = ends
            ends = [(letter, n) for n in range(first, last + 1)]
        linked = re.findall(r"\((\w+\.md)\)", cells[2])
        numbers = {f"{letter}{n}" for letter, n in ends}
        assert numbers <= {number for name in linked for number in STATEMENT.findall(TEXTS[name])}, cells[0]
        assert re.search(r"`tests/\w+\.py::\w+`", cells[4]), f"{cells[0]}: name the test function that measures it"
        mapped |= numbers
    assert mapped == {number for text in TEXTS.values() for number in STATEMENT.findall(text)}
    for path, name in re.findall(r"`((?:sdeadjoint|tests|theory)/[\w/.]*)(?:::(\w+))?`", TEXTS["README.md"]):
        assert (ROOT / path).exists(), path
        assert not name or name in functions(ROOT / path), f"{path}::{name}"
    for text in TEXTS.values():
        assert all((ROOT / "theory" / link).exists() for link in re.findall(r"\]\(([\w./]+)\)", text))


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}

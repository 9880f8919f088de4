"""The contract checks: everything exported passes those that fit it, and planted faults are found and shown."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint import noise as noises
from sdeadjoint.adjoints import Adjoint, Direct
from sdeadjoint.recursion import Observer, Recursion
from sdeadjoint.solvers import ReversibleSolver, RungeKutta, Tableau
from sdeadjoint.testing import (
    ContractError,
    check_adjoint,
    check_noise,
    check_reversible,
    check_schedule,
    check_solver,
    strategies,
)

from . import third_party
from .wrong_adjoints import Forgets, NotANumber, OnlyOnce, Scaled, Sometimes, WithoutNoise
from .wrong_objects import (
    Counting,
    Keeping,
    Odd,
    OddNoise,
    OddPair,
    OddSchedule,
    Owned,
    Remembering,
    Tallying,
    TwoStep,
    WrongInverse,
    with_tableau,
)


def seen(n: int, t: float, a: Tensor) -> None:
    """A hook that does nothing."""


def refinable(seed: int) -> sa.Noise:
    return sa.BrownianPath(seed, refinable=True)


SCHEDULES = [
    sa.VPLinear(),
    sa.VPCosine(),
    sa.VE(),
    sa.VPLevel(),
    sa.RectifiedFlow(),
    sa.Tabulated([0.99, 0.9, 0.5, 0.1, 0.01]),
    sa.Tabulated([1.0, 0.9, 0.5, 0.1, 0.0]),
]
ADJOINTS = [
    sa.Direct(),
    sa.Checkpoint(memory="1MiB"),
    sa.Hooked(sa.Checkpoint(2), seen),
    sa.Reversible(),
    sa.Truncated(last=100),
]
NOT_THE_GRADIENT = {sa.ContinuousAdjoint, sa.LowVariance}  # no gradient of the sampler, and documented as such


# ---------------------------------------------------------------- everything exported


def named(value: Any) -> str:
    """A test's name that is the same in every process: without addresses."""
    return getattr(value, "__name__", "") or re.sub(r" object at 0x\w+", "", repr(value))[:60]


# Adams and Bashforth's order, variable and start act in lines of their own (nodes, weights, first steps): each order is
# here, with a start and without, and each variable with both of these.
CHECKED = [
    solver
    for solver in strategies.SOLVERS
    if not isinstance(solver, sa.AdamsBashforth)
    or (solver.order + (solver.variable == "log") + (solver.start is None)) % 2
]


@pytest.mark.parametrize("solver", CHECKED, ids=repr)
def test_every_exported_solver_passes(solver: sa.Solver) -> None:
    check_solver(solver)


@pytest.mark.parametrize("solver", [s for s in strategies.SOLVERS if isinstance(s, ReversibleSolver)], ids=repr)
def test_every_exported_reversible_solver_passes(solver: ReversibleSolver) -> None:
    check_reversible(solver)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_every_exported_schedule_passes(schedule: sa.Schedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=named)
def test_every_exact_adjoint_passes(adjoint: Adjoint) -> None:
    """``Direct()`` is not compared with itself: what that may show is that two calls differ, an item of its own."""
    itself = ("gradients", "trajectory", "second derivatives")
    check_adjoint(adjoint, skip=itself if isinstance(adjoint, Direct) else ())


def test_a_path_passes_on_one_grid() -> None:
    check_noise(sa.BrownianPath)


def test_a_refinable_path_passes_on_nested_grids() -> None:
    check_noise(refinable, refinable=True)


@pytest.mark.parametrize("kind", ["fixed", "shifted"])
def test_noise_of_tensors_passes_on_what_it_is_made_for(kind: str) -> None:
    check_noise(Owned(kind))


def test_nothing_exported_is_left_out() -> None:
    exported = [value for name in sa.__all__ if inspect.isclass(value := getattr(sa, name))]

    def kinds(base: type) -> set[type]:
        return {kind for kind in exported if issubclass(kind, base) and not inspect.isabstract(kind)}

    assert kinds(sa.Solver) == {type(solver) for solver in strategies.SOLVERS}
    assert kinds(sa.Schedule) == {type(schedule) for schedule in SCHEDULES}
    assert kinds(Adjoint) - NOT_THE_GRADIENT == {type(adjoint) for adjoint in ADJOINTS}
    assert kinds(sa.Noise) == {noises.BrownianPath, noises.FixedNoise, noises.NormalNoise, noises.ShiftedNoise}


@settings(max_examples=8, suppress_health_check=[HealthCheck.nested_given])
@given(strategies.adjoints())
def test_adjoints_that_are_drawn_are_exact(adjoint: Adjoint) -> None:
    check_adjoint(adjoint, only="basic")


@settings(max_examples=5, suppress_health_check=[HealthCheck.nested_given])
@given(strategies.tableaus())
def test_tableaus_that_are_drawn_are_methods_of_order_one(tableau: Tableau) -> None:
    claims = sa.Claims(ode=1, strong=1.0, evaluations=len(tableau.b))
    solver = with_tableau(sa.Euler(), tableau, claims)
    for item in ("exactness", "evaluations", "clocks", "ode order"):
        check_solver(solver, only=item)


@settings(max_examples=10)
@given(st.data())
def test_networks_mixtures_and_noise_that_are_drawn_fit_a_sampler(data: st.DataObject) -> None:
    frame = data.draw(strategies.frames())
    grid = data.draw(strategies.grids(frame.schedule, max_steps=4, logsnr=(-3.0, 3.0)))
    x_T = torch.linspace(-1, 1, 6).double().reshape(2, 3)
    noise = data.draw(strategies.noises(frame, grid, x_T))
    network = data.draw(strategies.networks((3,)))
    assert repr(network).startswith("Network((3,), width=")
    mixture = data.draw(strategies.mixtures(event=(3,)))
    for denoiser in (sa.Denoiser(network, frame.schedule, "sample"), mixture.denoiser(frame.schedule)):
        x = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=sa.ShARK(), noise=noise)
        assert x.isfinite().all()


# ---------------------------------------------------------------- planted faults: solvers


def broken(check: Callable[..., None], subject: Any, item: str, **options: Any) -> str:
    """The message of the failure, which must be in the item."""
    with pytest.raises(ContractError) as caught:
        check(subject, **options)
    message = str(caught.value)
    assert re.search(rf'item "{item}" (is broken|was checked)', message), message
    return message


@pytest.fixture
def unshrunk() -> Iterator[None]:
    """A fault is found by the same cases, and its smallest counterexample is not looked for."""
    kept = settings.get_current_profile_name()
    settings.load_profile("mutants")
    yield
    settings.load_profile(kept)


# It sees int B ds, and no more of the noise: the stage is at dB/2 + H.
LINEAR = with_tableau(
    sa.Midpoint(),
    Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5), noise=(0.0, 0.5), levy=(0.0, 1.0)),
    sa.Claims(2, 1.5, 2, "space-time"),
)
SOLVER_FAULTS = [
    (Odd(fault="edits y"), "purity", "step 0 changed y in place"),
    (Odd(fault="edits dB"), "purity", "step 0 changed dB in place"),
    (Keeping(), "purity", "twice with the same arguments|the solver's own attributes"),
    (Counting(), "purity", "twice with the same arguments"),
    (Odd(fault="Euler under no_grad"), "surroundings", r"under torch.no_grad\(\) the steps end at"),
    (Odd(fault="draws"), "surroundings", "the steps changed the global generator of torch"),
    (Odd(fault="reads the seed"), "surroundings", "after the global generators were seeded the steps end at"),
    (Odd(fault="default dtype"), "surroundings", "with float(32|64) as torch's default dtype"),
    (Odd(fault="through bfloat16"), "precision", "round-off is below"),
    (Odd(fault="returns y"), "purity", r"step 0 returned Tensor; return the pair \(y, state\)"),
    (Odd(fault="widens"), "kind", "made dtype torch.float64 of torch.float32"),
    (Odd(fault="keeps a dict"), "state", "holds dict; it is a nest of tuples of tensors and numbers"),
    (Odd(fault="calls once more"), "evaluations", "called the drift 4 times|called the drift 3 times"),
    (Odd(claimed=sa.Claims(2, 1.0, 3)), "evaluations", "called the drift 2 times, not 3"),
    (Odd(claimed=sa.Claims(2, 1.0, 1)), "evaluations", "called the drift 2 times, not 1"),
    (Odd(fault="looks ahead"), "clocks", "outside of its interval"),
    (Odd(fault="loses dB"), "exactness", "off by"),
    (Odd(fault="rising only"), "exactness", "off by"),
    (Odd(fault="mixes samples"), "batch", "alone and"),
    (Odd(fault="detaches y"), "differentiability", "it was detached|the derivative in y"),
    (Odd(fault="detaches dB"), "differentiability", "the derivative in dB of step 0 is 0 by autograd"),
    (Odd(fault="detaches drift"), "differentiability", "the derivative in"),
    (TwoStep(detached=True), "differentiability", "by autograd and"),
    (TwoStep(uniform=0.0), "ode order", "order 2 is claimed"),
    (TwoStep(uniform=3.5), "ode order", "order 2 is claimed"),
    (Odd(claimed=sa.Claims(3, 1.0, 2)), "ode order", "order 3 is claimed"),
    (Odd(claimed=sa.Claims(2, 1.5, 2, "space-time")), "levy area", "strong order 1.5 is claimed"),
    (Odd(claimed=sa.Claims(2, 1.5, 2)), "claims", "no order above 1 is possible from increments alone"),
    (Odd(claimed=sa.Claims(2.0, 1.0, 2)), "claims", "claims.ode is 2.0; it is an integer"),  # type: ignore[arg-type]
    (Odd(claimed=sa.Claims(2, 1.0, 2, "area")), "claims", "claims.levy is 'area'"),
    (Odd(fault="scales dB"), "straight path", "order 2 is claimed along dB"),
    (Tallying(), "purity", "changed the solver's own attributes"),
    (Remembering(), "purity", "done twice with the same arguments"),
    (Odd(fault="Euler in inference mode"), "surroundings", r"under torch\.inference_mode\(\) the steps end at"),
    (Odd(fault="Euler with a graph"), "surroundings", "where y requires a gradient the steps end at"),
    (Odd(fault="flattens"), "kind", r"made shape torch\.Size"),
    (
        Odd(fault="Euler on falling clocks", claimed=sa.Claims(1, 1.0, 2, weak=2.0)),
        "weak order",
        "weak order 2 is claimed",
    ),
    (LINEAR, "levy area", r"with F = y\^2"),
    (
        with_tableau(sa.Dopri5(), replace(sa.Dopri5().tableau, embedded=sa.Dopri5().tableau.b)),
        "error estimate",
        "order 5 is claimed, so the error of a step of the embedded row is",
    ),
    (OddPair("ends elsewhere"), "error estimate", "step_with_error ends elsewhere than step"),
    (OddPair("rounds"), "error estimate", "step_with_error returned an error of torch.float32"),
    (OddPair("of the whole step"), "error estimate", "order 3 is claimed, .*: orders 1"),
    (Odd(fault="raises"), "purity", r"raised ZeroDivisionError: no step from s = 2 on\n +\S+wrong_objects.py:\d+, in"),
]


@pytest.mark.parametrize(("solver", "item", "says"), SOLVER_FAULTS, ids=named)
def test_faults_of_solvers_are_found(solver: sa.Solver, item: str, says: str) -> None:
    assert re.search(says, broken(check_solver, solver, item, only=item))


def test_an_error_of_a_step_is_no_broken_promise_and_comes_with_its_line() -> None:
    class Misspelt(sa.Euler):
        def step(self, drift: Any, interval: sa.Interval, y: Any, state: Any) -> Any:
            return y + interval.dt * drift(interval.s0, y), state  # type: ignore[attr-defined]

    with pytest.raises(ContractError) as caught:
        check_solver(Misspelt())
    said = str(caught.value)
    assert "an error came while item \"purity\" was checked" in said
    assert "it raised AttributeError: 'Interval' object has no attribute 'dt'" in said
    assert re.search(r"test_checks\.py:\d+, in step\n +return y \+ interval\.dt \* drift", said)
    assert isinstance(caught.value.__cause__, AttributeError)


def test_a_two_step_method_without_fault_passes() -> None:
    check_solver(TwoStep())


def test_the_pathwise_order_is_measured_too() -> None:
    for wrong in (Odd(fault="scales dB"), Odd(claimed=sa.Claims(2, 1.5, 2, "space-time"))):
        says = broken(check_solver, wrong, "strong order", only="strong order")
        assert "rms errors" in says


def test_a_state_that_checkpoints_lose_is_found() -> None:
    assert "it refused" in broken(check_solver, Keeping(), "checkpoints", only="checkpoints")


def changed_tableaus(tableau: Tableau) -> list[tuple[str, Tableau]]:
    """Each coefficient times 1.01."""

    def grown(row: tuple[float, ...], i: int) -> tuple[float, ...]:
        return (*row[:i], 1.01 * row[i], *row[i + 1 :])

    rows = {name: getattr(tableau, name) for name in ("b", "c", "noise", "levy", "embedded")}
    found = [
        (f"{name}[{i}]", replace(tableau, **{name: grown(row, i)}))
        for name, row in rows.items()
        for i, x in enumerate(row)
        if x
    ]
    for i, row in enumerate(tableau.a):
        for j in [j for j, x in enumerate(row) if x]:
            a = (*tableau.a[:i], grown(row, j), *tableau.a[i + 1 :])
            found.append((f"a[{i}][{j}]", replace(tableau, a=a)))
    return found


@pytest.mark.usefixtures("unshrunk")
@pytest.mark.parametrize("solver", [s for s in strategies.SOLVERS if isinstance(s, RungeKutta)], ids=repr)
def test_one_per_cent_of_any_coefficient_is_found(solver: RungeKutta) -> None:
    # Of each row first the item that finds it with least work.
    first = {"b": "exactness", "embedded": "error estimate", "levy": "levy area"}
    others = ("straight path", "exactness", "clocks", "levy area", "error estimate", "ode order")
    for name, tableau in changed_tableaus(solver.tableau):
        wrong = with_tableau(solver, tableau)

        def finds(item: str, wrong: sa.Solver = wrong) -> bool:
            try:
                check_solver(wrong, only=item)
            except ContractError:
                return True
            return False

        assert any(map(finds, (first.get(name.split("[")[0], "straight path"), *others))), name


# ---------------------------------------------------------------- planted faults: the others


@pytest.mark.parametrize(
    ("fault", "item"),
    [
        ("one per cent", "inverse"),
        ("forgets dB", "inverse"),
        ("wrong state", "inverse"),
        ("edits the state", "inverse"),
    ],
)
@pytest.mark.usefixtures("unshrunk")
def test_faults_of_inverses_are_found(fault: str, item: str) -> None:
    wrong = WrongInverse(sa.Euler(), fault=fault)
    assert "Walk(clock=" in broken(check_reversible, wrong, item)
    if fault == "edits the state":
        assert "in place" in broken(check_reversible, wrong, "purity", only="purity")
    else:
        broken(check_reversible, wrong, "adjoint", only="adjoint")
        if fault != "wrong state":
            broken(check_reversible, wrong, "way back", only="way back")


@pytest.mark.parametrize(
    ("fault", "item"),
    [
        ("wrong time", "inverse"),
        ("doubled lam", "numbers"),
        ("narrow lam", "types"),
        ("flat lam", "types"),
        ("rising lam", "numbers"),
        ("jump", "continuous"),
        ("NaN at the end", "numbers"),
        ("random", "pure"),
        ("clamps", "ends"),
        ("singular t_max", "domain"),
        ("repr", "value"),
        ("falling sigma", "monotone"),
        ("of the mean time", "pure"),
        ("edits t", "types"),
        ("takes NaN", "ends"),
    ],
)
@pytest.mark.usefixtures("unshrunk")
def test_faults_of_schedules_are_found(fault: str, item: str) -> None:
    schedule = OddSchedule(fault=fault)
    broken(check_schedule, schedule, item, only=item)
    if fault == "rising lam":
        broken(check_schedule, schedule, "monotone", only="monotone")


@pytest.mark.parametrize(
    ("fault", "item"),
    [
        ("variance 1.05", "law"),
        ("drift", "law"),
        ("Levy variance 1.05", "law"),
        ("Levy of dB", "law"),
        ("steps correlate", "law"),
        ("repeats from the eighth step on", "law"),
        ("uniform", "law"),
        ("one seed", "law"),
        ("entries alike", "law"),
        ("samples alike", "law"),
        ("in the order of questions", "replay"),
        ("reads the global generator", "generators"),
        ("uses the global generator", "generators"),
        ("uses numpy's generator", "generators"),
        ("uses random", "generators"),
        ("another path each time", "replay"),
        ("float64", "kind"),
        ("H always", "kind"),
        ("hands out its own", "edits"),
        ("counts from the end", "index"),
        ("clamps n", "index"),
        ("never still", "standing still"),
        ("never moves", "standing still"),
        ("moves to infinity", "standing still"),
        ("seed of the dtype", "cast"),
    ],
)
@pytest.mark.usefixtures("unshrunk")
def test_faults_of_noise_are_found(fault: str, item: str) -> None:
    def make(seed: int) -> sa.Noise:
        return OddNoise(fault, seed)

    broken(check_noise, make, item, only=item)


@pytest.mark.parametrize("fault", ["Levy sign", "none"])
def test_paths_that_differ_on_nested_grids_are_found(fault: str) -> None:
    wrong = OddNoise(fault, refinable=fault != "none")
    assert "its parts on the finer one" in broken(
        check_noise, wrong, "nested grids", only="nested grids", refinable=True
    )


WHENS = (
    "long",
    "one step",
    "one sample",
    "undeclared weights",
    "v_prediction",
    "the noise kind",
    "other eta",
    "a flow",
    "two calls",
    "constant x_T",
    "replayed noise",
)


def _double_what_backward_fills(x: Tensor) -> None:
    if not x._post_accumulate_grad_hooks:
        x.register_post_accumulate_grad_hook(lambda x: setattr(x, "grad", 2 * x.grad))


@dataclass(frozen=True)
class Faulty(Adjoint):
    """``Direct`` with the fault that its name says."""

    fault: str

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        x_T = recursion.equation.start
        if self.fault == "refuses the SDE" and recursion.equation.noise_clock is not None:
            raise ValueError("frame: eta > 0 is not for this adjoint; pass adjoint=Checkpoint()")
        if self.fault == "refuses":
            raise ValueError("no; pass adjoint=Checkpoint()")
        if self.fault == "fails" and recursion.steps > 2:
            raise KeyError("step 2")
        out = Direct().solve(recursion, y, keep=keep, observe=observe)
        if self.fault == "rounds":
            return tuple(y * (1 + 1e-15) for y in out)
        if self.fault == "rounds the trajectory" and keep:
            return (out[0] * (1 + 1e-15), *out[1:])
        if self.fault == "random":
            factor = 1 + 1e-12 * float(torch.rand(()))
            return tuple(y.detach() + factor * (y - y.detach()) for y in out)
        if self.fault == "fills .grad" and torch.is_grad_enabled() and x_T.requires_grad:
            out[-1].register_hook(lambda a: setattr(x_T, "grad", torch.zeros_like(x_T)))
        if self.fault == "edits x_T":
            with torch.no_grad():
                x_T.add_(1.0)
        if self.fault == "doubles .grad" and torch.is_grad_enabled() and x_T.requires_grad:
            out[-1].register_hook(lambda a: _double_what_backward_fills(x_T))
        if self.fault == "edits x_T in the backward pass" and out[-1].requires_grad:
            out[-1].register_hook(lambda a: setattr(x_T, "data", x_T.data + 1.0))
        if self.fault == "keeps a graph":
            with torch.enable_grad():
                return tuple(y + torch.zeros((), dtype=y.dtype, requires_grad=True) for y in out)
        if self.fault == "rounds without gradients" and not out[-1].requires_grad:
            return tuple(y * (1 + 1e-15) for y in out)
        if self.fault == "detaches" and recursion.steps > 3:
            return tuple(y.detach().requires_grad_() for y in out)
        return out


@pytest.mark.parametrize(
    ("adjoint", "item"),
    [
        (Scaled(1.01), "basic"),
        (Scaled(1 + 1e-8), "basic"),
        (WithoutNoise(), "gradients"),
        (NotANumber(), "basic"),
        (Forgets("all conditioning"), "basic"),
        (Forgets("the second tensor"), "basic"),
        (Forgets("scheduled tensors"), "gradients"),
        (Forgets("guidance.scale"), "gradients"),
        (Forgets("guidance.unconditional"), "gradients"),
        (Sometimes("float32"), "gradients"),
        *((Sometimes(when), "gradients") for when in WHENS),
        (OnlyOnce(), "hygiene"),
        (Faulty("rounds"), "basic"),
        (Faulty("rounds the trajectory"), "trajectory"),
        (Faulty("detaches"), "gradients"),
        (Faulty("random"), "hygiene"),
        (Faulty("fills .grad"), "hygiene"),
        (Faulty("edits x_T"), "trajectory"),
        (Faulty("edits x_T in the backward pass"), "hygiene"),
        (Faulty("doubles .grad"), "hygiene"),
        (Faulty("keeps a graph"), "without gradients"),
        (Faulty("rounds without gradients"), "without gradients"),
        (Faulty("refuses"), "basic"),
        (Faulty("fails"), "gradients"),
        (sa.Truncated(last=1), "basic"),
        (sa.Truncated(last=3), "gradients"),
        (sa.ContinuousAdjoint(), "basic"),
        (sa.LowVariance(), "basic"),
    ],
    ids=named,
)
@pytest.mark.usefixtures("unshrunk")
def test_faults_of_adjoints_are_found(adjoint: Adjoint, item: str) -> None:
    broken(check_adjoint, adjoint, item, only=item)


def test_a_refusal_is_no_fault() -> None:
    check_adjoint(Faulty("refuses the SDE"), skip=("gradients",))  # as "trajectory" is found, by the same function
    check_adjoint(Scaled(1 + 1e-8), only="gradients", tolerance=1e-7)
    check_adjoint(OnlyOnce(refused=True), only="hygiene")


# ---------------------------------------------------------------- what a failure says


def shown(message: str) -> tuple[str, str]:
    """The code of a message: the call of the check, and the counterexample by hand."""
    code = message.split("  to reproduce:\n")[1]
    lines = [line.removeprefix("    ") for line in code.splitlines()]
    at = lines.index("# or by hand:")
    return "\n".join(lines[:at]), "\n".join(lines[at:])


@pytest.mark.parametrize(
    ("check", "subject", "options"),
    [
        (check_solver, third_party.WRONG, {"only": "ode order"}),
        (check_solver, Odd(fault="edits dB"), {}),
        (check_solver, Odd(fault="widens"), {}),
        (check_solver, Odd(fault="raises"), {}),
        (check_solver, Odd(claimed=sa.Claims(2, 1.5, 2, "space-time")), {"only": "levy area"}),
        (check_solver, Odd(fault="scales dB"), {"only": "strong order"}),
        (check_solver, Keeping(), {"only": "checkpoints"}),
        (check_reversible, WrongInverse(sa.Euler(), fault="wrong state"), {"only": "adjoint"}),
        (check_schedule, OddSchedule(fault="wrong time"), {"only": "inverse"}),
        (check_noise, OddNoise("variance 1.05"), {"only": "law"}),
        (check_noise, OddNoise("in the order of questions"), {}),
        (check_noise, OddNoise("none"), {"refinable": True, "only": "nested grids"}),
        (check_adjoint, Scaled(1.01), {"tolerance": 1e-3}),
        (check_adjoint, WithoutNoise(), {"solver": sa.Heun(), "only": "gradients"}),
    ],
    ids=named,
)
def test_the_code_of_a_failure_runs(
    check: Callable[..., None], subject: Any, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if check not in (check_solver, check_schedule):
        request.getfixturevalue("unshrunk")  # test_counterexamples_are_small has the shrinking of the others
    with pytest.raises(ContractError) as caught:
        check(subject, **options)
    call, by_hand = shown(str(caught.value))
    names = vars(sa) | {"Kutta3": third_party.Kutta3} | globals()
    with pytest.raises(ContractError) as again:
        exec(call, names)
    assert str(again.value) == str(caught.value)  # the same case, found again
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(by_hand, names)
        except (ZeroDivisionError, RuntimeError) as error:
            out.write(type(error).__name__)
    assert out.getvalue()
    if "Error" in out.getvalue():  # as the message says
        assert out.getvalue() in str(caught.value)


def test_counterexamples_are_small() -> None:
    says = broken(check_solver, Odd(fault="loses dB"), "exactness")
    clock = eval(re.search(r"clock=(\(.*?\))", says)[1])  # type: ignore[index]
    assert len(clock) == 2  # one step
    assert "shape=(1,)" in says
    says = broken(check_noise, OddNoise("in the order of questions"), "replay")
    assert len(eval(re.search(r"clock=(\(.*?\))", says)[1])) == 2  # type: ignore[index]
    assert "Solve(solver=Euler(), steps=3, eta=0.0, kind='data'" in broken(check_adjoint, Faulty("fails"), "gradients")


def test_the_third_party_solver_is_found_by_one_line() -> None:
    says = broken(check_solver, third_party.WRONG, "ode order")
    assert "order 3 is claimed" in says
    with contextlib.redirect_stdout(io.StringIO()) as out:
        third_party.main()
    assert out.getvalue() == says + "\n"


def test_objects_without_a_repr_are_named() -> None:
    says = broken(check_solver, Counting(), "purity")
    assert "check_solver(solver)" in says
    assert "solver = ...  # the object that was checked" in says


def test_items_can_be_chosen() -> None:
    wrong = Odd(fault="loses dB")
    check_solver(wrong, only="clocks")
    broken(check_solver, Odd(claimed=sa.Claims(2, 1.0, 3)), "evaluations", skip=("claims", "purity"))
    for options in ({"only": "order"}, {"skip": ("order",)}):
        with pytest.raises(ValueError, match="only, skip: got 'order'; pass names from 'claims', 'purity'"):
            check_solver(wrong, **options)


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (check_solver, sa.Heun, r"solver: got the class Heun; pass an object of a subclass of sdeadjoint\.Solver"),
        (check_solver, 3, "solver: got int"),
        (check_reversible, sa.Heun(), r"solver: got Heun; pass a ReversibleSolver such as Coupled\(Heun\(\)\)"),
        (check_schedule, sa.VE, "schedule: got the class VE; pass an object"),
        (check_adjoint, sa.Direct, "adjoint: got the class Direct; pass an object"),
        (check_noise, 3, r"noise: got 3; pass Noise such as BrownianPath\(seed=0\), or a function make\(seed\)"),
        (check_noise, math.sqrt, "noise: got <built-in function sqrt>"),
    ],
    ids=named,
)
def test_other_things_are_refused(check: Callable[..., None], value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        check(value)


def test_checks_leave_global_generators_alone() -> None:
    state = torch.get_rng_state()
    check_solver(sa.Euler(), only="purity")
    check_solver(sa.Euler(), only="surroundings")
    check_noise(sa.BrownianPath(0), only="generators")
    check_adjoint(sa.Checkpoint(), only="basic")
    assert torch.equal(torch.get_rng_state(), state)


def test_checks_work_under_another_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for item in ("surroundings", "kind", "exactness", "precision", "straight path", "levy area"):
            check_solver(sa.ShARK(), only=item)
        check_schedule(sa.VPLinear(), only="types")
    finally:
        torch.set_default_dtype(torch.float32)

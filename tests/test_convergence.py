"""Studies: paths that nest, references, orders, verdicts, resuming, and a user's own solver."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.convergence import (
    Gradient,
    Paths,
    Reverse,
    RoundTrip,
    Setting,
    State,
    Study,
    Weak,
    draw_orders,
    draw_work_precision,
    fit,
    measure,
    settings,
    work_precision,
)
from sdeadjoint.convergence.errors import Errors
from sdeadjoint.convergence.errors import runs as runs_of
from sdeadjoint.convergence.levy import why_not
from sdeadjoint.convergence.quantities import Quantity
from sdeadjoint.convergence.result import cost_of, dumps
from sdeadjoint.convergence.settings import Run
from sdeadjoint.convergence.slope import Slope
from sdeadjoint.convergence.verdict import Verdict, judge, known_floors, verdict
from sdeadjoint.noise.refinable import Piece, combine
from sdeadjoint.solvers.runge_kutta import RungeKutta, Tableau
from sdeadjoint.testing.strategies import SOLVERS
from tests.quick_settings import quick
from tests.wrong_adjoints import Scaled
from theory.guarantees import GUARANTEES

F64 = torch.float64
HALF_WIDTH = 0.15
EPS = torch.finfo(F64).eps
MILD, LINE, STANDARDISED = map(quick, (settings.mild(1.0, "flow"), settings.line(), settings.standardised()))


def clock(steps: int) -> Tensor:
    return torch.linspace(-3.0, 2.0, steps + 1, dtype=F64, device="cpu").exp()


@pytest.mark.parametrize("factor", [1, 2, 3, 6, 12])
def test_coarsened_paths_are_chens_relation(factor: int) -> None:
    fine = Paths.draw(clock(12), (5, 2), seed=0)
    coarse = fine.coarsened(factor)
    for n in range(12 // factor):
        parts = range(n * factor, (n + 1) * factor)
        pieces = [Piece(float(fine.clock.diff()[j]), fine.dB[j], fine.H[j]) for j in parts]
        whole = pieces[0]
        for piece in pieces[1:]:
            whole = combine(whole, piece)
        torch.testing.assert_close(coarse.dB[n], whole.W, rtol=0, atol=100 * EPS)
        torch.testing.assert_close(coarse.H[n], whole.H, rtol=0, atol=100 * EPS)
    assert torch.equal(coarse.clock, fine.clock[::factor])


def test_drawn_and_coarsened_paths_have_the_law_of_a_brownian_path() -> None:
    for paths in (Paths.draw(clock(6), (40000,), seed=1), Paths.draw(clock(12), (40000,), seed=1).coarsened(2)):
        h = paths.clock.diff()
        # Standard deviations of a variance and of a correlation over 40000 draws are 0.7 and 0.5 %; five of them.
        torch.testing.assert_close(paths.dB.var(1) / h, torch.ones(6, dtype=F64), rtol=0, atol=0.035)
        torch.testing.assert_close(12 * paths.H.var(1) / h, torch.ones(6, dtype=F64), rtol=0, atol=0.035)
        numbers = torch.cat([paths.dB, paths.H])
        correlation = torch.corrcoef(numbers) - torch.eye(12, dtype=F64)
        assert correlation.abs().max() < 0.025


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("make", [settings.mild, settings.line, settings.steered])
def test_drifts_that_are_written_out_are_those_of_the_settings(make: Callable[..., Setting], kind: str) -> None:
    """States, and gradients in the start, the weights and the noise, in the same solves."""
    setting, found = make(0.5, kind), []
    for own in (setting, quick(setting)):
        (run, *_) = runs(Study(sa.ShARK(), own, steps=(4, 8, 16), paths=30, finer=2, reference=sa.Heun()))[1:]
        assert run.paths is not None
        dB = run.paths.dB.clone().requires_grad_()
        x = run.driven_by(sa.FixedNoise(dB, run.paths.H), sa.Direct())
        found.append([x.detach(), *torch.autograd.grad(x.sin().sum(), [dB, *setting.equation.weights])])
    # 16 steps, of some 50 roundings each, of numbers of size 1; 60 of their gradients are added up in a weight.
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def standard(solver: sa.Solver, paths: int = 1000) -> Study:
    setting = replace(quick(settings.mixture()), scale=0.0)
    return Study(solver, setting, steps=(16, 32, 64), paths=paths, finer=8)


def test_errors_are_those_of_an_independent_program() -> None:
    """diffrax's ShARK with a virtual Brownian tree reads 0.059, 0.017, 0.0048; either has 3 to 4 % of noise."""
    assert measure(standard(sa.ShARK())).rms == pytest.approx((0.059, 0.017, 0.0048), rel=0.12)


STEPS = (16, 32, 64, 128)
HALF = (8, 16, 32, 64)
LONG = (16, 32, 64, 128, 256, 512)
HALF_AS_LONG = (8, 16, 32, 64, 128, 256)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.SRA1(), sa.ShARK()], ids=repr)
@pytest.mark.parametrize("quantity", [State(), Gradient(adjoint=sa.Direct())], ids=["states", "gradients"])
def test_strong_orders(solver: sa.Solver, quantity: State | Gradient) -> None:
    # States reach their orders on coarser grids than gradients; intervals and bounds are the same.
    steps, finer = (HALF, 4) if quantity == State() else (STEPS, 2)
    result = measure(Study(solver, MILD, quantity, steps=steps, paths=200, finer=finer))
    (proved,) = {g.order for g in GUARANTEES if g.subject == repr(solver) and g.quantity == "strong"}
    assert result.verdict.claimed == proved
    assert result.verdict.holds, result
    assert result.half_width <= HALF_WIDTH
    if proved == 1.0:  # and no more than claimed, so that the study tells the two orders apart
        assert result.interval[1] < 1.25


def test_increments_standardised_on_the_sigma_clock_cap_the_order_at_one() -> None:
    result = measure(Study(sa.SRA1(), STANDARDISED, steps=STEPS, paths=200))
    assert result.slope == pytest.approx(1.0, abs=0.15)
    assert result.verdict.claimed == 1.0
    assert result.half_width <= HALF_WIDTH


def test_rms_and_median_differ_on_a_well_separated_mixture() -> None:
    result = measure(Study(sa.Euler(), quick(settings.separated()), steps=STEPS, paths=400))
    assert result.slope < 0.8
    assert result.median_fit is not None
    assert result.median_fit.slope == pytest.approx(1.0, abs=0.1)
    assert result.verdict.outcome == "inconclusive"


def test_standardised_increments_have_the_law_of_the_other_clock() -> None:
    onto = clock(6) ** 2
    paths = Paths.draw(clock(6), (40000,), seed=1).standardised_onto(onto)
    torch.testing.assert_close(paths.dB.var(1) / onto.diff(), torch.ones(6, dtype=F64), rtol=0, atol=0.035)
    torch.testing.assert_close(12 * paths.H.var(1) / onto.diff(), torch.ones(6, dtype=F64), rtol=0, atol=0.035)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4(), sa.DPMSolverPP2M()], ids=repr)
@pytest.mark.parametrize("quantity", [State(), Gradient(adjoint=sa.Direct())], ids=["states", "gradients"])
def test_orders_without_noise_against_quantile_transport(solver: sa.Solver, quantity: State | Gradient) -> None:
    result = measure(Study(solver, LINE, quantity, steps=HALF, paths=60))
    assert result.slope == pytest.approx(solver.claims.ode, abs=0.15)
    assert result.verdict.holds, result


def test_quantile_transport_is_no_reference_of_the_sde() -> None:
    assert settings.line(1.0).exact is None
    assert measure(Study(sa.Heun(), quick(settings.line(1.0)), steps=STEPS, paths=100, finer=2)).verdict.holds


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_the_gaussians_closed_form_is_a_reference(kind: str) -> None:
    study = Study(sa.Heun(), settings.gaussian(0.5, kind), steps=STEPS, paths=200)
    assert study.judge is None
    assert measure(study).slope == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("of", ["cond", "weights", "noise"])
@pytest.mark.parametrize(("solver", "finer"), [(sa.Euler(), 2), (sa.ShARK(), 4)], ids=["Euler", "ShARK"])
def test_gradients_of_everything_converge(solver: sa.Solver, finer: int, of: str) -> None:
    """D3 and N3 through the samplers, where the two clocks differ; 150 paths leave a slope open by 0.1 to 0.2."""
    quantity = Gradient(of, adjoint=sa.Direct(), block=15)  # ten blocks, each of which is a backward pass
    setting = quick((settings.mild if of == "noise" else settings.steered)(0.5, "flow"))
    result = measure(Study(solver, setting, quantity, steps=(8, 16, 32), paths=150, finer=finer))
    assert result.slope > solver.claims.strong - 0.3
    assert solver != sa.Euler() or result.slope < 1.3


def test_the_error_of_the_reference_is_that_of_whole_blocks() -> None:
    @cache
    def uncertainty(block: int) -> float:
        quantity = Gradient("weights", adjoint=sa.Direct(), block=block)
        return measure(
            Study(sa.Euler(), quick(settings.steered()), quantity, steps=(8, 16, 32), paths=480, finer=2)
        ).uncertainty

    # Blocks of other paths differ by six times as much as those of other steps. The pilot's 200 paths are whole blocks
    # of 40, and not of 48.
    assert 0.5 < uncertainty(48) / uncertainty(40) < 2


def test_gradients_in_the_weights_do_not_depend_on_how_blocks_are_solved() -> None:
    kinds = (sa.Direct(), sa.Checkpoint())
    rows = []
    for adjoint in kinds:
        quantity = Gradient("weights", adjoint=adjoint, block=4)
        rows.append(
            measure(Study(sa.Euler(), quick(settings.steered()), quantity, steps=(1, 2, 4), paths=40, finer=2)).errors
        )
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-8)  # relative to errors of 1e-2 of the gradients


def test_weak_errors_use_common_random_numbers() -> None:
    result = measure(Study(sa.Euler(), MILD, Weak(), steps=STEPS, paths=1000))
    assert result.verdict.holds, result
    assert result.slope == pytest.approx(1.0, abs=0.1)
    assert all(deviation < result.rms[i] / 30 for i, (_, deviation) in enumerate(result.mean))  # 1000^-1/2


def test_weak_errors_that_are_lost_in_the_noise_are_not_called_an_order() -> None:
    result = measure(Study(sa.Heun(), MILD, Weak(), steps=(32, 64, 128), paths=50))
    assert result.verdict.outcome == "inconclusive"
    assert "standard errors" in result.dropped[-1].reason
    assert "paths" in result.verdict.reason
    assert math.isnan(result.slope)


def test_round_trips() -> None:
    plain = measure(Study(sa.Heun(), LINE, RoundTrip(), steps=STEPS, paths=60))
    assert plain.slope > 1.85
    exact = measure(Study(sa.ReversibleHeun(), LINE, RoundTrip(), steps=STEPS, paths=60))
    assert exact.verdict.holds, exact
    assert max(exact.rms) < 1e-9


def test_single_precision_shows_its_floor() -> None:
    study = Study(sa.RK4(), LINE, steps=(8, 16, 32, 64, 128, 256), paths=60, dtype=torch.float32)
    result = measure(study)
    assert {gone.steps for gone in result.dropped} >= {128, 256}
    assert result.verdict.outcome != "violated"


def runs(study: Study) -> list[Run]:
    return [run for _, run in runs_of(study, 0)]


@pytest.mark.parametrize(
    "quantity", [State(), Weak(), RoundTrip(), *(Gradient(of, adjoint=sa.Direct()) for of in ("x_T", "cond", "noise"))],
    ids=lambda quantity: quantity.name,
)  # fmt: skip
def test_each_row_is_of_one_path(quantity: Quantity) -> None:
    setting = settings.steered() if quantity == Gradient("cond", adjoint=sa.Direct()) else settings.mild()
    run = runs(Study(sa.Heun(), setting, quantity, steps=(2, 4, 8), paths=30, finer=2))[-2]
    assert run.paths is not None
    assert run.paths.steps == 4  # two steps in each cell
    rows = quantity.evaluate(run)
    for i in (0, 17, 29):  # elementwise: what is left is the rounding of vectorised kernels
        torch.testing.assert_close(
            rows[i : i + 1], quantity.evaluate(run.part(slice(i, i + 1))), rtol=1e-12, atol=1e-14
        )


def test_all_levels_see_one_path_where_steps_do_not_divide_one_another() -> None:
    whole = [run.paths for run in runs(Study(sa.Euler(), steps=(8, 12, 24), paths=30, finer=2))]
    assert [paths.steps for paths in whole if paths] == [48, 24, 24, 12, 8]
    for paths in whole:
        assert paths is not None
        assert whole[0] is not None
        fine, i = whole[0].dB, slice(0, paths.dB.shape[1])  # the pilot has the first paths only
        torch.testing.assert_close(paths.dB, fine.unflatten(0, (paths.steps, -1)).sum(1)[:, i], rtol=0, atol=1e3 * EPS)


def test_starts_have_the_size_of_the_noise_where_the_grid_begins() -> None:
    schedule = sa.VPLinear()
    line = settings.line()
    for t_max in (float(schedule.time(1.0)), None):  # sigma is 0.35 at the former
        setting = replace(line, equation=replace(line.equation, t_max=t_max))  # type: ignore[type-var, call-arg]
        unit = replace(setting, scale=1.0).start(30, 0)
        assert torch.equal(setting.start(30, 0), schedule.sigma(setting.equation.grid(4)[0]) * unit)


def test_starts_and_paths_are_independent() -> None:
    study = Study(sa.Euler(), steps=(2, 4, 8), paths=20000, finer=2, batch=20000)
    coarse = runs(study)[-1]
    assert coarse.paths is not None
    numbers = torch.cat([coarse.x_T.T, coarse.paths.dB.mT.flatten(0, 1), coarse.paths.H.mT.flatten(0, 1)])
    correlation = torch.corrcoef(numbers) - torch.eye(len(numbers), dtype=F64)
    # Standard deviations of a correlation over 20000 draws are 0.7 %; five of them.
    assert correlation.abs().max() < 0.035


@dataclass(frozen=True)
class Dtypes(State):
    """The state, and in which dtype each solve began."""

    seen: list[torch.dtype]

    def evaluate(self, run: Run) -> Tensor:
        self.seen.append(run.x_T.dtype)
        return super().evaluate(run)


def test_the_reference_is_always_in_double_precision() -> None:
    quantity = Dtypes([])
    measure(Study(sa.Euler(), MILD, quantity, steps=(8, 16, 32), paths=30, dtype=torch.float32))
    assert quantity.seen.count(F64) == 2  # the reference and its pilot
    assert quantity.seen.count(torch.float32) == 3  # the levels


def law(slope: float, error: float) -> Slope:
    return Slope(slope, (slope - error, slope + error), 1.0, (8, 16, 32))


@pytest.mark.parametrize(
    ("median", "finest", "outcome"), [(0.6, 0.65, "violated"), (0.98, 0.65, "inconclusive"), (0.6, 0.6, "inconclusive")]
)
def test_a_low_rms_order_is_no_violation_while_medians_or_last_levels_agree(
    median: float, finest: float, outcome: str
) -> None:
    distances = np.array([1.5, 1.0, finest])[:, None] * np.ones((3, 50))
    errors = Errors(distances, distances, 1.0, 0.0, (0.0,) * 3)
    study = Study(sa.Euler(), steps=(8, 16, 32), paths=50)
    assert verdict(study, errors, law(0.6, 0.05), law(median, 0.05)).outcome == outcome


@dataclass(frozen=True)
class Ralston(sa.Solver):
    """A user's own solver, with a second stage at ``at`` of the step; it is of order 2 where ``at`` is 2/3."""

    at: float = 2 / 3
    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.0, evaluations=2)

    def step(
        self, drift: Callable[[float, Tensor], Tensor], interval: sa.Interval, y: Tensor, state: tuple[object, ...]
    ) -> tuple[Tensor, tuple[object, ...]]:
        F = drift(interval.s0, y)
        Y = y + self.at * (interval.ds * F + interval.dB)
        G = drift(interval.at(self.at), Y)
        return y + interval.ds * (F / 4 + 3 * G / 4) + interval.dB, state


def test_a_users_own_solver_is_checked_by_one_line() -> None:
    assert measure(Study(Ralston(), LINE, steps=STEPS, paths=60)).verdict.holds
    wrong = measure(Study(Ralston(0.75), LINE, steps=STEPS, paths=60))
    assert wrong.verdict.outcome == "violated", wrong


@dataclass(frozen=True)
class SevenTwelfths(RungeKutta):
    """A tableau whose quadratic condition is 7/12 in place of 1/2, so that its strong order is 1 and not 1.5."""

    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.5, evaluations=2, levy="space-time")
    tableau: ClassVar[Tableau] = Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0), noise=(0.0, 1.0), levy=(1.0, 1.0))


@dataclass(frozen=True)
class WithoutTableau(sa.Solver):
    """The same method, written out."""

    claims: ClassVar[sa.Claims] = SevenTwelfths.claims

    def step(
        self, drift: Callable[[float, Tensor], Tensor], interval: sa.Interval, y: Tensor, state: tuple[object, ...]
    ) -> tuple[Tensor, tuple[object, ...]]:
        return SevenTwelfths().step(drift, interval, y, state)


@pytest.mark.parametrize("solver", [SevenTwelfths(), WithoutTableau()], ids=repr)
def test_a_strong_order_that_the_algebra_excludes_is_violated(solver: sa.Solver) -> None:
    found = measure(Study(solver, MILD, steps=(4, 8, 16), paths=30, finer=2)).verdict
    assert found.outcome == "violated"
    assert "adds 0.5833 h in the mean, and int B^2 ds has h/2" in found.reason
    # Where no such order is claimed, its claims may hold: 2 without noise, and 1 on another clock.
    assert measure(Study(solver, LINE, steps=STEPS, paths=60)).verdict.holds
    assert "h/2" not in measure(Study(solver, STANDARDISED, steps=(4, 8, 16), paths=30)).verdict.reason


def test_what_orders_above_one_need() -> None:
    for proved in (sa.SRA1(), sa.ShARK(), sa.Coupled(sa.ShARK()), sa.Coupled(sa.SRA1(), zeta=0.9)):
        assert why_not(proved, 1.5) == ""
    for solver in SOLVERS:
        assert why_not(solver, solver.claims.strong) == ""
        assert why_not(solver, solver.claims.weak, weak=True) == ""
    assert "0.0000 dB h" in why_not(sa.Euler(), 1.5)
    assert "0.0000 H h, and int B ds has 1 H h" in why_not(sa.Heun(), 1.5)
    assert why_not(sa.Heun(), 2.0, weak=True) == ""
    assert "0.2500 h in the mean" in why_not(sa.Midpoint(), 2.0, weak=True)
    assert "above 1.5 needs more of the path" in why_not(sa.ShARK(), 2.0)


def test_the_default_problem_shows_the_order_one_and_a_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdeadjoint.convergence.verdict.why_not", lambda *args, **options: "")
    steps = (32, 64, 128, 256)
    default = quick(Study(sa.ShARK()).setting)
    right, wrong = (measure(Study(solver, default, steps=steps, paths=200)) for solver in (sa.ShARK(), SevenTwelfths()))
    assert right.verdict.holds, right
    assert right.slope == pytest.approx(1.5, abs=0.15)
    assert not wrong.verdict.holds, wrong
    assert wrong.slope < 1.35


def two_orders(low: float, share: float, paths: int, seed: int) -> tuple[Study, Errors]:
    """Errors of order ``low`` under some of order 2, whose share of the square is ``share`` on the last two grids."""
    steps = np.array(LONG, dtype=np.float64)
    last = (steps[-1] * steps[-2]) ** 0.5
    rng = np.random.default_rng(seed)
    a, b = (np.linalg.norm(rng.normal(size=(1, paths, 2)) + 0.3 * rng.normal(size=(6, paths, 2)), axis=2) for _ in "ab")
    low_part = (last / steps) ** low * (1 - share) ** 0.5
    distances = np.hypot(low_part[:, None] * a, ((last / steps) ** 2 * share**0.5)[:, None] * b)
    study = Study(sa.ShARK(), steps=LONG, paths=paths)
    return study, Errors(distances, distances, 1.0, 0.0, (0.0,) * 6)


def judged(study: Study, errors: Errors) -> Verdict:
    """As ``measure`` does; the median matters only where the interval of the rms lies below the claim."""
    law_ = median = fit(study.steps, errors.signed, floors=known_floors(study, errors))
    if judge(law_.slope, law_.interval, study.order, errors.signed.shape[1]).outcome == "violated":
        median = fit(study.steps, errors.distances, statistic="median", window=law_.steps)
    return verdict(study, errors, law_, median)


def test_an_order_on_its_way_below_the_claim_does_not_hold() -> None:
    """The local orders fall as 1.95, 1.84, 1.60, say: to 1, where there is a term of order 1."""
    outcomes = [judged(*two_orders(1.0, 0.52, 500, seed)) for seed in range(20)]
    assert {found.outcome for found in outcomes} <= {"inconclusive", "violated"}
    assert any("on its way below the claim" in found.reason for found in outcomes)
    # Where the term is of order 1.5, as claimed, the order stays above, wherever on its way from 2 it is.
    for share in (0.05, 0.3, 0.5, 0.7, 0.95):
        held = [judged(*two_orders(1.5, share, 500, seed)).holds for seed in range(20)]
        assert np.mean(held) >= 0.9, share


@dataclass(frozen=True)
class Biased(sa.Solver):
    """Heun with weights that add up to 1 + d: it converges, with order 2, to the solution of another equation."""

    d: float
    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.0, evaluations=2)

    def step(
        self, drift: Callable[[float, Tensor], Tensor], interval: sa.Interval, y: Tensor, state: tuple[object, ...]
    ) -> tuple[Tensor, tuple[object, ...]]:
        F = drift(interval.s0, y)
        G = drift(interval.s1, y + interval.ds * F + interval.dB)
        return y + (1 + self.d) * interval.ds * (F + G) / 2 + interval.dB, state


@dataclass(frozen=True)
class OffMidpoint(sa.Solver):
    """The midpoint rule with its node off by d: of order 1, with a small constant."""

    d: float
    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.0, evaluations=2)

    def step(
        self, drift: Callable[[float, Tensor], Tensor], interval: sa.Interval, y: Tensor, state: tuple[object, ...]
    ) -> tuple[Tensor, tuple[object, ...]]:
        at = 0.5 + self.d
        Y = y + at * interval.ds * drift(interval.s0, y)
        return y + interval.ds * drift(interval.at(at), Y) + interval.dB, state


@pytest.mark.parametrize(
    ("solver", "eta", "steps", "outcome", "reason"),
    [
        (Biased(4e-4), 0.0, HALF_AS_LONG, "violated", "stand still"),
        (Biased(1e-2), 1.0, STEPS, "violated", "claimed 1"),
        (Biased(4e-5), 0.0, HALF_AS_LONG, "inconclusive", "stand still"),
        (OffMidpoint(1e-4), 0.0, LONG, "inconclusive", "stand still"),
        (OffMidpoint(3e-4), 0.0, LONG, "violated", "stand still"),
        (OffMidpoint(-1e-3), 0.0, (8, 16, 32, 64), "inconclusive", "from 32 to 64 steps"),
    ],
)
def test_errors_of_a_wrong_solver_that_stand_still_never_hold(
    solver: sa.Solver, eta: float, steps: tuple[int, ...], outcome: str, reason: str
) -> None:
    found = measure(Study(solver, quick(settings.mild()) if eta else LINE, steps=steps, paths=100)).verdict
    assert found.outcome == outcome
    assert reason in found.reason


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_wrong_adjoint_does_not_judge_itself(eta: float) -> None:
    quantity = Gradient(adjoint=Scaled(0.9))
    found = measure(Study(sa.Heun(), quick(settings.mild(eta)), quantity, steps=(8, 16, 32), paths=60, finer=2)).verdict
    assert found.outcome == "violated"


def test_the_reference_is_never_the_method_under_test() -> None:
    for solver in (sa.Euler(), sa.Heun(), sa.SRA1(), sa.ShARK()):
        for setting in (settings.mild(), settings.mild(0.5), settings.mild(1.0, "noise"), settings.standardised()):
            assert Study(solver, setting).judge not in (None, solver)


def test_what_is_known_of_the_reference_does_not_depend_on_the_method_under_test() -> None:
    found = [
        measure(Study(solver, quick(settings.mild(0.0)), steps=(8, 16, 32), paths=30, reference=sa.Heun())).uncertainty
        for solver in (sa.Euler(), sa.RK4())
    ]
    assert found[0] == found[1] > 0


@dataclass(frozen=True)
class Powers(Quantity):
    """``u N^-order`` on N steps, u another number for each path: the errors of a method whose leading term is all."""

    exponent: int

    @property
    def name(self) -> str:
        return "powers"

    def evaluate(self, run: Run) -> Tensor:
        return run.x_T.reshape(len(run.x_T), -1)[:, :1] * float(len(run.grid) - 1) ** -self.exponent


@pytest.mark.parametrize(
    ("reference", "doubtful"), [(sa.Euler(), {32, 64}), (sa.Heun(), {64}), (sa.RK4(), set())], ids=repr
)
def test_levels_within_four_times_the_error_of_the_reference_are_dropped(
    reference: sa.Solver, doubtful: set[int]
) -> None:
    """A reference of order p on 128 steps is off by ``u 128^-p``; 64 steps differ from it by ``2^p - 1`` of that, 32 by
    ``4^p - 1``."""
    order = reference.claims.ode
    setting = replace(settings.line(), exact=None)
    study = Study(sa.Euler(), setting, Powers(order), steps=(4, 8, 16, 32, 64), paths=40, finer=2, reference=reference)
    found = measure(study)
    spread = found.rms[0] / (4.0**-order - 128.0**-order)  # rms of u
    assert found.uncertainty == pytest.approx(spread * 128.0**-order, rel=1e-9)
    assert {gone.steps for gone in found.dropped if "the reference" in gone.reason} == doubtful


def test_gradients_in_the_noise_are_derivatives_along_the_path() -> None:
    """Along paths that are linear on a cell, on the noise clock, with unit Cameron-Martin norm: by central differences.

    In the flow kind with eta = 0.5 both clocks are curved, and unlike each other.
    """
    setting = settings.mild(0.5, "flow")
    study = Study(sa.Heun(), setting, Gradient("noise", adjoint=sa.Direct()), steps=(2, 4, 8), paths=30, finer=2)
    run = next(run for run in runs(study) if len(run.grid) == 5 and run.solver == sa.Heun())
    assert run.paths is not None
    nu = setting.equation.noise_clock(run.grid)
    assert nu is not None
    rows, dnu, eps = study.quantity.evaluate(run), nu.diff(), 1e-5
    dims = run.x_T.shape[1]
    for cell in range(2):
        own = torch.zeros(4, dtype=F64).index_fill(0, torch.tensor([2 * cell, 2 * cell + 1]), 1.0)
        direction = own * dnu / (own * dnu).sum().sqrt()
        for i in range(dims):
            move = torch.zeros_like(run.paths.dB)
            move[:, :, i] = eps * direction[:, None]
            ends = [
                run.driven_by(sa.FixedNoise(run.paths.dB + sign * move, run.paths.H), sa.Direct()) for sign in (1, -1)
            ]
            losses = [(x**2 / 2).sum(1) for x in ends]
            # Central differences of smooth functions of size 1: eps^2, and rounding over eps.
            torch.testing.assert_close(
                rows[:, cell * dims + i], (losses[0] - losses[1]) / (2 * eps), rtol=1e-6, atol=1e-8
            )


class InterruptedStudyError(Exception):
    """Stands for Ctrl-C."""


def test_an_interrupted_study_continues_and_gives_the_same_numbers(tmp_path: Path) -> None:
    study = Study(sa.Euler(), steps=(8, 16, 32), paths=50)
    record, whole = tmp_path / "a.json", measure(study)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise InterruptedStudyError

    with pytest.raises(InterruptedStudyError):
        measure(study, resume=record, progress=stop)
    before = record.read_text()
    assert 1 < len(before.splitlines()) < 6  # the head, and fewer than five solves
    continued = measure(study, resume=record)
    after = record.read_text()
    assert after.startswith(before)  # nothing was solved twice
    assert len(after.splitlines()) == 6
    again = measure(study, resume=record)
    assert record.read_text() == after
    for result in (continued, again):
        assert np.array_equal(result.errors, whole.errors)
        assert (result.slope, result.interval, result.dropped) == (whole.slope, whole.interval, whole.dropped)
    with pytest.raises(ValueError, match="another study"):
        measure(replace(study, seed=1), resume=record)


def test_a_line_that_was_being_written_costs_itself_alone(tmp_path: Path) -> None:
    study, record = Study(sa.Euler(), steps=(2, 4, 8), paths=30, finer=2), tmp_path / "a.jsonl"
    whole = measure(study, resume=record)
    text = record.read_text()
    for kept in (text[:-1], text[: 1 - len(text.splitlines(keepends=True)[-1])], text[:20]):
        record.write_text(kept)
        assert np.array_equal(measure(study, resume=record).errors, whole.errors)
        assert [line.split('"values"')[1] for line in record.read_text().splitlines()[1:]] == [
            line.split('"values"')[1] for line in text.splitlines()[1:]
        ]
    no_number, no_table = text.replace('"batch": 0', '"batch": "0"'), text.replace('"values": [[', '"values": [')
    for spoilt in ("{}\n", "[]", no_number, no_table):
        record.write_text(spoilt)
        with pytest.raises(ValueError, match="holds no study"):
            measure(study, resume=record)
    old = {"format": 1, "fingerprint": study.fingerprint(), "pieces": {}}  # as earlier versions wrote them
    record.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="holds"):
        measure(study, resume=record)


TWELVE = Gradient("weights", block=12)


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [1000]),  # 2048 numbers of the plane are 1024 paths
        ({"paths": 2500}, [834, 834, 832]),
        ({"batch": 50, "paths": 120}, [40, 40, 40]),
        ({"batch": 50, "paths": 120, "quantity": TWELVE, "setting": settings.steered()}, [48, 48, 24]),
        ({"setting": settings.line(0.0), "paths": 3000}, [1500, 1500]),
        ({"setting": settings.of_problem(sa.problems.Mixture([1.0], [[0.0] * 64], 1.0)), "paths": 100}, [50, 50]),
        # 2^24 numbers of dB: 4 paths of 1024 numbers on 4096 steps.
        ({"setting": settings.of_problem(sa.problems.Mixture([1.0], [[0.0] * 1024], 1.0)), "paths": 30}, [4] * 7 + [2]),
    ],
)
def test_batches(changes: dict[str, object], sizes: list[int]) -> None:
    assert Study(sa.Euler(), **changes).batches == sizes  # type: ignore[arg-type]


def test_batches_of_paths_are_independent() -> None:
    # All start at one point: only their Brownian paths tell them apart.
    study = Study(sa.Euler(), replace(MILD, scale=0.0), steps=(8, 16, 32), paths=60, batch=15)
    result = measure(study)
    assert result.errors.shape == (3, 60)
    assert len(np.unique(result.errors[0])) == 60


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((0.9, 1.1), "holds"),
        ((1.4, 1.6), "holds"),
        ((0.5, 0.7), "violated"),
        ((0.7, 1.1), "inconclusive"),
        ((0.7, 0.9), "inconclusive"),
    ],
)
def test_verdicts(interval: tuple[float, float], outcome: str) -> None:
    found = judge(sum(interval) / 2, interval, 1.0, paths=100)
    assert found.outcome == outcome
    # Half-width 0.2, distance 0.05 to the bar 0.85: 16 times the paths, and a tenth of safety squared.
    assert interval != (0.7, 1.1) or "2000 paths" in found.reason


def test_tables_json_and_plots(tmp_path: Path) -> None:
    results = [measure(Study(solver, MILD, steps=(8, 16, 32), paths=50)) for solver in (sa.Euler(), sa.ShARK())]
    assert "claimed 1.5" in results[1].table()
    assert "Euler(), calls" in work_precision(results)
    assert json.loads(dumps(results))[0]["steps"] == [8, 16, 32]
    assert "(allowance 0.15)" in results[1].table()
    assert "states: mild mixture in the plane, eta = 1, flow kind, 50 paths" in results[1].table()
    # One function, ``plots._figure``, writes both figures, whatever the suffix.
    formats = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    figures = (("orders", draw_orders, (".png", ".svg")), ("work", draw_work_precision, (".pdf", ".svg")))
    for name, draw, suffixes in figures:
        for suffix in suffixes:
            path = (tmp_path / name).with_suffix(suffix)
            draw(results, path)
            assert path.read_bytes().startswith(formats[suffix])
    # matplotlib writes each text of an SVG as a comment too.
    common = ("mild mixture in the plane", "rms error of states on the same paths", "claimed 1.5 (allowance 0.15): ")
    for name, told in (("orders", ("order 1.5, as claimed", "1.35 holds")), ("work", ("network calls per sample",))):
        text = (tmp_path / f"{name}.svg").read_text()
        assert all(words in text for words in (*common, *told))


def solved() -> Setting:
    """With conditioning, weights, and an exact solution of something."""
    return replace(settings.steered(), exact=settings.gaussian().exact)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Study(sa.Euler(), steps=(8, 16)), "steps: got"),
        (lambda: Study(sa.Euler(), steps=(8, 12, 32)), r"\[12\] do not divide"),
        (lambda: Study(sa.Euler(), paths=5), "paths: got 5"),
        (lambda: Study(sa.Euler(), finer=1), "finer: got 1"),
        (lambda: Study(sa.Euler(), batch=0), "batch: got 0"),
        (lambda: Study(sa.Euler(), settings.steered(), Gradient("weights"), paths=200), "200 make only 8 blocks of 25"),
        (lambda: Study(sa.Euler(), quantity=Gradient("cond")), "the setting has none"),
        (lambda: Study(sa.Euler(), quantity=Gradient("weights")), "no parameters"),
        (lambda: Study(sa.Euler(), settings.line(), Gradient("noise")), "eta > 0"),
        (lambda: Study(sa.Euler(), solved(), Gradient("cond")), "does not give"),
        (lambda: Study(sa.Euler(), solved(), Gradient("weights")), "does not give"),
        (lambda: Gradient("x_0"), "of: got 'x_0'"),
    ],
)
def test_refusals(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_costs_are_read_off_between_the_levels() -> None:
    found = measure(Study(sa.Euler(), MILD, steps=(8, 16, 32), paths=30))
    # Errors of order 2 for the calls, of order 1 for the seconds, exactly.
    law = replace(found, rms=(1.0, 0.25, 0.0625), calls=(8, 16, 32), seconds=(1.0, 4.0, 16.0), mean=())
    for error in (1.0, 0.7, 0.25, 0.2, 0.0625):
        assert cost_of(law, error) == pytest.approx(8 * error**-0.5)
        assert cost_of(law, error, "seconds") == pytest.approx(1 / error)
    assert math.isnan(cost_of(law, 1.1))
    assert math.isnan(cost_of(law, 0.06))


def test_local_orders_of_a_table_are_by_its_own_steps() -> None:
    found = measure(Study(sa.Euler(), MILD, steps=(8, 16, 64), paths=30))
    rows = replace(found, rms=(1.0, 0.25, 0.25 / 16), mean=()).table().splitlines()[2:5]
    assert [row.split()[4] for row in rows[1:]] == ["2.00", "2.00"]


def test_a_setting_of_the_users_own() -> None:
    schedule = sa.VPLinear()
    problem = sa.problems.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.8)
    frame = sa.Frame(schedule, 0.0)
    ends = [float(schedule.time(lam)) for lam in (-2.0, 2.0)]
    setting = Setting(Reverse(problem.denoiser(schedule), frame, *ends), (2,))
    assert measure(Study(sa.Euler(), setting, steps=(8, 16, 32), paths=30, finer=2)).verdict.holds

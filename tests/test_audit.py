"""The audit: laws without sampling against closed forms, errors against other code, and the command's files."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint import cli
from sdeadjoint.adapters.schedulers import READERS
from sdeadjoint.audit import Course, Own, Plan, Row, Slope, Subject, audit, courses, subjects
from sdeadjoint.audit import command as audit_command
from sdeadjoint.audit.subjects import CASES, OURS, THEIRS, schedulers
from sdeadjoint.solvers import Drift, Interval, State

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
SCHEDULE = sa.VPLinear()


@cache
def everything() -> tuple[Subject, ...]:
    return tuple(subjects())


def course(solver: sa.Solver, eta: float, kind: str = "data", steps: int = 8) -> Course:
    grid = sa.uniform_logsnr(SCHEDULE, steps, t_max=0.9, t_min=0.05)
    return Course(sa.Frame(SCHEDULE, eta, kind), grid, solver)


# ---------------------------------------------------------------- subjects


def test_every_sampler_and_every_supported_scheduler_is_audited() -> None:
    names = {subject.name for subject in everything() if subject.family == OURS}
    assert {"ddim", "deis", "edm_heun", "rex", "shark_sde", "uni_pc"} <= names
    assert {case.name for case in CASES} == set(READERS)


def test_subjects_take_no_more_calls_than_they_are_given() -> None:
    for subject in everything():
        if subject.family == THEIRS:
            grid = subject.course(subject.steps(20)).grid
            assert len(grid) - 1 <= 20, subject.title


# ---------------------------------------------------------------- laws without sampling


def test_the_law_of_euler_on_gaussian_data_is_its_own_recursion() -> None:
    """Data kind, eta = 1: ``y' = (1 + ds v w / P) y + dB`` with w the weight alpha / P times; in numbers."""
    found, made = courses.spread(course(sa.Euler(), 1.0)), course(sa.Euler(), 1.0)
    frame, grid = made.frame, made.grid
    alpha, sigma, v = SCHEDULE.alpha(grid), SCHEDULE.sigma(grid), courses.SPREAD**2
    w, s, nu = frame.weight(grid), frame.clock(grid), frame.noise_clock(grid)
    variance = (alpha[0] ** 2 * v + sigma[0] ** 2) / w[0] ** 2
    for n in range(len(grid) - 1):
        mean = alpha[n] * v / (alpha[n] ** 2 * v + sigma[n] ** 2) * w[n]
        variance = (1 + (s[n + 1] - s[n]) * mean) ** 2 * variance + nu[n + 1] - nu[n]
    # Eight steps of some ten operations each.
    assert found.sampled == pytest.approx(math.sqrt(float(variance)) * float(w[-1]), rel=1e-13)
    assert found.exact == pytest.approx(math.sqrt(float(alpha[-1] ** 2 * v + sigma[-1] ** 2)), rel=1e-15)


@pytest.mark.parametrize("solver", [sa.SRA1(), sa.DPMSolverPP2M(), sa.Heun()], ids=repr)
def test_the_law_is_that_of_samples(solver: sa.Solver) -> None:
    """A standard deviation of 40000 samples has a standard error of 0.35 per cent; four of them."""
    made = course(solver, 1.0, steps=4)
    law = courses.spread(made)
    rng = torch.Generator().manual_seed(0)
    first = torch.stack([SCHEDULE.alpha(made.grid[0]) * courses.SPREAD, SCHEDULE.sigma(made.grid[0])]).norm()
    x_T = first * torch.randn(40000, generator=rng, dtype=torch.float64)
    h = made.frame.noise_clock(made.grid).diff()[:, None]
    dB, H = (torch.randn(4, 40000, generator=rng, dtype=torch.float64) * (h / part).sqrt() for part in (1, 12))
    x = courses.run(made, courses.GAUSSIAN, x_T, sa.FixedNoise(dB, H))
    assert float(x.std()) == pytest.approx(law.sampled, rel=4 / math.sqrt(2 * 40000))


def test_the_excess_of_an_accurate_sampler_is_small_and_that_of_ddim_is_not() -> None:
    """RK4 on 64 steps is within 1e-6 of the flow; DDIM on 8 is some per cent off."""
    assert abs(courses.spread(course(sa.RK4(), 0.0, "flow", 64)).excess) < 1e-6
    assert abs(courses.spread(course(sa.Euler(), 0.0, steps=8)).excess) > 1e-2


# ---------------------------------------------------------------- errors


def test_errors_without_noise_are_those_of_the_comparison() -> None:
    """The same number by the comparison's own code."""
    made = course(sa.Heun(), 0.0)
    found = courses.errors(made, 16, 0)
    x_T = courses.starts(made, 16, 0).requires_grad_()
    compared = sa.comparison.compare(
        courses.MIXTURE.denoiser(SCHEDULE),
        x_T,
        loss=lambda x: x.square().sum() / 2,
        frame=made.frame,
        grids=[made.grid],
        solver=made.solver,
        methods=[sa.comparison.Method("Direct()", sa.Direct())],
    )
    (agreement,) = compared.measurements[0].gradients
    assert agreement.true is not None
    assert found.relative == pytest.approx(agreement.true.error, rel=1e-9)


def test_errors_with_noise_shrink_with_the_steps_on_the_same_equation() -> None:
    """Heun's strong order is 1: eight times the steps leave an eighth, a quarter with room for few paths."""
    coarse, fine = (courses.errors(course(sa.Heun(), 1.0, "flow", n), 32, 0) for n in (8, 64))
    assert float(fine.state.norm()) < float(coarse.state.norm()) / 4
    assert fine.relative < coarse.relative / 4


# ---------------------------------------------------------------- the table and the command


def row(**changed: object) -> Row:
    given: dict[str, object] = {
        "name": "sampler",
        "family": OURS,
        "eta": 0.0,
        "kind": "data",
        "claimed": {"ode": 3.0, "strong": None, "gradient": 3.0, "weak": None},
        "measured": {"ode": Slope(1.97, (1.9, 2.0)), "strong": None, "gradient": Slope(2.9, (2.8, 3.0)), "weak": None},
        "on_grid": Slope(1.0, (0.9, 1.1)),
        "own": (Own(10, 5, 0.1, 0.2, 0.3), Own(50, 25, 0.01, 0.02, 0.001)),
    }
    return Row(**{**given, **changed})  # type: ignore[arg-type]


def test_what_departs_is_told_with_its_numbers() -> None:
    assert row().short == ("ode",)
    assert [f.sentence for f in row().findings()] == ["order 3 is stated, and 1.97 measured without noise"]
    off = row(measured=dict.fromkeys(("ode", "strong", "gradient", "weak")), own=(Own(50, 25, 0.1, 0.07, -0.08),))
    told = [finding.sentence for finding in off.findings()]
    assert told == [
        "its samples' standard deviation is -8.0% off the exact one at 50 calls",
        "its gradient is 7.0% off the equation's at 50 calls",
    ]


@dataclass(frozen=True)
class Longer(sa.Solver):
    """A solver with steps that are a hundredth too long."""

    base: sa.Solver

    @property
    def claims(self) -> sa.Claims:
        return self.base.claims

    def step(self, drift: Drift, interval: Interval, y: Tensor, state: State) -> tuple[Tensor, State]:
        y1, state = self.base.step(drift, interval, y, state)
        return y + 1.01 * (y1 - y), state


FEW = Plan((12, 24, 48), paths=30, starts=16)
QUICK = ("ddim", "sra1_sde", "DEISMultistepScheduler", "LCMScheduler")


def measured(subject: Subject) -> Row:
    (row,) = audit([subject], plan=FEW).rows
    return row


def test_an_order_that_is_stated_too_high_is_told() -> None:
    (ddim,) = (subject for subject in everything() if subject.name == "ddim")
    right, wrong = measured(ddim), measured(replace(ddim, order=2.0))
    assert right.short == ()
    assert wrong.short == ("ode", "gradient")
    assert any(finding.sentence.startswith("order 2 is stated") for finding in wrong.findings())


def test_steps_that_are_a_hundredth_too_long_show() -> None:
    """Errors stop falling at about a hundredth. DDIM's own, of some per cent at 48 steps, would hide that."""
    (right,) = (subject for subject in everything() if subject.name == "dpm_solver_pp_2m")
    solver = Longer(sa.DPMSolverPP2M())
    wrong = replace(right, course=lambda steps: right.course(steps)._replace(solver=solver), method=solver)
    rows = measured(right), measured(wrong)
    assert rows[0].short == ()
    assert {"ode", "gradient"} <= set(rows[1].short)
    assert any("measured without noise" in finding.sentence for finding in rows[1].findings())


def test_a_quick_audit_is_of_a_few() -> None:
    names = {subject.name for subject in subjects(quick=True)}
    assert names == {*QUICK, "DPMSolverMultistepScheduler"}


def test_the_quick_audit_writes_page_numbers_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["sdeadjoint.audit.subjects"], "QUICK", QUICK)
    monkeypatch.setattr(audit_command, "QUICK", FEW)  # enough for the orders below
    assert cli.main(["audit", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "ddim" in said
    assert "DEISMultistepScheduler (order 3): order 3 is stated" in said
    rows = {entry["name"]: entry for entry in json.loads((tmp_path / "audit.json").read_text())["rows"]}
    assert rows["ddim"]["measured"]["ode"]["order"] == pytest.approx(1.0, abs=0.15)
    assert rows["sra1_sde"]["measured"]["strong"]["order"] > 1.35
    with (tmp_path / "audit.csv").open() as table:
        assert [line["name"] for line in csv.DictReader(table)] == list(rows)
    page = (tmp_path / "audit.md").read_text()
    assert "| `ddim` |" in page
    assert (tmp_path / "audit.png").stat().st_size > 10_000
    assert (tmp_path / "audit.svg").exists()


def test_without_diffusers_a_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str) -> object:
        return None if name == "diffusers" else find_spec(name)

    monkeypatch.setattr(audit_command, "find_spec", without)
    monkeypatch.setattr(audit_command, "audit", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("enough")))
    assert cli.main(["audit", "--quick", "--out", str(tmp_path)]) == 1
    assert "pip install 'sdeadjoint[diffusers]'" in capsys.readouterr().err


def test_a_case_that_diffusers_does_not_have_is_left_out() -> None:
    assert list(schedulers((CASES[0]._replace(name="NoSuchScheduler"),))) == []

"""The claims of ``examples/own_solver.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sdeadjoint as sa
from examples import own_solver
from examples.own_solver import SLIPPED, TYPED, WISHES, Result


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own_solver")


@pytest.fixture(scope="module")
def result(out: Path) -> Result:
    return own_solver.run(out)


def test_the_check_finds_the_slip_and_says_where(result: Result) -> None:
    assert 'check_solver(SRA3(area=0.0)): item "levy area" is broken' in result.found
    assert "smallest counterexample" in result.found


def test_without_noise_the_slip_is_invisible() -> None:
    interval, y = sa.Interval(0.0, 0.25), torch.tensor([0.5, -1.0], dtype=torch.float64)
    steps = [solver.step(lambda s, y: torch.sin(y + s), interval, y, ())[0] for solver in (TYPED, SLIPPED)]
    assert torch.equal(*steps)


def test_measured_orders(result: Result) -> None:
    """The intervals are on 300 paths of fixed seeds, so that only rounding changes them."""
    assert result.strong.verdict.outcome == "holds"
    assert result.strong.interval[0] >= 1.5
    assert result.slipped.verdict.outcome == "violated"
    assert result.slipped.slope == pytest.approx(1.0, abs=0.1)
    assert result.ode.verdict.outcome == "holds"
    assert result.ode.slope == pytest.approx(3.0, abs=0.1)


def test_the_gradient_through_it_finds_the_digits(result: Result) -> None:
    assert result.losses[-1] <= 0.1 * result.losses[0]
    assert result.nearest == WISHES


def test_the_picture(result: Result, out: Path) -> None:
    assert (out / "own_solver.png").stat().st_size > 20_000

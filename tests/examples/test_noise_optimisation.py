"""Moving the noise of an SDE reaches what its table says, and moves only what it says."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")
pytest.importorskip("rich")

import sdeadjoint as sa
from examples import noise_optimisation as example
from examples.digits.classifiers import trained


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory) -> example.Steering:
    out = tmp_path_factory.mktemp("steering")
    made = example.run(out)
    assert (out / "noise_optimisation.png").stat().st_size > 10_000
    return made


def test_x_T_alone_reaches_nothing(steering: example.Steering) -> None:
    row = steering.rows["x_T"]
    assert len(row.reached) <= 1
    assert float(row.goal[-1].mean()) > 0.8 * float(row.goal[0].mean())


def test_the_whole_path_reaches_the_goal(steering: example.Steering) -> None:
    for name in ("the whole path", "x_T and the whole path", "both, norms left free"):
        row = steering.rows[name]
        assert len(row.reached) >= 0.8 * example.SAMPLES
        assert float(row.goal[-1].mean()) < 0.05 * float(row.goal[0].mean())
        assert float((row.ink - 1).abs().max()) < 0.1


def test_the_early_path_draws_the_digit_and_the_whole_path_fools_the_classifier(steering: example.Steering) -> None:
    early, whole = steering.rows["the early path"], steering.rows["the whole path"]
    assert len(early.reached) >= 0.7 * example.SAMPLES
    assert float(early.posterior.mean()) > 0.7
    assert abs(float(early.posterior.mean() - early.probability[-1].mean())) < 0.1
    assert float(whole.posterior.mean()) < float(whole.probability[-1].mean()) - 0.2


def test_norms_stay_likely_where_they_are_asked_to(steering: example.Steering) -> None:
    for name, row in steering.rows.items():
        assert (row.deviations[1] > 5) == (name == "both, norms left free")
        if name != "both, norms left free":
            assert max(row.deviations) <= max(steering.drawn)


def test_wishes(steering: example.Steering) -> None:
    assert torch.equal(steering.wish, (steering.start + 5) % 10)
    for row in steering.rows.values():
        # All begin at the same samples: rows of one batch, whose sums may differ in their last bits.
        torch.testing.assert_close(row.goal[0], steering.rows["x_T"].goal[0], rtol=1e-9, atol=0)
        assert len(row.goal) == example.ITERATIONS + 1


class Small(NamedTuple):
    """Two digits, and what a descent of two iterations starts from."""

    denoiser: sa.Denoiser
    goal: example.Goal
    z_T: Tensor
    z: Tensor


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setattr(example, "ITERATIONS", 2)
    digits = sa.problems.Digits(bandwidth=0.3)
    classifier = trained(digits.images[:100], digits.labels[:100], seed=0)
    generator = torch.Generator().manual_seed(0)
    z_T = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    z = torch.randn(example.STEPS, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    goal = example.Goal(classifier, torch.tensor([3, 4]), torch.tensor([0.4, 0.4], dtype=torch.float64))
    return Small(digits.denoiser(example.SCHEDULE), goal, z_T, z)


def test_only_what_is_named_moves(small: Small) -> None:
    moves = list(example.MOVES.values())
    made = example.descend(small.denoiser, small.goal, moves, small.z_T, small.z)
    assert made.goals.shape == made.probabilities.shape == (3, len(moves), 2)
    for k, move in enumerate(moves):
        assert torch.equal(made.z_T[k], small.z_T) != move.x_T
        moved = (made.z[:, k] != small.z).flatten(1).any(1)
        assert torch.equal(moved, torch.arange(example.STEPS) < move.steps)


def test_moves_side_by_side_are_what_each_is_alone(small: Small) -> None:
    moves = list(example.MOVES.values())
    together = example.descend(small.denoiser, small.goal, moves, small.z_T, small.z)
    for k, move in enumerate(moves):
        alone = example.descend(small.denoiser, small.goal, [move], small.z_T, small.z)
        # Sums in another order, in float64; a penalty of another move's would show at 1e-2.
        torch.testing.assert_close(together.z_T[k], alone.z_T[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.z[:, k], alone.z[:, 0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.goals[:, k], alone.goals[:, 0], rtol=1e-6, atol=0)


def test_norms_of_drawn_normals_are_what_they_are_said_to_be() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(20, 2000, 1, 8, 8, generator=generator, dtype=torch.float64)
    spread = float(example.excess(z).std()) * math.sqrt(2)
    assert abs(spread - 1) < 5 / math.sqrt(2 * 2000)  # five standard errors
    assert abs(float(example.excess(z).mean())) < 0.05

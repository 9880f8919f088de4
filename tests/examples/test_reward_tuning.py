"""The example of reward tuning in small: its measures are right, and each method moves where it should."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from examples import reward_tuning as example


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> example.Result:
    """Two seeds, two iterations: nothing is said of how near they come."""
    out = tmp_path_factory.mktemp("tuning")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SEEDS", range(2)), ("ITERATIONS", 2), ("BATCH", 8), ("STEPS", 5), ("SAMPLES", 50)):
            patch.setattr(example, name, value)
        made = example.run(out)
    assert (out / "reward_tuning.png").stat().st_size > 10_000
    return made


def test_every_method_moves_towards_the_reward(result: example.Result) -> None:
    """On the same latents and noise as the base, where they have its eta: no sampling error."""
    base = result.mean(example.BASE, lambda row: row.reward).value
    for name in ("DRaFT", "DRaFT-LV", "Adjoint Matching"):
        assert result.mean(name, lambda row: row.reward).value > base
    assert result.mean(example.EXACT, lambda row: row.reward).value > base + 1  # the variance is 2.25


def test_calls_are_those_of_the_methods(result: example.Result) -> None:
    """Of five steps of one call each."""
    counts = {name: (rows[0].calls, rows[0].products) for name, rows in result.rows.items()}
    assert counts["DRaFT"] == (5 + 5, 4)  # nothing is pulled back to x_T
    assert counts["DRaFT-LV"][0] == 5 + 2  # and one for each copy, noised again
    # The sample; the lean adjoint; and in the loss the base twice, once as a part of the tuned model.
    assert counts["Adjoint Matching"] == (5 + 5 + 2 * 5, 5)
    assert counts[example.EXACT] == counts[example.BASE] == (0, 0)


def test_the_energy_distance_tells_laws_apart(result: example.Result) -> None:
    task = example.Task.load()
    at_home = [example.judged(task, task.goal.sample(300, seed=s), s)[1] for s in range(3)]
    away = example.judged(task, task.data.sample(300, seed=0), 0)[1]
    assert max(map(abs, at_home)) < 0.1 < away


def test_the_reward_likes_threes_and_the_exact_law_has_more_of_them() -> None:
    task = example.Task.load()
    scores = task.reward(task.data.images)
    assert float(scores.std()) == pytest.approx(example.SPREAD, rel=1e-12)
    share = float((task.data.labels == example.LIKED).double().mean())
    near = torch.cdist(task.goal.sample(300, seed=0).flatten(1), task.data.images.flatten(1)).argmin(1)
    assert float((task.data.labels[near] == example.LIKED).double().mean()) > 3 * share


def test_a_model_starts_as_the_base() -> None:
    model = example.Task.load().model(0)
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.tuned(x, 0.5), model.base(x, 0.5))

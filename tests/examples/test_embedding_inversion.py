"""What the tables of the embedding inversion say, with the seeds that give it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples import embedding_inversion
from examples.digits.looks import energy_distance, ink


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def result(out: Path) -> embedding_inversion.Result:
    return embedding_inversion.run(out)


def recognised(measured: embedding_inversion.Measured) -> float:
    return sum(measured.recognised) / 2


def test_images_give_back_the_words_of_the_digits(result: embedding_inversion.Result, out: Path) -> None:
    start, _, found, own = result.inversion.values()
    assert recognised(start) < 0.2  # any digit: one in ten
    assert recognised(found) > 0.85  # the table has 89 %
    assert recognised(own) > 0.9
    assert found.distance < start.distance / 4
    assert found.distance < own.distance  # the network's own words stand for more than these images
    assert (out / "embedding_inversion.png").stat().st_size > 10_000


def test_the_last_step_alone_does_worse(result: embedding_inversion.Result) -> None:
    _, last, found, _ = result.inversion.values()
    assert recognised(last) < recognised(found) - 0.05  # the table has 74 and 89 %
    assert last.distance > 2 * found.distance


def test_new_words_change_the_ink_and_not_the_digit(result: embedding_inversion.Result) -> None:
    plain, light, bold = (result.expansion[name] for name in ("no new word", "light", "bold"))
    for group in range(2):  # the digits that the words were learned on, and the others
        assert light.ink[group] < plain.ink[group] - 0.034  # the standard deviation of real digits
        assert bold.ink[group] > plain.ink[group] + 0.034
        assert min(measured.recognised[group] for measured in (plain, light, bold)) > 0.85


def test_the_energy_distance_tells_laws_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 200, 5, generator=generator) for _ in range(2))
    # Its standard deviation for equal laws falls like 1/n.
    assert abs(float(energy_distance(x, y))) < 0.05
    assert energy_distance(x, y + 1) > 0.5
    assert energy_distance(x, 2 * y) > 0.2
    together = torch.cat([x, x], 1)
    assert energy_distance(together, together).isfinite()


def test_ink_is_the_mean_darkness() -> None:
    assert torch.equal(
        ink(torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)), torch.tensor([0.0, 0.5, 1.0])
    )

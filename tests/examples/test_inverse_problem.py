"""The inverse problems are solved as the table says, and its closed-form rows are right."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

from examples import inverse_problem as example

INPAINTING, SUPER = example.MEASUREMENTS
OPTIMISED, BEST = "x_T optimisation", f"best of {example.CANDIDATES} samples"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, example.Row]]:
    out = tmp_path_factory.mktemp("inverse")
    made = example.run(out)
    assert (out / "inverse_problem.png").stat().st_size > 10_000
    return made


@pytest.mark.parametrize("title", example.MEASUREMENTS)
def test_optimised_latents_fit_the_measurement(rows: dict[str, dict[str, example.Row]], title: str) -> None:
    fit = {name: row.fit for name, row in rows[title].items()}
    assert fit[OPTIMISED] < 0.1
    assert fit[OPTIMISED] < 0.5 * fit["nearest training image"]
    assert fit[OPTIMISED] < 0.3 * min(fit[BEST], fit["mean training image"], fit["sample of the prior"])


@pytest.mark.parametrize("title", example.MEASUREMENTS)
def test_what_was_not_measured_is_restored(rows: dict[str, dict[str, example.Row]], title: str) -> None:
    psnr = {name: row.psnr for name, row in rows[title].items()}
    for baseline in (BEST, "mean training image", "sample of the prior", "exact posterior, a draw"):
        assert psnr[OPTIMISED] > psnr[baseline] + 1.0
    assert psnr["exact posterior, the mean"] > psnr[OPTIMISED]
    assert rows[title][OPTIMISED].read > 0.8


def test_the_nearest_image_guesses_halves_better_and_pixels_worse(rows: dict[str, dict[str, example.Row]]) -> None:
    nearest = "nearest training image"
    assert rows[INPAINTING][nearest].psnr > rows[INPAINTING][OPTIMISED].psnr
    assert rows[SUPER][nearest].psnr < rows[SUPER][OPTIMISED].psnr


def test_starts_that_are_kept_go_on_as_they_would_have_gone() -> None:
    start = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = torch.tensor([[2, 0], [3, 1]])

    def descended(give_up: bool) -> torch.Tensor:
        z = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.1)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        for k in range(20):
            optimizer.zero_grad()
            (z**4 + z.sin()).sum().backward()
            optimizer.step()
            decay.step()
            if give_up and k == 9:
                z = example.kept(optimizer, z, places)
        return z.detach()

    assert torch.equal(descended(give_up=True), descended(give_up=False)[torch.arange(2)[:, None], places])


@pytest.mark.parametrize("title", example.MEASUREMENTS)
def test_measurements_are_what_they_say(title: str) -> None:
    measurement = example.MEASUREMENTS[title]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(measurement.apply(x).shape, generator=generator, dtype=torch.float64)
    # Sums of at most 64 products, in float64.
    assert torch.allclose((measurement.apply(x) * y).sum(), (x * measurement.transposed(y)).sum(), rtol=1e-12)
    assert torch.allclose(measurement.apply(measurement.transposed(y)), measurement.gain * y, rtol=1e-14)
    assert float(measurement.apply(measurement.missing(x)).abs().max()) < 1e-14


def test_the_posterior_of_one_component_is_the_gaussian_one() -> None:
    measurement = example.MEASUREMENTS[SUPER]
    generator = torch.Generator().manual_seed(1)
    m = torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64)
    basis = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    A = measurement.apply(basis).reshape(64, 16).T
    v, s2 = 0.3**2, 0.1**2
    gain = v * A.T @ torch.linalg.inv(v * A @ A.T + s2 * torch.eye(16, dtype=torch.float64))
    mean, _ = example.posterior(measurement, y, m, bandwidth=0.3, accuracy=0.1, seed=2)
    assert torch.allclose(mean.flatten(), m.flatten() + gain @ (y.flatten() - A @ m.flatten()), rtol=0, atol=1e-13)
    # Draws: 4000 of them, whose mean and spread are within five standard errors of the formula's.
    _, draws = example.posterior(measurement, y.expand(4000, -1, -1, -1), m, bandwidth=0.3, accuracy=0.1, seed=2)
    spread = (v * torch.eye(64, dtype=torch.float64) - v * gain @ A).diagonal().sqrt()
    z = (draws.flatten(1) - mean.flatten()) / spread
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(4000)
    assert float((z.var(0) - 1).abs().max()) < 5 * math.sqrt(2 / 4000)

"""Tilted laws, against densities: ``p e^r / Z`` at random points, and Z by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.problems import Gaussian, Mixture, Quadratic

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def log_prob(problem: sa.problems.Problem, x: Tensor, cond: dict[str, Tensor] | None = None) -> Tensor:
    return problem.log_prob(x, cond=cond)


MIXTURES = {
    "scalar": Mixture([0.2, 0.5, 0.3], [-1.0, 0.5, 2.0], 0.25),
    "one variance each": Mixture([0.4, 0.6], draw(2, 3).tolist(), [0.3, 0.5]),
    "diagonal": Mixture([0.4, 0.6], draw(2, 2).tolist(), [[0.3, 0.5], [0.2, 0.7]]),
    "as many components as numbers": Mixture([0.4, 0.6], draw(2, 2).tolist(), 0.3),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("curved", ["not", "one", "each"])
def test_a_tilted_mixture_has_the_tilted_density(mixture: Mixture, curved: str) -> None:
    """Up to one constant, Z: at round-off of log-densities of some tens."""
    event = mixture.event_shape
    slope = draw(*event, seed=1)
    curvature = {"not": torch.tensor(0.0), "one": torch.tensor(-0.7), "each": draw(*event, seed=2).clamp(max=1)}[curved]
    reward = Quadratic(slope, curvature)
    tilted, x = mixture.tilted(reward), draw(50, *event, seed=3)
    constants = log_prob(tilted, x) - log_prob(mixture, x) - reward(x)
    torch.testing.assert_close(constants, constants[:1].expand_as(constants), rtol=0, atol=1e-12)


def test_the_constant_is_the_reward_s_partition_function() -> None:
    mixture, reward = MIXTURES["scalar"], Quadratic(0.8, -0.5)
    x = torch.linspace(-12, 14, 20001, dtype=DOUBLE)
    Z = torch.trapezoid((log_prob(mixture, x) + reward(x)).exp(), x)  # spectrally accurate
    tilted = mixture.tilted(reward)
    torch.testing.assert_close(
        log_prob(tilted, x[9000:11000]),
        (log_prob(mixture, x) + reward(x) - Z.log())[9000:11000],
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("curvature", [0.0, -2.0, 0.9])
def test_a_tilted_gaussian(curvature: float) -> None:
    mean, variance, slope = draw(3), draw(3, seed=1).abs() + 0.1, draw(3, seed=2)
    curvature /= float(variance.max())
    tilted = Gaussian(mean, variance).tilted(Quadratic(slope, curvature))
    torch.testing.assert_close(1 / tilted.variance, 1 / variance - curvature, rtol=1e-12, atol=0)
    want = (mean / variance + slope) * tilted.variance
    torch.testing.assert_close(tilted.mean, want, rtol=1e-12, atol=1e-12)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Quadratic]] = {
    "linear": (lambda x: 3 + 2 * x.sum(1), Quadratic(2.0)),
    "constant": (lambda x: x.new_ones(len(x)), Quadratic(0.0)),
    "squares": (lambda x: -(x - 1).square().sum(1), Quadratic(2.0, -2.0)),
    "parts": (
        lambda x: x[:, 0] - x[:, 1].square(),
        Quadratic(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, -2.0, 0.0])),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_are_quadratics(name: str) -> None:
    function, reward = FUNCTIONS[name]
    mixture, x = MIXTURES["one variance each"], draw(20, 3, seed=3)
    got, want = (log_prob(mixture.tilted(r), x) for r in (function, reward))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(log_prob(mixture.tilted(function), x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x.sum(1).square(),
        lambda x: x.abs().sum(1),
        lambda x: x.pow(3).sum(1),
        lambda x: x.sin().sum(1),
    ],
)
def test_functions_that_are_not(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="reward: it is not sum_i"):
        MIXTURES["one variance each"].tilted(function)


def test_bad_rewards_are_refused() -> None:
    mixture = MIXTURES["one variance each"]
    with pytest.raises(ValueError, match=r"curvature is 2.5.*1 / variance = 2; pass a smaller"):
        mixture.tilted(Quadratic(0.0, 2.5))
    with pytest.raises(ValueError, match=r"reward: returned \(1, 3\) for x of shape \(1, 3\)"):
        mixture.tilted(lambda x: x)
    with pytest.raises(TypeError, match="reward: got int"):
        mixture.tilted(3)
    with pytest.raises(ValueError, match="cond: got"):
        mixture.tilted(Quadratic(1.0), {"label": draw(1, 10)})
    with pytest.raises(ValueError, match="slope: has NaN"):
        Quadratic(math.nan)


def test_a_reward_is_differentiable_and_keeps_dtypes() -> None:
    reward, x = Quadratic([1.0, 2.0], -0.5), draw(4, 2).float().requires_grad_()
    value = reward(x)
    assert (value.dtype, value.shape) == (torch.float32, (4,))
    (grad,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(grad, torch.tensor([1.0, 2.0]) - 0.5 * x.detach())


def test_tilted_digits() -> None:
    pytest.importorskip("sklearn")
    reward = Quadratic(draw(1, 8, 8) / 2, -0.3)
    digits = sa.problems.Digits(bandwidth=0.3)
    x = digits.sample(8, seed=0)
    constants = log_prob(digits.tilted(reward), x) - log_prob(digits, x) - reward(x)
    # Distances come from a matrix product: 1e-16 |x|^2 / P, twice.
    torch.testing.assert_close(constants, constants[:1].expand_as(constants), rtol=0, atol=1e-10)


def test_tilted_digits_of_one_label() -> None:
    pytest.importorskip("sklearn")
    reward, logits = Quadratic(draw(1, 8, 8) / 2), torch.full((1, 10), -math.inf, dtype=DOUBLE)
    logits[0, 3] = 0.0
    digits = sa.problems.Digits(bandwidth=0.3, conditional=True)
    tilted = digits.tilted(reward, {"label": logits})
    assert len(tilted.weights) <= int((digits.labels == 3).sum())
    x = tilted.sample(5, seed=0)
    own = log_prob(digits, x, {"label": logits.expand(5, 10)})
    constants = log_prob(tilted, x) - own - reward(x)
    torch.testing.assert_close(constants, constants[:1].expand_as(constants), rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="label"):
        digits.tilted(reward)

"""Rewards under which Gaussians stay Gaussians, and mixtures mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .base import Numbers, constant

Reward: TypeAlias = Callable[[Tensor], Tensor]
"""``reward(x)`` of states (batch, *event), of shape (batch,): each sample's own."""

PROBES = 4  # points at which a function is compared with the quadratic that it is taken for
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Quadratic:
    """``r(x) = sum_i (slope_i x_i + curvature_i x_i^2 / 2)``: linear where the curvature is 0.

    Args:
        slope: a number, or a tensor that broadcasts to an event.
        curvature: likewise.

    Called with (batch, *event) it returns (batch,), in the dtype of x, and is differentiable.
    """

    slope: Numbers
    curvature: Numbers = 0.0

    def __post_init__(self) -> None:
        for name in ("slope", "curvature"):
            object.__setattr__(self, name, constant(getattr(self, name), name))

    def __call__(self, x: Tensor) -> Tensor:
        slope, curvature = (torch.as_tensor(value).to(x) for value in (self.slope, self.curvature))
        return (slope * x + curvature * x.square() / 2).reshape(len(x), -1).sum(1)

    @property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Slope and curvature, float64."""
        assert isinstance(self.slope, Tensor)
        assert isinstance(self.curvature, Tensor)
        return self.slope, self.curvature


def coefficients(reward: Reward, event: torch.Size) -> tuple[Tensor, Tensor]:
    """Slope and curvature of a reward, by its derivatives at 0 if it is not a ``Quadratic``.

    Refuses a function that is not such a quadratic, which is compared with it at random points.
    """
    if isinstance(reward, Quadratic):
        return reward.coefficients
    if not callable(reward):
        raise TypeError(
            f"reward: got {type(reward).__name__}; pass problems.Quadratic(slope, curvature), or a "
            "function of states (batch, ...) that returns (batch,)"
        )
    with torch.enable_grad():
        x = torch.zeros(1, *event, dtype=torch.float64, device="cpu", requires_grad=True)
        slope = _gradient(_values(reward, x)[0], x)
        rows = [_gradient(part, x).detach()[0].flatten() for part in slope.flatten()]
    hessian = torch.stack(rows)
    found = Quadratic(slope.detach()[0], hessian.diagonal().reshape(event))
    _check(reward, found, event)
    slope, curvature = found.coefficients
    if bool((curvature == curvature.flatten()[0]).all()):
        curvature = curvature.flatten()[0].clone()
    return slope, curvature


def tilt(
    mean: Tensor, variance: Tensor, slope: Tensor, curvature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of ``N(mean, variance) e^r / Z``, and ``log Z`` of each number.

        variance' = variance / d,  mean' = (mean + slope variance) / d,  d = 1 - curvature variance
        log Z = (slope mean + slope^2 variance / 2 + curvature mean^2 / 2) / d - log(d) / 2
    """
    d = 1 - curvature * variance
    if not bool((d > 0).all()):
        largest = float((1 / variance).min())
        raise ValueError(
            f"reward: its curvature is {float(curvature.max())}, but e^reward has a finite mean only "
            f"for curvatures below 1 / variance = {largest:.6g}; pass a smaller one"
        )
    log_z = (slope * mean + slope**2 * variance / 2 + curvature * mean**2 / 2) / d - d.log() / 2
    return (mean + slope * variance) / d, variance / d, log_z


def _values(reward: Reward, x: Tensor) -> Tensor:
    """``reward(x)``, refused if it is not one number per sample."""
    out = reward(x)
    if not isinstance(out, Tensor) or out.shape != x.shape[:1]:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"reward: returned {got} for x of shape {tuple(x.shape)}; return one number per sample"
        )
    return out


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """``d value / dx``, with a graph; zeros where there is none."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (grad,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad


@torch.no_grad()
def _check(reward: Reward, found: Quadratic, event: torch.Size) -> None:
    """Compare at points of several sizes; a constant does not matter."""
    rng = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(PROBES, *event, generator=rng, dtype=torch.float64, device="cpu")
    x = x * torch.logspace(-1, 1, PROBES, dtype=torch.float64).reshape(-1, *[1] * len(event))
    constant_part = _values(reward, torch.zeros_like(x))
    got, want = _values(reward, x) - constant_part, found(x)
    size = got.abs() + want.abs() + constant_part.abs() + math.sqrt(max(1, event.numel()))
    if not bool(((got - want).abs() <= TOLERANCE * size).all()):
        raise ValueError(
            "reward: it is not sum_i (slope_i x_i + curvature_i x_i^2 / 2), under which alone the "
            "tilted law is one of these problems; pass such a function, or problems.Quadratic"
        )

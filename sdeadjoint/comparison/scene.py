"""The built-in problem: an eight-dimensional Gaussian mixture whose exact network has weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..diffusion.grids import uniform_logsnr
from ..diffusion.schedules import VPLinear
from ..gradient_check.call import Loss
from ..noise import BrownianPath, Noise

COMPONENTS, DIMENSIONS, VARIANCE = 5, 8, 0.36
SCHEDULE = VPLinear()
T_MIN = 1e-3
MEANS_SEED = 5


class MixtureNetwork(nn.Module):
    """``E[x_0 | x_t]`` of ``sum_k N(m_k, v) / K`` with the means as parameters: exact, smooth, and trainable.

    P = alpha^2 v + sigma^2,   r = softmax_k(-|x - alpha m_k|^2 / 2P),   x_0 = sum_k r_k (sigma^2 m_k + alpha v x) / P
    """

    def __init__(self, means: Tensor, variance: float) -> None:
        super().__init__()
        self.means = nn.Parameter(means.clone())
        self.variance = variance

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value[:, None].to(x) for value in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        P = alpha**2 * self.variance + sigma**2
        distances = (x**2).sum(1, keepdim=True) - 2 * alpha * (x @ self.means.T) + alpha**2 * (self.means**2).sum(1)
        r = torch.softmax(-distances / (2 * P), dim=1)
        return (sigma**2 * (r @ self.means) + alpha * self.variance * x) / P


@dataclass(frozen=True, eq=False)
class SquaredDistance:
    """``loss(x) = |x - target|^2 / 2``, summed over the batch."""

    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * ((x - self.target) ** 2).sum()


class Example(NamedTuple):
    """The arguments of ``compare`` for one problem, but for the grids and the solver."""

    denoiser: Denoiser
    x_T: Tensor
    loss: Loss
    frame: Frame
    noise: Noise | None


def mixture(eta: float = 0.0, samples: int = 256, seed: int = 0) -> Example:
    """Five standard-normal means in eight dimensions (always the same ones), variance 0.36, ``VPLinear``, float64.

    ``x_T`` is standard normal and the loss ``|x_0 - c|^2 / 2`` with a standard-normal c, both drawn from ``seed``.
    """
    fixed, generator = (torch.Generator(device="cpu").manual_seed(number) for number in (MEANS_SEED, seed))
    means = _normal(fixed, COMPONENTS, DIMENSIONS)
    x_T, target = _normal(generator, samples, DIMENSIONS), _normal(generator, DIMENSIONS)
    denoiser = Denoiser(MixtureNetwork(means, VARIANCE), SCHEDULE, prediction="sample", time_dtype=torch.float64)
    noise = BrownianPath(seed, refinable=True) if eta > 0 else None
    return Example(denoiser, x_T.requires_grad_(), SquaredDistance(target), Frame(SCHEDULE, eta), noise)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def grid(steps: int) -> Tensor:
    """Uniform in lambda from t = 1 to 1e-3."""
    return uniform_logsnr(SCHEDULE, steps, t_max=1.0, t_min=T_MIN)

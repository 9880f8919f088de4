"""A purification defence, and the gradients that an attack on it may use: exact, approximate and wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.sde_dpm_solver_pp_1(SCHEDULE)
LAST_LAMBDA = 3.0  # where the purifier stops: sigma / alpha = e^-3, no noise that one could see
ANEW = 10**6  # added to a seed where noise is drawn anew


@dataclass(frozen=True)
class Defence:
    """Noise, denoise, classify: a random function of the image, determined by a seed."""

    classifier: nn.Module
    denoiser: sa.Denoiser
    grid: Tensor

    @classmethod
    def create(cls, classifier: nn.Module, denoiser: sa.Denoiser, noise_to_signal: float, steps: int) -> Defence:
        """Up to the time t* where sigma / alpha is ``noise_to_signal``, and back in ``steps`` steps."""
        t_star, t_min = (float(SCHEDULE.time(lam)) for lam in (-math.log(noise_to_signal), LAST_LAMBDA))
        return cls(classifier, denoiser, sa.uniform_logsnr(SCHEDULE, steps, t_max=t_star, t_min=t_min))

    def diffused(self, x: Tensor, seed: int) -> Tensor:
        """The image at time t*."""
        normal = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        return SCHEDULE.alpha(self.grid[0]) * x + SCHEDULE.sigma(self.grid[0]) * normal

    def denoised(self, x_t: Tensor, seed: int, adjoint: sa.Adjoint) -> Tensor:
        """The reverse SDE, down to the purified image."""
        noise = sa.BrownianPath(seed)
        return sa.sample(
            self.denoiser, x_t, frame=FRAME, grid=self.grid, solver=SOLVER, noise=noise, adjoint=adjoint
        )  # fmt: skip

    def purified(self, x: Tensor, seed: int, adjoint: sa.Adjoint = sa.Checkpoint()) -> Tensor:  # noqa: B008 (frozen)
        return self.denoised(self.diffused(x, seed), seed, adjoint)

    def slope(self, x: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the classifier's loss at the images that it is given."""
        x = x.detach().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(self.classifier(x), labels, reduction="sum"), x)[0]


Gradient = Callable[[Defence, Tensor, Tensor, int], Tensor]
"""``gradient(defence, x, labels, seed)`` of the loss, as somebody computes it, in the image that is attacked."""


def of_the_classifier(defence: Defence, x: Tensor, labels: Tensor, seed: int) -> Tensor:
    """As if there were no purifier."""
    return defence.slope(x, labels)


def straight_through(defence: Defence, x: Tensor, labels: Tensor, seed: int) -> Tensor:
    """As if the purifier's derivative were the identity (BPDA)."""
    return defence.slope(defence.purified(x, seed).detach(), labels)


def through(adjoint: sa.Adjoint) -> Gradient:
    """Through the whole defence, its noise replayed, by one of the library's adjoints."""

    def gradient(defence: Defence, x: Tensor, labels: Tensor, seed: int) -> Tensor:
        x = x.detach().requires_grad_()
        loss = functional.cross_entropy(defence.classifier(defence.purified(x, seed, adjoint)), labels, reduction="sum")
        return torch.autograd.grad(loss, x)[0]

    return gradient


def recomputed(defence: Defence, x: Tensor, labels: Tensor, seed: int, backward: int) -> Tensor:
    """States recomputed from x_t* along the path of another seed: a checkpoint that does not restore the generator."""
    slope = defence.slope(defence.purified(x, seed).detach(), labels)
    x = x.detach().requires_grad_()
    x_0 = defence.denoised(defence.diffused(x, seed), seed + backward, sa.Checkpoint())
    return torch.autograd.grad(x_0, x, slope)[0]


def reconstructed(defence: Defence, x: Tensor, labels: Tensor, seed: int, backward: int) -> Tensor:
    """State and adjoint solved backwards from x_0: a backward SDE solver that does not replay its noise.

    With ``backward=0`` it does, and this is ``ContinuousAdjoint(Euler(), "reconstructed")``.
    """
    x_0 = defence.purified(x, seed).detach()
    w, s = FRAME.weight(defence.grid), FRAME.clock(defence.grid)
    dB = sa.BrownianPath(seed + backward).increments(FRAME, defence.grid, like=x)
    y, a = x_0 / w[-1], w[-1] * defence.slope(x_0, labels)
    for n in reversed(range(len(dB))):
        ds, state = s[n + 1] - s[n], (w[n + 1] * y).requires_grad_()
        prediction = defence.denoiser(state, defence.grid[n + 1])
        a = a + ds * w[n + 1] * torch.autograd.grad(prediction, state, a)[0]
        y = y - ds * prediction.detach() - dB[n]
    return SCHEDULE.alpha(defence.grid[0]) * a / w[0]


GRADIENTS: dict[str, Gradient] = {
    "classifier alone": of_the_classifier,
    "straight through (BPDA)": straight_through,
    "adjoint_deis(1)": through(sa.adjoint_deis(1)),
    "Euler, reconstructed, noise anew": partial(reconstructed, backward=ANEW),
    "Euler, reconstructed, noise replayed": through(sa.ContinuousAdjoint(sa.Euler(), "reconstructed")),
    "ContinuousAdjoint(Heun())": through(sa.ContinuousAdjoint(sa.Heun())),
    "recomputed, noise anew": partial(recomputed, backward=ANEW),
    "Checkpoint(), exact": through(sa.Checkpoint()),
}

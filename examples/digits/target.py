"""A sampler of digits of a given class, and the classifier that is audited with what it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa
from examples.digits.measures import Counted, norms, posterior

SCHEDULE = sa.VPLinear()
FRAME, SOLVER = sa.samplers.dpm_solver_pp_2m(SCHEDULE)
CERTAIN = 20.0  # the logit of the class asked for, the others being 0


@dataclass(frozen=True)
class Target:
    """What is audited: the classifier, on the images that the sampler makes for its labels, one for each latent."""

    problem: sa.problems.Digits
    network: Counted
    classifier: nn.Module
    labels: Tensor
    grid: Tensor

    def image(self, z: Tensor, adjoint: sa.Adjoint = sa.Checkpoint()) -> Tensor:  # noqa: B008 (frozen)
        """The sample from ``x_T = sigma(T) z``."""
        denoiser = sa.Denoiser(self.network, SCHEDULE, prediction="sample", time_dtype=torch.float64)
        cond = {"label": CERTAIN * functional.one_hot(self.labels, 10).double()}
        x_T = SCHEDULE.sigma(self.grid[0]) * z
        return sa.sample(denoiser, x_T, frame=FRAME, grid=self.grid, solver=SOLVER, cond=cond, adjoint=adjoint)

    def losses(self, x: Tensor) -> Tensor:
        """``-log p(c | x)`` by the classifier: what the attack increases."""
        return functional.cross_entropy(self.classifier(x), self.labels, reduction="none")

    def gradient(self, z: Tensor, adjoint: sa.Adjoint) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(self.losses(self.image(z, adjoint)).sum(), z)[0]

    def misread(self, x: Tensor) -> Tensor:
        return self.classifier(x).argmax(1) != self.labels

    def posterior(self, x: Tensor) -> Tensor:
        """The exact ``p(c | x)`` among ten equally likely classes, at the end of the grid."""
        return posterior(self.problem, x, self.labels, (SCHEDULE, self.grid[-1]))


def rotated(z: Tensor, centre: Tensor, angle: float) -> Tensor:
    """``centre`` turned towards z, on its sphere, all the way or by ``angle`` radians if z is farther."""
    radius = norms(centre)
    along = (z * centre).flatten(1).sum(1).reshape(radius.shape) / radius
    across = z - along * centre / radius
    turn = torch.atan2(norms(across), along).clamp(max=angle)
    return turn.cos() * centre + turn.sin() * radius * across / norms(across)

"""What the whole demo happens on: the digits, their exact denoiser, two samplers on one grid, and a classifier."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adjoints import Adjoint, Checkpoint
from ..diffusion.denoiser import Denoiser
from ..diffusion.grids import uniform_logsnr
from ..diffusion.schedules import VPLinear
from ..noise import Noise
from ..problems import Digits
from ..sample import sample
from ..samplers import NamedSampler, dpm_solver_pp_2m, sde_dpm_solver_pp_2m, shark_sde
from . import classifier

SCHEDULE = VPLinear()
# Each image is a Gaussian this wide (pixels span [-1, 1]): grain that one sees, but that hides no digit. The narrower
# they are, the more the sampler forgets of where it came from, and the smaller the gradients in x_T: a median norm of
# 2.5 at 0.2, 1.3 at 0.1 and 0.6 at 0.02.
BANDWIDTH = 0.1
STEPS = 30
# The last time has sigma / alpha = e^-3 = 0.05, half the bandwidth: no more noise than the images have anyway.
LAST_LAMBDA = 3.0

ODE = dpm_solver_pp_2m(SCHEDULE)
SDE = sde_dpm_solver_pp_2m(SCHEDULE)
SHARK = shark_sde(SCHEDULE)


@dataclass(frozen=True)
class Scene:
    """Everything that is made once; states are float64 of shape (n, 1, 8, 8)."""

    seed: int
    problem: Digits
    denoiser: Denoiser
    classifier: nn.Module

    @classmethod
    def create(cls, seed: int) -> Scene:
        problem = Digits(bandwidth=BANDWIDTH, conditional=True)
        return cls(seed, problem, problem.denoiser(SCHEDULE), classifier.trained(problem, seed))

    def grid(self, steps: int = STEPS) -> Tensor:
        return uniform_logsnr(SCHEDULE, steps, t_min=float(SCHEDULE.time(LAST_LAMBDA)))

    def normals(self, *shape: int, offset: int = 0) -> Tensor:
        """Standard normals, a function of the demo's seed and the offset."""
        generator = torch.Generator().manual_seed(self.seed + offset)
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def latents(self, n: int, offset: int = 0) -> Tensor:
        """``x_T`` for n samples."""
        return SCHEDULE.sigma(self.grid()[0]) * self.normals(n, 1, 8, 8, offset=offset)

    def sample(
        self,
        sampler: NamedSampler,
        x_T: Tensor,
        label: Tensor,
        noise: Noise | None = None,
        *,
        steps: int = STEPS,
        adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    ) -> Tensor:
        """``x_0`` for the class logits ``label`` (n, 10); zeros ask for no class in particular."""
        frame, solver = sampler
        return sample(
            self.denoiser, x_T, frame=frame, grid=self.grid(steps), solver=solver, noise=noise, cond={"label": label},
            adjoint=adjoint,
        )  # fmt: skip

    def losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """``-log p(label | x)`` by the classifier, (n,)."""
        return functional.cross_entropy(self.classifier(x), labels, reduction="none")

    def class_probabilities(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``p(class | x)``, (n, 10), by the classifier and, exactly, in the mixture, of which no descent knows."""
        logs = []
        for digit in range(10):
            only = torch.full((len(x), 10), -math.inf, dtype=torch.float64)
            only[:, digit] = 0
            logs.append(self.problem.log_prob(x, self.grid()[-1], SCHEDULE, {"label": only}))
        return self.classifier(x).softmax(1), torch.stack(logs, 1).softmax(1)

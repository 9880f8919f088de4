"""One nonlinear solve with everything that can have a gradient, for the tests of the adjoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa

from .networks import Mlp

DOUBLE = torch.float64
SCHEDULE = sa.VPLinear()


@dataclass
class Solve:
    """A call of ``sample`` whose gradients reach x_T, conditioning, weights and (for an SDE) noise.

    ``noise``: ``"fixed"`` gives increments as leaves, ``"shifted"`` a replayed path with shifts of zero as leaves,
    ``"replayed"`` a path without leaves.
    """

    solver: sa.Solver
    steps: int = 10
    eta: float = 0.0
    kind: str = "data"
    noise: str = "fixed"
    x_T_requires_grad: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network = Mlp(4)
        self.x_T = torch.linspace(-1.5, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_(self.x_T_requires_grad)
        self.style = torch.linspace(0, 1, 24, dtype=DOUBLE).reshape(3, 8).requires_grad_()
        self.frame = sa.Frame(SCHEDULE, self.eta, self.kind)
        self.grid: Tensor = self.options.pop("grid", sa.uniform_logsnr(SCHEDULE, self.steps))
        self.leaves = [self.style, *(p for p in self.network.parameters() if p.requires_grad)]
        if self.x_T_requires_grad:
            self.leaves.insert(0, self.x_T)
        self.path: sa.Noise | None = self._noise() if self.eta > 0 else None

    def _noise(self) -> sa.Noise:
        path, levy = sa.BrownianPath(seed=3), self.solver.claims.levy != "none"
        dB, H = path.increments(self.frame, self.grid, self.x_T), path.levy_areas(self.frame, self.grid, self.x_T)
        if self.noise == "replayed":
            return path
        if self.noise == "shifted":
            dB, H = torch.zeros_like(dB), torch.zeros_like(H)
        self.leaves += [dB.requires_grad_()] + ([H.requires_grad_()] if levy else [])
        kind = sa.FixedNoise if self.noise == "fixed" else lambda *given: sa.ShiftedNoise(path, *given)
        return kind(*([dB, H] if levy else [dB]))

    def arguments(self) -> dict[str, Any]:
        return {
            "denoiser": sa.Denoiser(self.network, SCHEDULE, "sample"),
            "x_T": self.x_T,
            "frame": self.frame,
            "grid": self.grid,
            "solver": self.solver,
            "noise": self.path,
            "cond": {"embedding": {"style": [self.style]}},
        } | self.options

    def gradients(self, adjoint: sa.Adjoint) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """The sample and the gradients of all leaves, for one fixed cotangent."""
        out = sa.sample(adjoint=adjoint, **self.arguments())
        cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
        return out.detach(), torch.autograd.grad(out, self.leaves, cotangent, allow_unused=True)


def relative(got: Tensor | None, want: Tensor | None) -> float:
    """Relative error in the Euclidean norm; None must meet None."""
    if got is None or want is None:
        assert got is want, "one adjoint gives a gradient where the other gives None"
        return 0.0
    return float((got - want).norm() / want.norm().clamp(min=1e-300))


def worst(got: tuple[Tensor | None, ...], want: tuple[Tensor | None, ...]) -> float:
    return max(map(relative, got, want))

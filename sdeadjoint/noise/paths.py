"""One Brownian path per sample, on the finest grid and exactly the same on every grid nested in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .fixed import FixedNoise


@dataclass(frozen=True, eq=False)
class Paths:
    """Increments ``dB`` and space-time Levy areas ``H`` over the steps of a clock, both (steps, paths, *event).

    Args:
        clock: (steps + 1,) float64, increasing.
        dB, H: the pair of each step, ``H = 1/h int (B_r - B_0 - (r/h) dB) dr``.
    """

    clock: Tensor
    dB: Tensor
    H: Tensor

    @classmethod
    def draw(cls, clock: Tensor, shape: tuple[int, ...], seed: int) -> Paths:
        """Independent ``dB ~ N(0, h)`` and ``H ~ N(0, h/12)``: the law of a Brownian path, seen on this clock."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        steps, h = len(clock) - 1, _column(clock.diff(), len(shape))
        dB, H = (
            torch.randn(steps, *shape, generator=generator, dtype=torch.float64, device="cpu").mul_((h / part).sqrt())
            for part in (1, 12)
        )
        return cls(clock, dB, H)

    @property
    def steps(self) -> int:
        return len(self.clock) - 1

    def coarsened(self, factor: int) -> Paths:
        r"""The same paths on every ``factor``-th node, up to round-off.

        With ``h_j``, ``W_j``, ``H_j`` of the pieces and ``B_j`` the path at their starts, Chen's relation is
        ``W = sum W_j`` and ``H = 1/h sum h_j (B_j - B_0 + W_j / 2 + H_j) - W / 2``, as the bracket is the mean of
        ``B - B_0`` over piece j.
        """
        if factor < 1 or self.steps % factor:
            raise ValueError(f"factor: got {factor}; pass a positive divisor of the grid's {self.steps} steps")
        if factor == 1:
            return self
        shape = (self.steps // factor, factor, *self.dB.shape[1:])
        h = _column(self.clock.diff(), self.dB.dim() - 1).reshape(shape[0], factor, *[1] * (self.dB.dim() - 1))
        W = self.dB.reshape(shape)
        total = W.sum(1)
        mean = W.cumsum(1).sub_(W, alpha=0.5).add_(self.H.reshape(shape)).mul_(h).sum(1)
        return Paths(self.clock[::factor], total, mean / h.sum(1) - total / 2)

    def standardised_onto(self, clock: Tensor) -> Paths:
        """Increments divided by their standard deviation and multiplied by that of another clock's steps.

        What k-diffusion and diffusers do with a Brownian tree on sigma. The law of each pair is right, but over
        steps of finite length it is not the path of the new clock: the strong order is 1 at most. A counterexample.
        """
        ratio = _column((clock.diff() / self.clock.diff()).sqrt(), self.dB.dim() - 1)
        return Paths(clock, self.dB * ratio, self.H * ratio)

    def first(self, paths: int) -> Paths:
        return replace(self, dB=self.dB[:, :paths], H=self.H[:, :paths])

    def noise(self) -> FixedNoise:
        return FixedNoise(self.dB, self.H)


def _column(values: Tensor, dims: int) -> Tensor:
    return values.reshape(-1, *[1] * dims)

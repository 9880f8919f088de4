"""One Brownian path per sample, drawn on the finest grid and the same on every grid nested in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .fixed import FixedNoise
from .refinable import Piece, combine


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
        """Draw independent ``dB ~ N(0, h)`` and ``H ~ N(0, h/12)``: a Brownian path as seen on this clock."""
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
        """Return the same paths on every ``factor``-th node, up to round-off: Chen's relation, piece after piece."""
        if factor < 1 or self.steps % factor:
            raise ValueError(f"factor: got {factor}; pass a positive divisor of the grid's {self.steps} steps")
        if factor == 1:
            return self
        h = _column(self.clock.diff(), self.dB.dim() - 1)
        # A piece's length is a column here, with one entry for each coarse step.
        pieces = (Piece(h[j::factor], self.dB[j::factor], self.H[j::factor]) for j in range(factor))  # type: ignore[arg-type]
        whole = reduce(combine, pieces)
        return Paths(self.clock[::factor], whole.W, whole.H)

    def standardised_onto(self, clock: Tensor) -> Paths:
        """Divide increments by their standard deviation and multiply them by that of another clock's steps.

        k-diffusion and diffusers do this with a Brownian tree on sigma. The law of each pair is right, but over steps
        of finite length it is not the path of the new clock: the strong order is 1 at most. A counterexample.
        """
        ratio = _column((clock.diff() / self.clock.diff()).sqrt(), self.dB.dim() - 1)
        return Paths(clock, self.dB * ratio, self.H * ratio)

    def part(self, of: slice) -> Paths:
        """Return some of the paths."""
        return Paths(self.clock, self.dB[:, of], self.H[:, of])

    def noise(self) -> FixedNoise:
        return FixedNoise(self.dB, self.H)


def _column(values: Tensor, dims: int) -> Tensor:
    return values.reshape(-1, *[1] * dims)

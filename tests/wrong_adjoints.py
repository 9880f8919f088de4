"""Wrong adjoints, for checks that must find them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdeadjoint.adjoints import Adjoint, Direct
from sdeadjoint.discretization import Discretization
from sdeadjoint.integrate import Observer
from sdeadjoint.noise import BoundNoise, Increment


@dataclass(frozen=True)
class Scaled(Adjoint):
    """The right sample, and its gradient times a factor."""

    factor: float

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        (y,) = Direct().solve(recursion, x_T, keep=False, observe=observe)
        return (y.detach() + self.factor * (y - y.detach()),)


@dataclass(frozen=True)
class WithoutNoise(Adjoint):
    """The right sample, without the gradient of the noise."""

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if recursion.noise is not None:
            recursion = replace(recursion, noise=_Constant(recursion.noise))
        return Direct().solve(recursion, x_T, keep=keep, observe=observe)


@dataclass(frozen=True)
class _Constant(BoundNoise):
    noise: BoundNoise

    def increment(self, n: int) -> Increment:
        dB, H = self.noise.increment(n)
        return Increment(dB.detach(), None if H is None else H.detach())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.noise.tensors


@dataclass(frozen=True)
class NotANumber(Adjoint):
    """The right sample, and no gradient to speak of."""

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        (y,) = Direct().solve(recursion, x_T, keep=False, observe=observe)
        y.register_hook(lambda a: torch.full_like(a, torch.nan))
        return (y,)

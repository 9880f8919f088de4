"""The last step's gradient, averaged over fresh noise: DRaFT-LV."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..recursion import Carry, Observer, Recursion
from .base import Adjoint
from .replay.forward import Replayed
from .replay.snapshots import Snapshots
from .tangents import refuse_tangents
from .truncated import refuse_beyond_reach


@dataclass(frozen=True)
class LowVariance(Adjoint):
    """The gradient of the last step, averaged over fresh draws of the state before it.

    The sample x_0 is noised ``copies`` times to the time of the last step, ``x^i = (alpha'/alpha) x_0 + std z_i`` (the
    forward process), and the cotangent of x_0 is pulled back through the last step from each ``x^i``; the mean is
    returned. Less variance than ``Truncated(last=1)`` at the price of ``copies`` further network calls, with the
    same bias: everything before the last step is a constant.

    Args:
        copies: how many draws, n >= 1.
        seed: of the draws; pass another one in each iteration of training.

    The value is the sampler's own. The last step is taken as a first step, without a multistep solver's past, which the
    fresh states do not have; an SDE's last increment is replayed in each. The paper evaluates the reward once for
    every re-noised prediction; here its derivative at x_0 serves for all, which differs by terms of the size of
    the last step's change. Gradients: weights, conditioning, and the last slot of a noise tensor.
    Errors: as ``Truncated``. Source: Clark, Vicol, Swersky and Fleet (2024), DRaFT-LV.
    """

    copies: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("copies", self.copies, 1), ("seed", self.seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}; pass an integer >= {least}")

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        refuse_beyond_reach(repr(self), y, keep=keep)
        refuse_tangents(recursion, y, repr(self))
        replayed = Replayed(Snapshots(1), last=1)
        y = replayed.solve(recursion, y, keep=False, observe=observe)[0].detach()
        if not torch.is_grad_enabled():
            return (y,)
        n, generator = recursion.steps - 1, torch.Generator(device="cpu").manual_seed(self.seed)
        mean = torch.zeros_like(y)
        for _ in range(self.copies):
            z = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y)
            mean = mean + _last_step(recursion, y, z) / self.copies
        out = y + (mean - mean.detach())
        if recursion.hook is not None and out.requires_grad:
            out.register_hook(partial(recursion.hook, n + 1))
        return (out,)


def _last_step(recursion: Recursion, y: Tensor, z: Tensor) -> Tensor:
    """``y_N`` from a state before the last step that is drawn anew, by the forward process, from the present one."""
    n, equation = recursion.steps - 1, recursion.equation
    x = equation.noising(n, equation.leave(n + 1, y), z)
    if n == 0:
        equation = equation.starting_at(x)
    fresh = replace(recursion, equation=equation, hook=None)
    return fresh.step(n, Carry(equation.enter(x, n), recursion.solver.initial_state), recursion.increment(n)).y

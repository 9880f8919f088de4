"""The last step's gradient, averaged over fresh noise: DRaFT-LV."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..discretization import Carry, Discretization
from ..integrate import Observer
from .base import Adjoint
from .replay.backward import Replayed
from .replay.snapshots import Snapshots
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

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        refuse_beyond_reach(repr(self), x_T, keep=keep)
        replayed = Replayed(Snapshots(1), last=1)
        y = replayed.solve(recursion, x_T, keep=False, observe=observe)[0].detach()
        if not torch.is_grad_enabled():
            return (y,)
        n, generator = recursion.steps - 1, torch.Generator(device="cpu").manual_seed(self.seed)
        unhooked, mean = replace(recursion, hook=None), torch.zeros_like(y)
        for _ in range(self.copies):
            carry = Carry(self._noised(recursion, y, generator), recursion.solver.initial_state)
            mean = mean + unhooked.step(n, carry, recursion.increment(n)).y / self.copies
        out = y + (mean - mean.detach())
        if recursion.hook is not None and out.requires_grad:
            out.register_hook(partial(recursion.hooked, n + 1))
        return (out,)

    def _noised(self, recursion: Discretization, y: Tensor, generator: torch.Generator) -> Tensor:
        """A state before the last step, drawn from the forward process started at the sample; in the carry's form."""
        n, schedule = recursion.steps - 1, recursion.frame.schedule
        (alpha0, sigma0), (alpha1, sigma1) = (
            (float(schedule.alpha(t)), float(schedule.sigma(t))) for t in recursion.times[n:]
        )
        ratio = alpha0 / alpha1
        z = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y)
        x = ratio * recursion.state(n + 1, y) + math.sqrt(sigma0**2 - (ratio * sigma1) ** 2) * z
        return x if n == 0 else x / recursion.weights[n]

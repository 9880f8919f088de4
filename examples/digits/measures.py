"""What several examples measure: network calls, and how far a gradient is from the exact one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdeadjoint as sa


class Counted:
    """A network that counts its calls: ``sa.Denoiser(counted, ...)``."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.calls = network, 0

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x, t, **cond)


class Tallied:
    """A network that counts the passes through it, forward and backward: ``sa.Denoiser(tallied, ...)``.

    A tangent that is made by differentiating a backward pass counts as one more of these: it costs as much.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network, self.forward, self.backward = network, 0, 0

    @property
    def calls(self) -> int:
        return self.forward + self.backward

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.forward += 1
        out: Tensor = _Passed.apply(self.network(x, t, **cond), self)
        return out


class _Passed(torch.autograd.Function):
    """The identity, which tells of every pass back through it, that through its own backward pass included."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tally: Tallied) -> Tensor:
        ctx.tally = tally
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.tally.backward += 1
        return _Passed.apply(grad, ctx.tally), None


class Agreement(NamedTuple):
    """Medians over the samples of ``|g - exact| / |exact|`` and of the cosine between both."""

    error: float
    cosine: float


def agreement(gradient: Tensor, exact: Tensor) -> Agreement:
    """How one gradient (batch, ...) agrees with the exact one."""
    g, e = gradient.flatten(1), exact.flatten(1)
    error = (g - e).norm(dim=1) / e.norm(dim=1)
    return Agreement(float(error.median()), float(torch.cosine_similarity(g, e, eps=1e-300).median()))


def norms(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (batch, 1, 1, 1): never 0, so that one may divide by it."""
    return x.flatten(1).norm(dim=1).clamp_min(1e-300)[:, None, None, None]


def posterior(problem: sa.problems.Digits, x: Tensor, digits: Tensor, at: tuple[sa.Schedule, Tensor]) -> Tensor:
    """The exact ``p(digit | x)``, (n,), of one digit for each x, among ten equally likely ones.

    ``problem`` is conditional; ``at`` is the schedule, and the time at which x is a state of it.
    """
    schedule, t = at
    logs = []
    for digit in range(10):
        only = torch.full((len(x), 10), -math.inf, dtype=torch.float64)
        only[:, digit] = 0
        logs.append(problem.log_prob(x, t, schedule, {"label": only}))
    return torch.stack(logs, 1).softmax(1).gather(1, digits[:, None])[:, 0]

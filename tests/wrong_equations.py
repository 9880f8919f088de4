"""An equation with one fault at a time, for ``check_equation``, which must find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.solvers import Drift

DOUBLE = torch.float64


class Doubled(torch.autograd.Function):
    """The identity, with twice its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@dataclass(frozen=True, eq=False)
class Pull(sa.Equation):
    """``dx = (tanh(network(x)) + rate (target - x)) ds + dW`` in the coordinates ``y = x / (1 + s)``.

    ``fault`` says in what it is wrong; without one it is right.
    """

    target: Tensor
    rate: Tensor
    network: nn.Module
    clocks: tuple[float, ...] = (0.0, 0.1, 0.3, 0.4)
    times: tuple[float, ...] = (5.0, 5.1, 5.3, 5.4)
    weights: tuple[float, ...] = (1.0, 1.1, 1.3, 1.4)
    noise_clock: tuple[float, ...] | None = (0.0, 0.1, 0.3, 0.4)
    start: Any = None
    fault: str = ""
    kept: Any = None

    @property
    def module(self) -> nn.Module:
        return self.network

    @property
    def tensors(self) -> dict[str, Any]:
        start = None if self.fault == "hides the start" else self.start
        return {"start": start, "target": [self.target], "rate": self.rate}

    def on(self, tensors: dict[str, Any]) -> Pull:
        target = self.target if self.fault == "keeps the target" else tensors["target"][0]
        rate = tensors["rate"].clone() if self.fault == "copies the rate" else tensors["rate"]
        kept = self.kept
        if self.fault == "keeps the old target elsewhere":
            kept = self.target
        clocks = (
            tuple(s + 1 for s in self.clocks) if self.fault == "moves the clock" else self.clocks
        )
        start = self.start if tensors["start"] is None else tensors["start"]
        return replace(self, target=target, rate=rate, start=start, kept=kept, clocks=clocks)

    def starting_at(self, x: Any) -> Pull:
        if self.fault == "copies the start":
            x = x.clone()
        if self.fault == "starts in place":
            object.__setattr__(self, "start", x)
            return self
        return replace(self, start=x)

    def at(self, n: int, s: float) -> tuple[float, float]:
        if self.fault == "rounds its times":
            return float(torch.tensor(5 + s, dtype=torch.float32)), 1 + s
        for end in (n, n + 1):
            if s == self.clocks[end]:
                return self.times[end], self.weights[end]
        return 5 + s, 1 + s

    def enter(self, x: Any, n: int = 0) -> Tensor:
        y = super().enter(x, n)
        wrong = {
            "forgets the weight": lambda: x.clone(),
            "enters by a square": lambda: y + 1e-3 * x * x,
            "enters with an offset": lambda: y + 1e-3,
            "narrows": lambda: y.float(),
            "enters by sharing": lambda: x if self.weights[n] == 1 else y,
        }
        return wrong.get(self.fault, lambda: y)()

    def leave(self, n: int, y: Tensor) -> Any:
        if self.fault == "leaves by sharing" and self.weights[n] == 1:
            return y
        x = super().leave(n, y)
        return x - 1e-3 if self.fault == "enters with an offset" else x

    def outward(self, n: int, a: Tensor) -> Any:
        return a * self.weights[n] if self.fault == "outward multiplies" else super().outward(n, a)

    def inward(self, n: int, a: Any) -> Tensor:
        return a / self.weights[n] if self.fault == "inward divides" else super().inward(n, a)

    def bind(self, noise: Any, like: Tensor, *, levy: bool) -> Any:
        like = like[:1] if self.fault == "noise of one sample" else like
        return super().bind(noise, like, levy=levy)

    def recast(self, kind: str | None, times: Sequence[float], slots: Sequence[int]) -> Pull:
        clocks = tuple(t - 5 for t in times)
        if self.fault == "recasts to other clocks":
            return replace(self, clocks=clocks, times=tuple(times), rate=2 * self.rate)
        weights = tuple(1 + s for s in clocks)
        nu = None if self.noise_clock is None else clocks
        return replace(self, clocks=clocks, times=tuple(times), weights=weights, noise_clock=nu)

    def drift(self, n: int) -> Drift:
        def drift(s: float, y: Tensor) -> Tensor:
            return self._faulty(n, s, y, self._plain(s, y))

        return drift

    def _plain(self, s: float, y: Tensor) -> Tensor:
        weight = 1 + s
        x = weight * y
        target, rate = self.target, self.rate
        if self.fault == "detaches the target":
            target = target.detach()
        if self.fault == "detaches y":
            x = x.detach()
        if self.fault == "doubles a gradient":
            rate = Doubled.apply(rate)
        pull = torch.tanh(self.network(x)) + rate * (target - x)
        if self.kept is not None:
            pull = pull + 0 * self.kept
        return (pull - y) / weight

    def _faulty(self, n: int, s: float, y: Tensor, F: Tensor) -> Tensor:
        if self.fault == "edits y":
            y.add_(1e-9)
        if self.fault == "edits the target":
            with torch.no_grad():
                self.target.add_(1e-9)
        if self.fault == "counts":
            COUNT.append(1)
            F = F + 1e-9 * len(COUNT)
        if self.fault == "draws":
            torch.rand(1)
        if self.fault == "detaches under no_grad" and not torch.is_grad_enabled():
            F = F + 1e-6
        if self.fault == "reads strides" and not y.is_contiguous():
            F = F + 1e-6
        if self.fault == "has a pole" and s == self.clocks[-1]:
            F = F / 0
        wrong = {
            "widens": lambda: F.float(),
            "flattens": lambda: F.flatten(),
            "returns a number": lambda: float(F.sum()),
            "detaches the parameters": lambda: F.detach() + (y - y.detach()),
        }
        return wrong.get(self.fault, lambda: F)()


COUNT: list[int] = []


def pull(fault: str = "", **changes: Any) -> Pull:
    """The equation with a fault, made anew."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    network = nn.Linear(3, 3).double()
    with torch.no_grad():
        network.weight.copy_(drawn(3, 3))
        network.bias.copy_(drawn(3))
    target, rate = drawn(3).requires_grad_(), drawn().requires_grad_()
    return Pull(target, rate, network, start=drawn(2, 3), fault=fault, **changes)

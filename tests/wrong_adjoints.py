"""Wrong adjoints, for checks that must find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint import nests
from sdeadjoint.adjoints import Adjoint, Direct
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.noise import BoundNoise, Increment
from sdeadjoint.recursion import Observer, Recursion


@dataclass(frozen=True)
class Scaled(Adjoint):
    """The right sample, and its gradient times a factor."""

    factor: float

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        (y,) = Direct().solve(recursion, y, keep=False, observe=observe)
        return (y.detach() + self.factor * (y - y.detach()),)


@dataclass(frozen=True)
class WithoutNoise(Adjoint):
    """The right sample, without the gradient of the noise."""

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if recursion.noise is not None:
            recursion = replace(recursion, noise=_Constant(recursion.noise))
        return Direct().solve(recursion, y, keep=keep, observe=observe)


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

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        (y,) = Direct().solve(recursion, y, keep=False, observe=observe)
        y.register_hook(lambda a: torch.full_like(a, torch.nan))
        return (y,)


@dataclass(frozen=True)
class Forgets(Adjoint):
    """The right sample, without the gradient of what its name says."""

    what: str

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        equation = recursion.equation
        assert isinstance(equation, Diffusion)
        cond, denoiser = equation.cond, equation.denoiser
        if self.what == "all conditioning":
            cond = nests.map_tensors(Tensor.detach, cond)
        if self.what == "the second tensor":
            cond = nests.map_tensors(_all_but_first(), cond)
        if self.what == "scheduled tensors":
            cond = _without_schedules(cond)
        if self.what.startswith("guidance") and denoiser.guidance is not None:
            name = self.what.split(".")[1]
            held = nests.map_tensors(Tensor.detach, denoiser.guidance.tensors[name])
            denoiser = denoiser.guided_by(replace(denoiser.guidance, **{name: held}))
        other = replace(equation, cond=cond, denoiser=denoiser)
        return Direct().solve(replace(recursion, equation=other), y, keep=keep, observe=observe)


def _all_but_first() -> Callable[[Tensor], Tensor]:
    seen: list[Tensor] = []

    def held(value: Tensor) -> Tensor:
        seen.append(value)
        return value if len(seen) == 1 else value.detach()

    return held


def _without_schedules(nest: Any) -> Any:
    if isinstance(nest, sa.Scheduled):
        return nests.map_tensors(Tensor.detach, nest)
    return nests.map_items(_without_schedules, nest) if isinstance(nest, dict | list) else nest


@dataclass(frozen=True)
class Sometimes(Adjoint):
    """The right sample; its gradient is 10 % off in the solves that its name says."""

    when: str

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        out = Direct().solve(recursion, y, keep=keep, observe=observe)
        equation = recursion.equation
        assert isinstance(equation, Diffusion)
        guidance, frame = equation.denoiser.guidance, equation.frame
        off = {
            "float32": y.dtype != torch.float64,
            "long": recursion.steps > 6,
            "one step": recursion.steps == 1,
            "one sample": len(y) == 1,
            "undeclared weights": not any(True for _ in equation.denoiser.parameters()),
            "v_prediction": equation.denoiser.prediction == "v_prediction",
            "the noise kind": frame.kind == "noise",
            "other eta": frame.eta not in (0, 1),
            "a flow": isinstance(frame.schedule, sa.RectifiedFlow),
            "two calls": guidance is not None and not guidance.batched,
            "constant x_T": not y.requires_grad,
            "replayed noise": recursion.noise is not None and not recursion.noise.tensors,
        }[self.when]
        return tuple(y.detach() + 0.9 * (y - y.detach()) for y in out) if off else out


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.passes = 0
        return y.clone()

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Tensor:  # type: ignore[override]
        ctx.passes += 1
        return a * ctx.passes


@dataclass(frozen=True)
class OnlyOnce(Adjoint):
    """The right sample and gradient; a second pass over the retained graph doubles it, or is ``refused``."""

    refused: bool = False

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        out = Direct().solve(recursion, y, keep=keep, observe=observe)
        if not self.refused:
            return tuple(_Once.apply(y) if y.requires_grad else y for y in out)
        passes: list[Tensor] = []

        def refuse(a: Tensor) -> None:
            passes.append(a)
            if len(passes) > 1:
                raise RuntimeError("backward: a second time; pass adjoint=Checkpoint()")

        if out[-1].requires_grad:
            out[-1].register_hook(refuse)
        return out


@dataclass(frozen=True)
class WrongSecond(Adjoint):
    """The right sample and gradient; what depends on the cotangent is off in the gradient's derivative."""

    factor: float = 0.9

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        out = Direct().solve(recursion, y, keep=keep, observe=observe)
        for state in out:
            if state.requires_grad:
                state.register_hook(lambda a: a.detach() + self.factor * (a - a.detach()))
        return out

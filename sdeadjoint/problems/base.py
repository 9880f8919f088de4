"""What every exactly solvable problem offers, and the one door at which its arguments are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from sdeadjoint.diffusion.denoiser import Denoiser
from sdeadjoint.diffusion.schedules import Schedule

Cond: TypeAlias = Mapping[str, Tensor] | None
Numbers: TypeAlias = float | Tensor | list | tuple

PRINTED = 16  # numbers that a repr writes out


class Problem(ABC):
    """Data whose diffusion ``x_t = alpha_t x_0 + sigma_t eps`` is known exactly, under any schedule.

    States ``x`` have shape (batch, *event_shape) and any floating dtype and device. The arithmetic is float64
    inside, also under autocast, so results are exact for the ``x`` they were given, up to float64 round-off,
    and then rounded once, to the dtype of ``x``. Everything is a pure function, differentiable as often as
    one likes in ``x`` and ``cond``. Times are a number or a tensor (batch,); sigma = 0 and alpha = 0 are
    ordinary times.

    Not for speed: a float64 problem on a GPU that is slow in float64 is slower than a small network.

    A subclass is a frozen dataclass that states

    1. ``event_shape``, ``sample`` and ``tilted``;
    2. ``_constants``: the tensors it computes with, on the CPU; ``_on(device)`` gives them on the device of ``x``,
       evaluated and copied there once;
    3. ``_fits(shape)``: whether it is defined for events of this shape;
    4. ``_posterior_mean``, ``_score``, ``_log_prob``: float64 ``x`` to float64 result. ``alpha`` and
       ``sigma`` are float64, either 0-d or (batch, 1, ..., 1), on the device of ``x``. Conditioning that the
       problem does not have is refused.
    """

    @property
    @abstractmethod
    def event_shape(self) -> torch.Size:
        """The shape of one data point."""

    @abstractmethod
    def sample(self, n: int, seed: int, cond: Cond = None) -> Tensor:
        """``n`` exact, independent draws of the data: float64 (n, *event_shape) on the CPU, a function of ``seed``."""

    @abstractmethod
    def tilted(self, reward: Callable[[Tensor], Tensor], cond: Cond = None) -> Problem:
        """The law ``p_0(x) e^reward(x) / Z``: what tuning by a reward aims at, as a problem of its own.

        Args:
            reward: ``Quadratic(slope, curvature)``, or any function of states (batch, ...) that is one: its
                coefficients are then found by derivatives, and another function is refused.
            cond: of a conditional problem: that of one sample.

        Errors: ``ValueError`` for another reward, and for a curvature of ``1 / variance`` or more, where Z is infinite.
        """

    @property
    @abstractmethod
    def _constants(self) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def _fits(self, shape: torch.Size) -> bool: ...

    @abstractmethod
    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor: ...

    @abstractmethod
    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor: ...

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The perfect network: a ``Denoiser`` that predicts ``E[x_0 | x_t]``, regular at both ends of the schedule.

        It is given its time in float64 whatever the state's dtype: a bfloat16 time would be another time.
        """
        return Denoiser(PosteriorMean(self, schedule), schedule, prediction="sample", time_dtype=torch.float64)

    def posterior_mean(self, x: Tensor, t: Tensor | float, schedule: Schedule, cond: Cond = None) -> Tensor:
        """``E[x_0 | x_t = x]``, of the shape and dtype of ``x``."""
        return self._posterior_mean(*self._door(x, t, schedule), cond).to(x.dtype)

    def score(self, x: Tensor, t: Tensor | float, schedule: Schedule, cond: Cond = None) -> Tensor:
        """``grad log p_t(x)``, of the shape and dtype of ``x``; regular at sigma = 0."""
        return self._score(*self._door(x, t, schedule), cond).to(x.dtype)

    def log_prob(
        self, x: Tensor, t: Tensor | float | None = None, schedule: Schedule | None = None, cond: Cond = None
    ) -> Tensor:
        """``log p_t(x)``, shape (batch,), in the dtype of ``x``; without a time and a schedule that of the data."""
        if t is not None and schedule is not None:
            return self._log_prob(*self._door(x, t, schedule), cond).to(x.dtype)
        if t is not None or schedule is not None:
            missing = "schedule" if schedule is None else "t"
            raise ValueError(f"{missing}: got None; pass both t and schedule, or neither for the density of the data")
        self._check_state(x, "x")
        alpha, sigma = (torch.tensor(value, dtype=torch.float64, device=x.device) for value in (1.0, 0.0))
        return self._log_prob(x.double(), alpha, sigma, cond).to(x.dtype)

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The constants on a device."""
        if device not in self._copies:
            with torch.inference_mode(False):  # an inference tensor could not be differentiated through later
                self._copies[device] = tuple(value.to(device) for value in self._constants)
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def _door(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        self._check_state(x, "x")
        alpha, sigma = schedule.alpha(t).to(x.device), schedule.sigma(t).to(x.device)
        if alpha.ndim > 0:
            if alpha.shape != x.shape[:1]:
                raise ValueError(f"t: got shape {tuple(alpha.shape)}; pass a number or a tensor ({x.shape[0]},)")
            alpha, sigma = (value.reshape(-1, *[1] * (x.ndim - 1)) for value in (alpha, sigma))
        return x.double(), alpha, sigma

    def _check_state(self, x: Tensor, name: str) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: got {got}; pass a real floating-point tensor")
        if x.ndim == 0 or not self._fits(x.shape[1:]):
            wanted = ", ".join(["batch", *map(str, self.event_shape)])
            raise ValueError(f"{name}: got shape {tuple(x.shape)}; {self!r} needs shape ({wanted})")


@dataclass(frozen=True)
class PosteriorMean:
    """``network(x, t, **cond)`` of a problem's denoiser."""

    problem: Problem
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return self.problem.posterior_mean(x, t, self.schedule, cond)


def constant(value: Numbers, name: str) -> Tensor:
    """A problem's parameter as its own float64 tensor on the CPU."""
    if isinstance(value, Tensor) and (value.requires_grad or value.is_complex() or value.dtype == torch.bool):
        raise ValueError(
            f"{name}: got a tensor of dtype {value.dtype}, requires_grad={value.requires_grad}; problems are real "
            f"constants, so pass {name}.detach(), or write the network whose parameters you want to differentiate"
        )
    result = torch.as_tensor(value, dtype=torch.float64, device="cpu").clone()
    if not torch.isfinite(result).all():
        raise ValueError(f"{name}: has NaN or infinite entries; pass finite numbers")
    return result


def positive(value: Numbers, name: str) -> Tensor:
    """A parameter that must be positive."""
    result = constant(value, name)
    if not (result > 0).all():
        raise ValueError(f"{name}: got {result.min().item()}; pass positive numbers only")
    return result


def no_cond(cond: Cond) -> None:
    """Refuse conditioning where there is nothing to condition on."""
    if cond:
        raise ValueError(f"cond: got {sorted(cond)}; this problem has no conditioning, so pass none")


def generator(n: int, seed: int) -> torch.Generator:
    """The generator of a problem's draws, independent of the global one."""
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}; pass an integer >= {least}")
    return torch.Generator(device="cpu").manual_seed(seed)


def call(name: str, *values: Tensor) -> str:
    """The ``repr`` of a problem: the call that makes it, with large tensors named by their shape."""
    texts = (str(v.tolist()) if v.numel() <= PRINTED else f"<tensor {tuple(v.shape)}>" for v in values)
    return f"{name}({', '.join(texts)})"

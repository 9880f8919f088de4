"""Calling a diffusers model: its argument's scale, its time, its output's meaning."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..diffusion.schedules import Schedule
from .base import Wrapper
from .signature import signature_of
from .timesteps import Pinned, Timesteps


class Preconditioning(ABC):
    """What a scheduler does around the model ``F``: ``c_skip x + c_out F(c_in x)`` is the prediction it works with."""

    @abstractmethod
    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """``(c_in, c_skip, c_out)`` at noise levels (batch,), float64; None for 0."""


@dataclass(frozen=True)
class VarianceExploding(Preconditioning):
    """A variance-preserving model on states ``x_0 + level eps``: its argument is ``x / sqrt(1 + level^2)``.

    Its ``v`` is ``alpha eps - sigma x_0`` with ``alpha = 1 / sqrt(1 + level^2)``; on the states it is ``eps - level
    x_0``, which is ``v / alpha``. Noise and x_0 are what they are.
    """

    prediction: str

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        root = (1 + level.square()).sqrt()
        return 1 / root, None, root if self.prediction == "v_prediction" else torch.ones_like(level)


@dataclass(frozen=True)
class EDM(Preconditioning):
    """The coefficients of Karras et al. (2022), table 1, which make x_0; ``sign`` is that of c_out."""

    sigma_data: float
    sign: float

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        total = level.square() + self.sigma_data**2
        return 1 / total.sqrt(), self.sigma_data**2 / total, self.sign * self.sigma_data * level / total.sqrt()


@dataclass(frozen=True)
class Boundary(Preconditioning):
    """A consistency function, which is the identity at t = 0: ``c x + sqrt(1 - c) x_0``, ``c = d^2 / (t^2 + d^2)``.

    ``x_0`` is what a variance-preserving model predicts at the time t of its table. Source: Luo et al. (2023), Latent
    Consistency Models, section 4.1 and appendix.
    """

    schedule: Schedule
    prediction: str
    width: float

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        skip = self.width**2 / (level.square() + self.width**2)
        out = level / (level.square() + self.width**2).sqrt()
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        ones = torch.ones_like(level)
        if self.prediction == "epsilon":
            return ones, skip + out / alpha, -out * sigma / alpha
        if self.prediction == "v_prediction":
            return ones, skip + out * alpha, -out * sigma
        return ones, skip, out


class DiffusersNetwork(Wrapper):
    """``network(x, level, **cond)`` on a diffusers model, which gets its own timestep and its own scale.

    ``adjust`` changes the timestep on its way to models that count otherwise. Outputs with twice the channels of x
    are a mean and a learned variance; the variance is dropped.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        preconditioning: Preconditioning | None,
        timesteps: Timesteps,
        adjust: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__(model)
        self.preconditioning = preconditioning
        self.timesteps = timesteps
        self.adjust = adjust
        signature = signature_of(model)
        self.state_name = signature.state_name
        self.returns_dict = "return_dict" in signature.names

    def pinned(self, levels: Tensor, timesteps: Tensor) -> DiffusersNetwork:
        other = copy.copy(self)  # the same model: the copy's tables of submodules are the original's
        other.timesteps = Pinned(tuple(levels.tolist()), tuple(timesteps.tolist()), self.timesteps)
        return other

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        if self.preconditioning is None:
            return self._predict(x, x, t, cond)
        # Coefficients are rounded once, to the dtype of what they multiply.
        coefficients = self.preconditioning.coefficients(t)
        c_in, c_skip, c_out = (c if c is None else c.reshape(-1, *[1] * (x.ndim - 1)) for c in coefficients)
        assert c_in is not None
        assert c_out is not None
        out = self._predict(c_in.to(x.dtype) * x, x, t, cond)
        if not isinstance(out, Tensor) or out.shape != x.shape or not out.is_floating_point():
            return out  # the denoiser says what is wrong with it
        out = c_out.to(out.dtype) * out
        return out if c_skip is None else c_skip.to(x.dtype) * x + out

    def _predict(self, given: Tensor, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Any:
        """The model's own output, without a learned variance."""
        out = self._call(self.narrowed(given), self._timestep(t), cond)
        if isinstance(out, Tensor) and x.ndim > 1 and out.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
            out = out[:, : x.shape[1]]
        return self.widened(out, x)

    def _timestep(self, t: Tensor) -> Tensor:
        timestep = self.timesteps.timestep(t)
        timestep = timestep.long() if self.timesteps.whole else timestep.float()
        return timestep if self.adjust is None else self.adjust(timestep)

    def _call(self, x: Tensor, timestep: Tensor, cond: Mapping[str, Any]) -> Any:
        options = {"return_dict": False} if self.returns_dict else {}
        with self.explained(x, cond):
            if self.state_name is None:
                out = self.model(x, timestep, **cond, **options)
            else:
                out = self.model(**{self.state_name: x, "timestep": timestep}, **cond, **options)
        if isinstance(out, tuple) and out:
            return out[0]
        return out["sample"] if isinstance(out, Mapping) and "sample" in out else out

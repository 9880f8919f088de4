"""The three kinds of coordinates that a frame has: what the solver integrates, and on which clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


class Kind(ABC):
    """Formulas of one row of the table in ``Frame``, for ``lam = log(alpha / sigma)`` and eta >= 0.

    Everything is float64, elementwise. Infinite arguments give the exact limits.
    """

    prediction: ClassVar[str]
    """The prediction that ``F`` is, by the name that denoisers have for it."""

    @abstractmethod
    def weight(self, log_alpha: Tensor, log_sigma: Tensor, lam: Tensor, eta: float) -> Tensor:
        """``w``."""

    @abstractmethod
    def clock(self, lam: Tensor, eta: float) -> Tensor:
        """``s``."""

    @abstractmethod
    def noise_clock(self, lam: Tensor, eta: float) -> Tensor:
        """``nu``, for eta > 0."""

    @abstractmethod
    def lam(self, s: Tensor, eta: float, least: Tensor) -> Tensor:
        """The lambda with ``clock(lambda, eta) = s``; ``least`` is the smallest that the schedule has."""


@dataclass(frozen=True)
class Data(Kind):
    """``w = sigma e^(-eta lambda)``, ``s = e^((1+eta) lambda)``, ``nu = e^(2 eta lambda)``, F predicts x_0."""

    prediction: ClassVar[str] = "sample"

    def weight(self, log_alpha: Tensor, log_sigma: Tensor, lam: Tensor, eta: float) -> Tensor:
        return log_sigma.exp() if eta == 0 else (log_sigma - eta * lam).exp()

    def clock(self, lam: Tensor, eta: float) -> Tensor:
        return ((1 + eta) * lam).exp()

    def noise_clock(self, lam: Tensor, eta: float) -> Tensor:
        return (2 * eta * lam).exp()

    def lam(self, s: Tensor, eta: float, least: Tensor) -> Tensor:
        return s.log() / (1 + eta)


@dataclass(frozen=True)
class Noise(Kind):
    """``w = alpha``, ``s = (1+eta) e^(-lambda)``, ``nu = -eta e^(-2 lambda)``, F predicts eps."""

    prediction: ClassVar[str] = "epsilon"

    def weight(self, log_alpha: Tensor, log_sigma: Tensor, lam: Tensor, eta: float) -> Tensor:
        return log_alpha.exp()

    def clock(self, lam: Tensor, eta: float) -> Tensor:
        return (1 + eta) * (-lam).exp()

    def noise_clock(self, lam: Tensor, eta: float) -> Tensor:
        return -eta * (-2 * lam).exp()

    def lam(self, s: Tensor, eta: float, least: Tensor) -> Tensor:
        return -(s / (1 + eta)).log()


@dataclass(frozen=True)
class Flow(Kind):
    """``w = (alpha + sigma) (1+r)^eta``, ``s = 1 - (1+r)^(-(1+eta))`` with ``r = e^(-lambda)``, F predicts eps - x_0.

    ``log(1+r) = softplus(-lambda)`` is accurate at both ends.
    """

    prediction: ClassVar[str] = "flow_prediction"

    def weight(self, log_alpha: Tensor, log_sigma: Tensor, lam: Tensor, eta: float) -> Tensor:
        plain = log_alpha.exp() + log_sigma.exp()
        return plain if eta == 0 else plain * (eta * _softplus(-lam)).exp()

    def clock(self, lam: Tensor, eta: float) -> Tensor:
        return -torch.expm1(-(1 + eta) * _softplus(-lam))

    def noise_clock(self, lam: Tensor, eta: float) -> Tensor:
        # From 0 at the noisy end: w is large there, and what differences of nu lose is multiplied by w^2.
        log1r, e = _softplus(-lam), 2 * eta
        return (-e * log1r).exp() * (1 - e / (1 + e) * (-log1r).exp())

    def lam(self, s: Tensor, eta: float, least: Tensor) -> Tensor:
        lam = -torch.expm1(-torch.log1p(-s) / (1 + eta)).log()
        # Past the schedule's noisy end by no more than the round-off of s is that end.
        least = least.to(lam.device)
        return torch.where((lam < least) & (lam >= least - 4 * _EPS / (1 - s)), least, lam)


KINDS: dict[str, Kind] = {"data": Data(), "noise": Noise(), "flow": Flow()}
"""By the names that ``Frame(..., kind=)`` takes."""


def _softplus(u: Tensor) -> Tensor:
    """``log(1 + e^u)``, accurate at both ends."""
    return torch.logaddexp(u, torch.zeros_like(u))

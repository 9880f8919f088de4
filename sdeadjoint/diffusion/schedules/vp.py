"""Variance-preserving schedules, ``alpha^2 + sigma^2 = 1``: linear beta and cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Schedule


@dataclass(frozen=True)
class VPLinear(Schedule):
    """The VP SDE with ``beta(t)`` linear: ``log alpha = -(beta_min t / 2 + (beta_max - beta_min) t^2 / 4)``.

    ``t`` in [0, 1]; default sampling ends 1 and 1e-3. ``0 <= beta_min <= beta_max``, ``beta_max > 0``. The
    inverse is the root of a quadratic, in the form without cancellation. Source: Song et al. 2021
    (Score-based generative modeling through SDEs), eq. 33. For a network trained on a table of betas use
    ``Tabulated``: DDPM's table agrees with this schedule only to about 1/T.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta_min <= self.beta_max < math.inf and self.beta_max > 0):
            raise ValueError(
                f"beta_min and beta_max must be finite with 0 <= beta_min <= beta_max and beta_max > 0, "
                f"got {self.beta_min} and {self.beta_max}"
            )

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return 1e-3

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min / 2 + (self.beta_max - self.beta_min) / 4 * t) * t

    def _log_sigma(self, t: Tensor) -> Tensor:
        # sigma^2 = 1 - e^x. Near x = 0 expm1 keeps sigma, far from it log1p keeps log sigma.
        x = 2 * self._log_alpha(t)
        return torch.where(x > -math.log(2), (-x.expm1()).log(), (-x.exp()).log1p()) / 2

    def _time(self, lam: Tensor) -> Tensor:
        # -log alpha^2 = log(1 + e^(-2 lam)) = beta_min t + (beta_max - beta_min) t^2 / 2.
        # (logaddexp, not softplus: torch's softplus rounds to the identity above 20.)
        area = torch.logaddexp(-2 * lam, torch.zeros_like(lam))
        return 2 * area / (self.beta_min + (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * area).sqrt())


@dataclass(frozen=True)
class VPCosine(Schedule):
    """The cosine schedule: ``alpha = cos(pi/2 (t+s)/(1+s)) / cos(pi/2 s/(1+s))``.

    ``t`` in [0, 1]; ``s >= 0``. ``alpha(1) = 0`` exactly (``lam = -inf``): an end of zero SNR, where no noise
    prediction can be turned into data. The default start is therefore ``t_max = 0.9946``, DPM-Solver's choice
    (``lam = -4.8``); the default end is 1e-3. Source: Nichol & Dhariwal 2021, eq. 17 (without its clipping of
    beta: use ``Tabulated`` for a network trained with that).

    In the code ``q = pi / (2 (1+s))``: with it, cos(theta) = sin(q (1-t)), and theta - theta_0 = q t.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < math.inf:
            raise ValueError(f"s must be finite and at least 0, got {self.s}; Nichol & Dhariwal take 0.008")

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def t_max(self) -> float:
        return 0.9946

    @property
    def t_min(self) -> float:
        return 1e-3

    @property
    def _q(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def _alpha(self, t: Tensor) -> Tensor:
        return (self._q * (1 - t)).sin() / math.sin(self._q)

    def _variance(self, t: Tensor) -> Tensor:
        # 1 - alpha^2 = sin(theta - theta_0) sin(theta + theta_0) / cos^2 theta_0. The angles theta + theta_0
        # = q (t + 2s) and q (2 - t) sum to pi and have one sine, which is accurate from the smaller one.
        other = torch.minimum(t + 2 * self.s, 2 - t)
        return (self._q * t).sin() * (self._q * other).sin() / math.sin(self._q) ** 2

    def _log_alpha(self, t: Tensor) -> Tensor:
        variance = self._variance(t)
        return torch.where(variance < 0.5, (-variance).log1p() / 2, self._alpha(t).log())

    def _log_sigma(self, t: Tensor) -> Tensor:
        variance = self._variance(t)
        return torch.where(variance < 0.5, variance.log(), (-(self._alpha(t) ** 2)).log1p()) / 2

    def _time(self, lam: Tensor) -> Tensor:
        cos0 = math.sin(self._q)
        tan0 = math.sin(self._q * self.s) / cos0
        # Clean end: tan^2 theta - tan^2 theta_0 = e^(-2 lam) / cos^2 theta_0, then the tangent of the
        # difference.
        rise = (-2 * lam.clamp(min=0)).exp() / cos0**2
        tan = (tan0**2 + rise).sqrt()
        clean = (rise / (tan + tan0) / (1 + tan * tan0)).atan() / self._q
        # Noisy end: cos theta = alpha cos theta_0, alpha^2 = 1 / (1 + e^(-2 lam)).
        noisy = 1 - ((2 * lam).sigmoid().sqrt() * cos0).asin() / self._q
        return torch.where(lam >= 0, clean, noisy)

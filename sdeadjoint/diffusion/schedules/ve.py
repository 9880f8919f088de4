"""The variance-exploding schedule with time equal to the noise level: EDM and k-diffusion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .level import Level


@dataclass(frozen=True)
class VE(Level):
    """``alpha = 1``, ``sigma = t``, ``lam = -log t``, for ``t >= 0``.

    ``sigma_max`` and ``sigma_min`` are the default sampling ends ``t_max`` and ``t_min`` and restrict nothing
    else. Source: Karras et al. 2022 (EDM), table 1, last column; the ``sigma`` of k-diffusion. Even at
    ``sigma_max`` the data still shows in x_T: start from ``sigma_max`` times a standard normal only if it
    dwarfs the data's scale.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _log_sigma(self, t: Tensor) -> Tensor:
        return t.log()

"""k-diffusion's denoisers: ``model(x, sigma, **extra_args)`` is the predicted x_0."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..diffusion.grids import karras
from ..diffusion.guidance import Guidance
from ..diffusion.schedules import VE, Schedule
from ..samplers import NamedSampler, dpm_solver_pp_2m
from .base import Adapter, OwnTimes, Wrapper, adapter, range_of


def from_denoiser(
    model: Callable[..., Any],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    sampler: Callable[[Schedule], NamedSampler] = dpm_solver_pp_2m,
    guidance: Guidance | None = None,
) -> Adapter:
    """A k-diffusion denoiser, on ``x_t = x_0 + sigma eps``.

    Args:
        model: ``model(x, sigma, **extra_args)`` returns the predicted x_0; ``sigma`` has shape (batch,). ``cond`` of
            ``sample`` is ``extra_args``.
        sigma_min, sigma_max: the noise levels; the model's own attributes of these names unless given.
        rho: of Karras' grid; ``grid(steps)`` is k-diffusion's ``get_sigmas_karras(steps, ...)``, its last level 0.
        sampler: any function of a schedule in ``samplers``: ``dpm_solver_pp_2m`` is k-diffusion's ``sample_dpmpp_2m``,
            ``ddim`` its ``sample_euler``, ``edm_heun`` its ``sample_heun`` (without churn), ``sde_dpm_solver_pp_1`` its
            ``sample_euler_ancestral`` and ``sde_dpm_solver_pp_2m`` its ``sample_dpmpp_2m_sde(solver_type="midpoint")``.
        guidance: classifier-free guidance, on the predicted x_0.

    ``sample(x_T)`` takes what k-diffusion's samplers take: ``sigma_max`` times a standard normal.
    """
    schedule = VE(*range_of(model, sigma_min, sigma_max))
    rule = partial(karras, schedule, rho=rho, final_zero=True)
    return adapter(_Denoising(model), sampler(schedule), "sample", guidance, OwnTimes(rule))


class _Denoising(Wrapper):
    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        given = self.narrowed(x)
        sigma = t.to(torch.promote_types(given.dtype, torch.float32))  # a half-precision level has three digits
        with self.explained(given, cond):
            return self.widened(self.model(given, sigma, **cond), x)

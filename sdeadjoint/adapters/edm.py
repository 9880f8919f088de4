"""EDM's preconditioned networks: ``net(x, sigma, class_labels)`` is the predicted x_0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..diffusion.guidance import Guidance
from ..diffusion.schedules import Schedule
from ..samplers import NamedSampler, edm_heun
from .base import Adapter
from .k_diffusion import from_denoiser


def from_edm(
    net: Callable[..., Any],
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sampler: Callable[[Schedule], NamedSampler] = edm_heun,
    guidance: Guidance | None = None,
) -> Adapter:
    """A network of EDM (Karras et al., 2022) with its deterministic sampler, Algorithm 1, on its grid, eq. 5.

    Args:
        net: ``net(x, sigma, class_labels=...)`` returns the predicted x_0; ``sigma`` has shape (batch,). Its other
            arguments go by name too: ``cond={"class_labels": labels}``.
        sigma_min, sigma_max: the ends of the grid, moved inside those of ``net`` where it has such attributes.
        rho: of the grid; its last level is 0.
        sampler: any function of a schedule in ``samplers``.
        guidance: classifier-free guidance, on the predicted x_0.

    ``sample(x_T)`` takes ``sigma_max`` times a standard normal. Networks that compute in float32 whatever they are
    given, as EDM's own do, round there. Levels are not rounded by ``net.round_sigma``, which does nothing in EDM's own
    preconditioning: not for networks that know a few levels only. There is no churn: for the SDE pass
    ``sampler=samplers.sde_dpm_solver_pp_2m``.
    """
    low = max(sigma_min, float(getattr(net, "sigma_min", 0.0)))
    high = min(sigma_max, float(getattr(net, "sigma_max", float("inf"))))
    return from_denoiser(net, sigma_min=low, sigma_max=high, rho=rho, sampler=sampler, guidance=guidance)

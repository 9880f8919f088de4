"""Velocity fields of flow matching: ``v(x=x, t=t)``, whichever end the data is at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..diffusion.grids import uniform_time
from ..diffusion.guidance import Guidance
from ..diffusion.schedules import RectifiedFlow, Schedule
from ..samplers import NamedSampler, flow_heun
from .base import Adapter, OwnTimes, Wrapper, adapter


def from_velocity(
    v: Callable[..., Any],
    *,
    data_at: int = 1,
    sampler: Callable[[Schedule], NamedSampler] = flow_heun,
    guidance: Guidance | None = None,
) -> Adapter:
    """The velocity ``dx/dt`` of a straight-line flow between data and a standard normal, in either direction of time.

    Args:
        v: ``v(x=x, t=t, **extras)`` with ``t`` of shape (batch,) in [0, 1]. ``cond`` of ``sample`` is ``extras``.
        data_at: 1 if ``x_t = (1 - t) noise + t data`` and ``v`` predicts data - noise (the convention of flow matching:
            Lipman et al., 2023), 0 if ``x_t = (1 - t) data + t noise`` and ``v`` predicts noise - data.
        sampler: any function of a schedule in ``samplers``: ``flow_heun`` or ``flow_euler`` for the flow's own
            equation, ``sde_dpm_solver_pp_2m`` for the SDE with the same marginals.
        guidance: classifier-free guidance, on the velocity.

    ``grid(steps)`` has equal steps from noise to data in the library's own time, which is ``1 - t`` for ``data_at=1``;
    its last step, to the data, is Euler's whatever the solver. ``sample(x_T)`` takes a standard normal. Other paths
    than straight lines have other schedules: use ``Denoiser`` for those.
    """
    if type(data_at) is not int or data_at not in (0, 1):
        raise ValueError(f"data_at: got {data_at!r}; pass the time of the data, 0 or 1")
    schedule = RectifiedFlow()
    rule = partial(uniform_time, schedule, t_max=1.0, t_min=0.0)
    return adapter(_Velocity(v, data_at), sampler(schedule), "flow_prediction", guidance, OwnTimes(rule))


class _Velocity(Wrapper):
    def __init__(self, model: Callable[..., Any], data_at: int) -> None:
        super().__init__(model)
        self.data_at = data_at

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        given = self.narrowed(x)
        time = (1 - t if self.data_at else t).to(torch.promote_types(given.dtype, torch.float32))
        with self.explained(given, cond):
            out = self.widened(self.model(x=given, t=time, **cond), x)
        return -out if self.data_at and isinstance(out, Tensor) else out

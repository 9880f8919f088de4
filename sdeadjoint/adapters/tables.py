"""The grids of diffusers schedulers: their own tables for a number of steps, read from a copy."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .timesteps import Timesteps, settled

Nodes = Callable[[Any], tuple[Tensor, Tensor]]
"""The levels of a grid (N + 1,) and the timesteps of its steps (N,), of a scheduler whose timesteps are set."""


@dataclass(frozen=True, eq=False)
class SchedulerGrid:
    """``grid(steps)`` of a scheduler: levels at which the model is given exactly the scheduler's timesteps.

    ``None`` for ``steps`` takes the timesteps that the scheduler was last set to (custom timesteps, custom sigmas).
    """

    scheduler: Any
    nodes: Nodes
    mapping: Timesteps
    mu: float | None

    def __repr__(self) -> str:
        return f"SchedulerGrid({type(self.scheduler).__name__})"

    def __call__(self, steps: int | None) -> Tensor:
        levels, timesteps = self.nodes(self._set(steps))
        levels, timesteps = levels.double().cpu(), timesteps.double().cpu()
        # A last step of no length changes nothing. Its ends may differ by what their float32 tables round.
        if len(levels) > 2 and levels[-2] - levels[-1] <= 8 * torch.finfo(torch.float32).eps * levels[-1]:
            levels, timesteps = levels[:-1], timesteps[:-1]
        self._refuse_repeated(levels)
        inner = settled(levels[:-1], timesteps, self.mapping)
        given = self.mapping.timestep(inner)
        # Whole numbers are met exactly; others to what float32 levels leave of a timestep, a few 1e-5 of one.
        far = (given - timesteps).abs() > (0.0 if self.mapping.whole else 1e-4)
        if far.any():
            n = int(far.nonzero()[0])
            raise ValueError(
                f"{type(self.scheduler).__name__}: in step {n} it gives the model the timestep {timesteps[n].item()}, "
                f"but at its noise level {inner[n].item():.6g} the model's timestep is {given[n].item():.6g}; a "
                "sampler whose times and noise levels disagree cannot be matched; timestep_spacing='leading' or "
                "'trailing' has whole timesteps, and with Karras sigmas the two usually agree"
            )
        return torch.cat([inner, levels[-1:]])

    def _refuse_repeated(self, levels: Tensor) -> None:
        flat = levels.diff() == 0
        if flat.any():
            n = int(flat.nonzero()[0])
            raise ValueError(
                f"{type(self.scheduler).__name__}: at {len(levels) - 1} steps it has the noise level "
                f"{levels[n].item():.6g} twice, in steps {n} and {n + 1}; pass fewer steps, or other sigmas"
            )

    def _set(self, steps: int | None) -> Any:
        name = type(self.scheduler).__name__
        if steps is None:
            if getattr(self.scheduler, "num_inference_steps", None) is None:
                raise ValueError(f"steps: got None, but the {name} has not been set; call set_timesteps, or pass steps")
            return self.scheduler
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps: got {steps!r}; pass an integer >= 1, or None for the scheduler's own timesteps")
        twin = twin_of(self.scheduler)
        if self.mu is not None:
            twin.set_timesteps(steps, mu=self.mu)
        elif twin.config.get("use_dynamic_shifting"):
            raise ValueError(
                f"mu: the {name} shifts its sigmas by a mu that depends on the resolution; pass "
                "from_diffusers(..., mu=mu)"
            )
        else:
            twin.set_timesteps(steps)
        return twin


def twin_of(scheduler: Any) -> Any:
    """A scheduler with the same tables and settings, whose ``set_timesteps`` leaves the original alone."""
    twin = copy.copy(scheduler)
    twin._internal_dict = copy.copy(scheduler._internal_dict)
    return twin


def ddpm_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Timesteps themselves, and clean data at -1."""
    timesteps = scheduler.timesteps.double().cpu()
    return torch.cat([timesteps, timesteps.new_tensor([-1.0])]), timesteps


def ddim_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Timesteps, which must be where DDIM's steps end: a fixed number of timesteps further down."""
    timesteps = scheduler.timesteps.double().cpu()
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    ends = timesteps - stride
    if not torch.equal(ends[:-1], timesteps[1:]) or ends[-1] >= 0:
        raise ValueError(
            f"DDIMScheduler(timestep_spacing={scheduler.config.timestep_spacing!r}): its steps go {stride} timesteps "
            f"down from {timesteps.tolist()[:3]}..., which is not where it calls the model next; this cannot be "
            "matched: pass timestep_spacing='leading', or 'trailing' and a number of steps that divides the training "
            "timesteps"
        )
    clean = bool(scheduler.final_alpha_cumprod == 1)
    return torch.cat([timesteps, timesteps.new_tensor([-1.0 if clean else 0.0])]), timesteps


def sigma_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """One level and one timestep for each step, and the last step's end."""
    return scheduler.sigmas[: len(scheduler.timesteps) + 1], scheduler.timesteps


def heun_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``sigma_nodes``, from tables that name each inner level twice."""
    return torch.cat([scheduler.sigmas[::2], scheduler.sigmas[-1:]]), scheduler.timesteps[::2]


def midpoint_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``heun_nodes``, with the geometric means of successive levels between them."""
    levels = torch.cat([scheduler.sigmas[::2], scheduler.sigmas[-1:]]).double().cpu()
    between = (levels[:-2] * levels[1:-1]).sqrt()
    return torch.cat([torch.stack([levels[:-2], between], 1).flatten(), levels[-2:]]), scheduler.timesteps


def multistep_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``sigma_nodes``, for solvers that may lower their order at the end."""
    config = scheduler.config
    short = config.lower_order_final and len(scheduler.timesteps) < 15
    if config.solver_order == 2 and float(scheduler.sigmas[-1]) > 0 and (short or config.euler_at_final):
        raise ValueError(
            f"{type(scheduler).__name__}(final_sigmas_type='sigma_min'): its last step has order 1 (lower_order_final "
            "with fewer than 15 steps, or euler_at_final), which cannot be matched; pass lower_order_final=False and "
            "euler_at_final=False, or final_sigmas_type='zero'"
        )
    return sigma_nodes(scheduler)


def warn_of_clipping(scheduler: Any, stacklevel: int) -> None:
    """Say what is left out of a scheduler because it has no gradient."""
    names = [name for name in ("clip_sample", "thresholding") if scheduler.config.get(name)]
    if names:
        warnings.warn(
            f"{type(scheduler).__name__}: {' and '.join(f'{name}=True' for name in names)} is left out, because the "
            "derivative of a clipped prediction is zero; from_config(scheduler.config, "
            f"{', '.join(f'{name}=False' for name in names)}) has the same samples without the warning",
            stacklevel=stacklevel,
        )

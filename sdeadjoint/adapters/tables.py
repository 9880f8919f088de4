"""The grids of diffusers schedulers: their own tables for a number of steps, read from a copy."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Asked, Plan, Times, numbers
from .timesteps import Timesteps, settled

Nodes = Callable[[Any], tuple[Tensor, Tensor]]
"""The levels of a grid (N + 1,) and the timesteps of its steps (N,), of a scheduler whose timesteps are set."""


@dataclass(frozen=True, eq=False)
class SchedulerGrid(Times):
    """The grid of a scheduler: its levels, and timesteps that the model is given there.

    Nothing asked takes the timesteps that the scheduler was last set to (custom timesteps, custom sigmas).
    """

    scheduler: Any
    nodes: Nodes
    mapping: Timesteps
    mu: float | None
    lowered: Callable[[Any, int], dict[int, int]] | None = None

    def __repr__(self) -> str:
        return f"SchedulerGrid({self._name})"

    @property
    def _name(self) -> str:
        return type(self.scheduler).__name__

    def plan(self, asked: Asked) -> Plan:
        with np.errstate(invalid="ignore", divide="ignore"):  # what comes of it is refused below
            scheduler = self._set(asked)
            levels, timesteps = self.nodes(scheduler)
        levels, timesteps = levels.double().cpu(), timesteps.double().cpu()
        kept = self.lowered(scheduler, len(timesteps)) if self.lowered is not None else {}
        # A last step of no length changes nothing. Its ends may differ by what their float32 tables round.
        if len(levels) > 2 and levels[-2] - levels[-1] <= 8 * torch.finfo(torch.float32).eps * levels[-1]:
            levels, timesteps = levels[:-1], timesteps[:-1]
        self._check(levels)
        if not bool(torch.isfinite(timesteps).all()):
            raise ValueError(
                f"{self._name}: at {len(timesteps)} calls its timesteps are NaN or infinite, which its own "
                "set_timesteps makes of noise levels that span too many decades for float32; pass a scheduler with "
                "another beta_schedule, or another scheduler"
            )
        inner = settled(levels[:-1], timesteps, self.mapping)
        given = self.mapping.timestep(inner)
        # Whole numbers are met exactly; others to what float32 levels leave of a timestep, a few 1e-5 of one.
        far = (given - timesteps).abs() > (0.0 if self.mapping.whole else 1e-4)
        # A last step to 0 is x_0, whatever the order.
        steps = len(timesteps) - (1 if levels[-1] == 0 else 0)
        at = tuple((n, kept[n]) for n in kept if 0 <= n < steps)
        return Plan(torch.cat([inner, levels[-1:]]), timesteps if bool(far.any()) else None, at)

    def _check(self, levels: Tensor) -> None:
        steps = len(levels) - 1
        if not bool(torch.isfinite(levels).all()):
            shifted = self.scheduler.config.get("shift_terminal")
            why = f": shift_terminal={shifted} divides by zero where the last sigma is 1" if shifted else ""
            raise ValueError(
                f"{self._name}: at {steps} steps its noise levels are NaN or infinite{why}; pass more steps, or sigmas"
            )
        rising = levels.diff() >= 0
        if bool(rising.any()):
            n = int(rising.nonzero()[0])
            twice = levels[n] == levels[n + 1]
            what = "twice" if twice else f"and then {levels[n + 1].item():.6g}"
            raise ValueError(
                f"{self._name}: at {steps} steps it has the noise level {levels[n].item():.6g} {what}, in steps {n} "
                f"and {n + 1}; pass " + ("fewer steps, or other sigmas" if twice else "levels that decrease")
            )

    def _set(self, asked: Asked) -> Any:
        """The scheduler as it was left, or a copy of it set to what was asked."""
        if asked.sigmas is not None and asked.timesteps is not None:
            raise ValueError("sigmas and timesteps: got both; pass at most one of them")
        if asked.steps is None and asked.sigmas is None and asked.timesteps is None:
            if asked.mu is not None or not _is_set(self.scheduler):
                raise ValueError(
                    f"steps: got None, but the {self._name} has not been set; call set_timesteps, or pass steps"
                )
            return self.scheduler
        if asked.steps is not None:
            checked_count(asked.steps)
        twin, options = twin_of(self.scheduler), self._shift(asked.mu)
        for name, values in (("sigmas", asked.sigmas), ("timesteps", asked.timesteps)):
            if values is not None:
                twin.set_timesteps(**{name: self._custom(name, values, asked.steps)}, **options)
                return twin
        twin.set_timesteps(asked.steps, **options)
        return twin

    def _shift(self, mu: float | None) -> dict[str, float]:
        mu = self.mu if mu is None else mu
        if mu is None:
            if self.scheduler.config.get("use_dynamic_shifting"):
                raise ValueError(
                    f"mu: the {self._name} shifts its sigmas by a mu that depends on the resolution; pass "
                    "grid(..., mu=mu) and sample(..., mu=mu), or from_diffusers(..., mu=mu)"
                )
            return {}
        check_mu(self.scheduler, mu)
        return {"mu": mu}

    def _custom(self, name: str, values: Tensor | Sequence[float], steps: int | None) -> Any:
        if name not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"{name}: {self._name}.set_timesteps does not take them; pass steps")
        found = numbers(name, values)
        # Euler's sigmas end with the last level, a flow's do not.
        if steps is not None and steps not in (len(found), len(found) - 1):
            raise ValueError(f"steps: got {steps} and {len(found)} {name}; leave steps out, or pass as many")
        if name == "sigmas" and self._name == "UniPCMultistepScheduler":
            return np.array(found)  # which it multiplies, as its pipelines pass it
        whole = [int(value) if value == int(value) else value for value in found]
        # This one calls methods of a tensor on what it is given.
        return torch.tensor(found, dtype=torch.float64) if self._name == "EDMEulerScheduler" else whole


def check_mu(scheduler: Any, mu: float) -> None:
    """Refuse a shift that the scheduler would ignore."""
    if not scheduler.config.get("use_dynamic_shifting"):
        raise ValueError(
            f"mu: got {mu}, but {type(scheduler).__name__} does not shift its sigmas dynamically; leave mu out, or set "
            "use_dynamic_shifting=True where the scheduler has it"
        )


def _is_set(scheduler: Any) -> bool:
    """Whether ``set_timesteps`` was called: some schedulers record the number of steps only if it was given."""
    if getattr(scheduler, "num_inference_steps", None) is not None:
        return True
    fresh = type(scheduler).from_config(scheduler.config)
    return not torch.equal(torch.as_tensor(scheduler.timesteps).cpu(), torch.as_tensor(fresh.timesteps).cpu())


def checked_count(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}; pass an integer >= 1, or None for the scheduler's own timesteps")


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


def kdpm_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``midpoint_nodes``, from tables that name each level but the first twice."""
    levels = scheduler.sigmas[:-1:2].double().cpu()
    between = (levels[:-2] * levels[1:-1]).sqrt()
    return torch.cat([torch.stack([levels[:-2], between], 1).flatten(), levels[-2:]]), scheduler.timesteps


def ancestral_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``kdpm_nodes``, with a point before each inner level that is that level but for more than float32 keeps."""
    levels = scheduler.sigmas[:-1:2].double().cpu()
    between = levels[1:-1] * (1 + 16 * torch.finfo(torch.float32).eps)
    return torch.cat([torch.stack([levels[:-2], between], 1).flatten(), levels[-2:]]), scheduler.timesteps


def lms_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """As ``sigma_nodes``, but its last step, of the full order, ends just short of 0: there it would be x_0."""
    levels = scheduler.sigmas.double().clone()
    levels[-1] = 1e-30 if levels[-1] == 0 else levels[-1]
    return levels, scheduler.timesteps


def plms_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Timesteps, of which the second is named twice, and where the last step ends."""
    timesteps = scheduler.timesteps.double().cpu()
    timesteps = torch.cat([timesteps[:1], timesteps[2:]])
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    ends = timesteps - stride
    if len(timesteps) < 2 or not torch.equal(ends[:-1], timesteps[1:]) or ends[-1] >= 0:
        raise ValueError(
            f"PNDMScheduler(timestep_spacing={scheduler.config.timestep_spacing!r}): its steps go {stride} timesteps "
            f"down from {timesteps.tolist()[:3]}..., which is not where it calls the model next, or there is one step; "
            "this cannot be matched: pass timestep_spacing='leading' and two steps or more"
        )
    clean = bool(scheduler.final_alpha_cumprod == 1)
    # Just short of clean data, where a step would be x_0 whatever the method.
    return torch.cat([timesteps, timesteps.new_tensor([-1 + 1e-12 if clean else 0.0])]), timesteps


def lcm_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Timesteps, and clean data after the last."""
    timesteps = scheduler.timesteps.double().cpu()
    return torch.cat([timesteps, timesteps.new_tensor([-1.0])]), timesteps


def tcd_nodes(scheduler: Any) -> tuple[Tensor, Tensor]:
    """Timesteps, and 0 after the last."""
    timesteps = scheduler.timesteps.double().cpu()
    return torch.cat([timesteps, timesteps.new_tensor([0.0])]), timesteps


def lowered_at_end(scheduler: Any, steps: int) -> dict[int, int]:
    """The steps in which a scheduler lowers its order, and what of its memory they may see."""
    config = scheduler.config
    short = config.lower_order_final and steps < 15
    kept = {}
    if config.solver_order > 2 and short:
        kept[steps - 2] = 1
    if short or config.get("euler_at_final") or config.get("final_sigmas_type") == "zero":
        kept[steps - 1] = 0
    return kept


def groups_begin(scheduler: Any, steps: int) -> dict[int, int]:
    """The steps in which a singlestep method starts afresh."""
    return {n: 0 for n, order in enumerate(scheduler.order_list) if order == 1}


def lowered_by_unipc(scheduler: Any, steps: int) -> dict[int, int]:
    """The last steps, whose order is no more than what is left of them."""
    if not scheduler.config.lower_order_final:
        return {}
    return {n: steps - n - 1 for n in range(max(steps - scheduler.config.solver_order + 1, 0), steps)}


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

"""What a pipeline of diffusers does around its model and its scheduler."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import nests
from ...diffusion.guidance import Guidance
from ..base import Asked, Plan, Surroundings, Times

Cond = Mapping[str, Any]

LATE = {
    "LMSDiscreteScheduler": "uses the weights of a whole history, of which it has nothing",
    "PNDMScheduler": "takes its first two calls for the halves of one step, which they are not",
}
"""What schedulers do, and nobody wants, where a strength below 1 lets them begin late."""


class Options(NamedTuple):
    """The arguments of the pipeline's own call that belong to the adapter; ``None`` for the pipeline's default."""

    guidance: Guidance
    height: int | None
    width: int | None
    num_frames: int | None


class Convention(Surroundings):
    """One class of pipelines: which of its call's arguments the model is given, under which name, on which grid.

    Args:
        pipe: the pipeline.
        options: its call's own options.
    """

    component: ClassVar[str] = "transformer"
    """The name of the model among the pipeline's components."""
    needed: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    """The arguments of the call without which there is nothing to condition on."""
    negatives: ClassVar[tuple[str, ...]] = ("prompt_embeds",)
    """Those that have a counterpart ``negative_...`` for the unconditional call."""
    further: ClassVar[tuple[str, ...]] = ()
    """Those that may be left out."""
    batched: ClassVar[bool] = True
    """Whether all that the model is given has a batch dimension, so that both calls of guidance can be one."""

    def __init__(self, pipe: Any, options: Options) -> None:
        self.pipe = pipe
        self.options = options

    @property
    def model(self) -> Any:
        """The model that is called in each step."""
        return getattr(self.pipe, self.component)

    @property
    def timestep(self) -> Callable[[Tensor], Tensor] | None:
        """What the model is given instead of the scheduler's timestep; ``None`` for that itself."""
        return None

    @abstractmethod
    def arguments(self, cond: Cond, like: Tensor) -> dict[str, Any]:
        """The model's keyword arguments, from the call's; for the unconditional call with negatives in place."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """The VAE's output before any postprocessing, as the pipeline computes it."""

    def sigmas(self, steps: int) -> list[float] | None:
        """The sigmas that the pipeline passes to the scheduler; ``None`` where it passes a number of steps."""
        return None

    def length(self, shape: tuple[int, ...] | None) -> int | None:
        """The number of tokens that the scheduler's dynamic shift depends on."""
        return None

    @property
    def longest_shift(self) -> float:
        """The ``max_shift`` that the pipeline assumes where the scheduler has none."""
        return 1.15

    def begin(self, steps: int, strength: float) -> int:
        """The first step that an image-to-image pipeline takes."""
        return max(steps - min(int(steps * strength), steps), 0)

    def default(self, name: str) -> Any:
        """The default of an argument of the pipeline's call; ``None`` if it has no such argument."""
        return default_of(self.pipe, name)

    def conditions(self, cond: Cond, like: Tensor) -> tuple[Cond, Guidance | None]:
        """The model's conditioning and the guidance, from arguments of the pipeline's call."""
        self._check(cond)
        positive = self._spread(self.arguments(cond, like), like)
        guidance = self.guidance(cond)
        if guidance is None:
            self._refuse_unused(cond)
            return positive, None
        negative = self._spread(self.arguments(self.negated(cond), like), like)
        return positive, replace(guidance, unconditional=negative, batched=guidance.batched and self.batched)

    def guidance(self, cond: Cond) -> Guidance | None:
        """Classifier-free guidance, where the pipeline's call has it: with a scale above 1."""
        scale = self.options.guidance.scale
        return self.options.guidance if isinstance(scale, Tensor | tuple) or scale > 1 else None

    def negated(self, cond: Cond) -> dict[str, Any]:
        """The call's arguments with those of the unconditional call in their places."""
        missing = [f"negative_{name}" for name in self.negatives if cond.get(f"negative_{name}") is None]
        if missing:
            raise ValueError(
                f"cond: guidance {_short(self.options.guidance.scale)} needs {', '.join(missing)}; pass what "
                "pipe.encode_prompt returns for the negative prompt (an empty one by default), or guidance=1"
            )
        return {**cond, **{name: cond[f"negative_{name}"] for name in self.negatives}}

    def _check(self, cond: Cond) -> None:
        known = {*self.needed, *(f"negative_{name}" for name in self.negatives), *self.further}
        name = type(self.pipe).__name__
        if strange := sorted(set(cond) - known):
            raise ValueError(
                f"cond: got {strange}; for {name} pass arguments of its call, out of {sorted(known)}. What else a "
                "model takes goes through from_diffusers"
            )
        if missing := [n for n in self.needed if cond.get(n) is None]:
            raise ValueError(f"cond: {name} needs {missing}; pass what pipe.encode_prompt returns")

    def _refuse_unused(self, cond: Cond) -> None:
        for name, value in cond.items():
            if name.startswith("negative_") and any(t.requires_grad for t in nests.tensors(value)):
                raise ValueError(
                    f"cond: {name} requires a gradient, but without guidance it is not used; pass guidance above 1, "
                    "or leave it out"
                )

    def _spread(self, arguments: dict[str, Any], like: Tensor) -> dict[str, Any]:
        """One prompt for a batch of latents: tensors of batch 1 are expanded."""
        if not self.batched or len(like) == 1:
            return arguments
        return nests.map_tensors(
            lambda v: v.expand(len(like), *v.shape[1:]) if v.ndim > 0 and v.shape[0] == 1 else v, arguments
        )

    def config(self, name: str) -> Any:
        """A value of the VAE's configuration."""
        return getattr(self.pipe.vae.config, name, None)

    def run_vae(self, latents: Tensor) -> Tensor:
        """The VAE's decoder, in its own dtype."""
        out: Tensor = self.pipe.vae.decode(latents.to(self.pipe.vae.dtype), return_dict=False)[0]
        return out


@dataclass(frozen=True, eq=False)
class PipelineGrid(Times):
    """The grid of the pipeline's call: its own number of steps, its own sigmas, its shift by resolution, its strength.

    Args:
        inner: the scheduler's grid.
        convention: the pipeline's.
        strength: of an image-to-image pipeline; ``None`` for the others.
        width: how many levels of the grid one step of the pipeline has.
    """

    inner: Times
    convention: Convention
    strength: float | None
    width: int = 1

    def plan(self, asked: Asked) -> Plan:
        steps, sigmas, custom = asked.steps, asked.sigmas, asked.sigmas is not None or asked.timesteps is not None
        if steps is None and not custom:
            steps = int(self.convention.default("num_inference_steps"))
        if not custom and isinstance(steps, int) and steps > 0:
            sigmas = self.convention.sigmas(steps)
        plan = self.inner.plan(Asked(steps, sigmas, asked.timesteps, self._shift(asked)))
        if self.strength is None:
            return plan
        count = (len(plan.grid) - 1) // self.width if steps is None else steps
        first = self.width * self.convention.begin(count, self.strength)
        if first >= len(plan.grid) - 1:
            raise ValueError(
                f"strength: got {self.strength}, which leaves none of {count} steps; pass more steps or more strength"
            )
        if first > 0:
            _refuse_late(self.convention.pipe.scheduler, self.strength)
        kept = tuple((n - first, number) for n, number in plan.kept if n >= first)
        return Plan(plan.grid[first:], None if plan.timesteps is None else plan.timesteps[first:], kept)

    def _shift(self, asked: Asked) -> float | None:
        """The ``mu`` of dynamic shifting, linear in the number of tokens."""
        config = self.convention.pipe.scheduler.config
        if asked.mu is not None or not config.get("use_dynamic_shifting"):
            return asked.mu
        length = self.convention.length(asked.shape)
        if length is None:
            return None
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, most = config.get("base_shift", 0.5), config.get("max_shift", self.convention.longest_shift)
        slope = (most - least) / (high - low)
        return float(length * slope + (least - slope * low))


def _refuse_late(scheduler: Any, strength: float) -> None:
    """Refuse schedulers whose first steps are wrong if they do not begin at the beginning."""
    name = type(scheduler).__name__
    if name in LATE:
        raise ValueError(
            f"strength: got {strength} with the {name}, which then {LATE[name]}; this cannot be matched: pass "
            "strength=1, or put in pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)"
        )
    if getattr(scheduler, "disable_corrector", None):
        raise ValueError(
            f"strength: got {strength} with {name}(disable_corrector={scheduler.disable_corrector}), whose numbers "
            "count the steps that are left out; pass strength=1, or disable_corrector=[]"
        )


def default_of(pipe: Any, name: str) -> Any:
    """The default of an argument of a pipeline's call; ``None`` if it has no such argument."""
    found = inspect.signature(type(pipe).__call__).parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def refuse_options_of_two_calls(guidance: Guidance) -> None:
    """Refuse what has no meaning for a model that is given its scale, or that is called without guidance."""
    for name, value in (("rescale", guidance.rescale or None), ("interval", guidance.interval)):
        if value is not None:
            raise ValueError(
                f"guidance: got {name}={value}, which acts on the outputs of a conditional and an unconditional call, "
                "and here the model is called once; pass a number"
            )


def equal_sigmas(steps: int) -> list[float]:
    """``1, 1 - 1/N, ..., 1/N``, as flow pipelines pass them to their schedulers."""
    return np.linspace(1.0, 1 / steps, steps).tolist()


def per_channel(values: Any, latents: Tensor) -> Tensor:
    """One number per channel, dimension 1 of the latents, ready to broadcast."""
    found = values if isinstance(values, Tensor) else torch.tensor(values, device="cpu")
    return found.to(latents.device, latents.dtype).reshape(1, -1, *[1] * (latents.ndim - 2))


def _short(scale: Any) -> str:
    return str(scale) if isinstance(scale, int | float) else "by a tensor"

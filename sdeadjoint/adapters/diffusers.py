"""diffusers: a model and a scheduler, as a pipeline has them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..diffusion.guidance import Guidance
from ..diffusion.schedules import Schedule
from ..samplers import NamedSampler
from .base import Adapter, adapter, check_guidance
from .networks import EDM, Boundary, DiffusersNetwork, Preconditioning
from .schedulers import read
from .signature import signature_of
from .tables import SchedulerGrid, check_mu, twin_of, warn_of_clipping

# Models whose pipelines do not pass the scheduler's timestep itself, but t / 1000, 1 - t / 1000 or 1000 - t.
_OTHER_TIMES = frozenset(
    {
        "AuraFlowTransformer2DModel",
        "ChromaTransformer2DModel",
        "FluxTransformer2DModel",
        "Flux2Transformer2DModel",
        "LongCatImageTransformer2DModel",
        "Lumina2Transformer2DModel",
        "LuminaNextDiT2DModel",
        "MochiTransformer3DModel",
        "NucleusMoEImageTransformer2DModel",
        "OvisImageTransformer2DModel",
        "QwenImageTransformer2DModel",
    }
)


def from_diffusers(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    eta: float = 0.0,
    mu: float | None = None,
    guidance: Guidance | None = None,
    timestep: Callable[[Tensor], Tensor] | None = None,
    sampler: Callable[[Schedule], NamedSampler] | None = None,
) -> Adapter:
    """The sampler that a diffusers pipeline runs with this model and this scheduler, differentiable and exact.

        adapter = sa.adapters.from_diffusers(unet, scheduler)
        x_0 = adapter.sample(latents, steps=20, cond={"encoder_hidden_states": embeddings})
        loss(x_0).backward()

    Args:
        model: a UNet or a transformer of diffusers, or any callable ``model(x, timestep, **cond)`` that returns a
            tensor, or a tuple that begins with it. It is called with its own argument names, its own dtype, its own
            timesteps and its own input scale. ``cond`` goes through by name, in the dtype the model expects. Of an
            output with twice the channels of x the second half, a learned variance, is dropped.
        scheduler: one of those in the table of docs/schedulers.md, which an error lists too: DDPM, DDIM, DPM-Solver
            (multistep of orders 1 to 3, singlestep, SDE), UniPC, DEIS, Euler, Euler ancestral, Heun, LMS, KDPM2, PNDM
            (PLMS), EDM, CogVideoX, cosine DPM-Solver, flow-matching Euler and Heun, and for distilled models LCM, TCD
            and flow LCM; with their beta schedules, sigmas, spacings, shifts, prediction types and lowered orders. It
            is read and copied, not changed.
        eta: DDIM's own, 0 or 1; TCD's, 0 to 1. 0 is the default of the pipelines' calls; that of ``TCDScheduler.step``
            alone is 0.3.
        mu: the shift of schedulers with ``use_dynamic_shifting``.
        guidance: classifier-free guidance and its rescaling, on the model's output.
        timestep: what the model is given instead of the scheduler's timestep t, for instance ``lambda t: t / 1000`` for
            Flux. Some models need it and are refused without it; one that looks t up in a table, which has to be whole
            numbers, needs ``lambda t: t.long()``.
        sampler: a function of a schedule in ``samplers`` instead of the scheduler's own method, on its grid.

    ``sample(x_T)`` takes the latents as the loop over ``scheduler.timesteps`` has them: after the multiplication with
    ``scheduler.init_noise_sigma``. It returns what the loop returns, up to float32 casts inside the scheduler.
    ``grid(N)`` has the noise levels of ``scheduler.set_timesteps(N)``, which is not the grid of every pipeline: many
    pass sigmas of their own, as ``grid(sigmas=...)`` and ``sample(sigmas=...)`` do, and ``from_pipeline`` for those it
    knows. ``grid(None)`` has those that the scheduler was set to when it was passed here. Times are timesteps for
    schedulers of a table (DDPM, DDIM, PNDM, LCM, TCD, CogVideoX), else the scheduler's ``sigmas``. The injected noise
    of stochastic schedulers is ``NormalNoise`` of their standard normals; that of ``step(s_noise=...)`` other than 1 is
    those normals times it. ``s_churn`` is not matched: it adds noise before the network is called, and such a step is
    no step of an SDE with a path of its own.

    ``clip_sample`` and ``thresholding`` are left out, with a warning: where they act, derivatives are zero.

    Errors: ``ValueError`` that names the scheduler and the setting, for whatever cannot be matched.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise ImportError("from_diffusers needs diffusers; pip install 'sdeadjoint[diffusers]'") from error
    if _is_pipeline(model):
        got = type(model).__name__
        raise TypeError(f"model: got the pipeline {got}; pass its unet or transformer, and its scheduler")
    reading = read(scheduler, eta)
    name = next((name for name in signature_of(model).classes if name in _OTHER_TIMES), None)
    if timestep is None and name is not None:
        raise ValueError(
            f"timestep: {name} is not given the scheduler's timestep itself; pass what its pipeline gives it, such as "
            "timestep=lambda t: t / 1000"
        )
    check_guidance(guidance)
    check_rescale(guidance, reading.preconditioning)
    if mu is not None:
        check_mu(scheduler, mu)
    warn_of_clipping(scheduler, stacklevel=3)
    network = DiffusersNetwork(model, reading.preconditioning, reading.timesteps, timestep)
    lowered = reading.lowered if sampler is None else None
    times = SchedulerGrid(twin_of(scheduler), reading.nodes, reading.timesteps, mu, lowered)
    chosen = reading.sampler if sampler is None else sampler(reading.sampler.frame.schedule)
    return adapter(network, chosen, reading.prediction, guidance, times)


def _is_pipeline(model: object) -> bool:
    """Whether a model is a pipeline of diffusers. Their module takes seconds to import, and is there where one is."""
    pipelines = sys.modules.get("diffusers.pipelines.pipeline_utils")
    return pipelines is not None and isinstance(model, pipelines.DiffusionPipeline)


def check_rescale(guidance: Guidance | None, preconditioning: Preconditioning | None) -> None:
    """Refuse the rescaling of a model's output that the scheduler mixes with x."""
    if guidance is not None and guidance.rescale and isinstance(preconditioning, EDM | Boundary):
        raise ValueError(
            f"guidance: rescale={guidance.rescale} acts on the model's own output, which this scheduler's "
            "preconditioning mixes with x; pass rescale=0"
        )

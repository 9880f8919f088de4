"""What every adapter gives: a denoiser, the sampler that goes with it, and its grid."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import nests
from ..adjoints import Adjoint, Checkpoint
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..diffusion.guidance import Guidance
from ..diffusion.schedules import Schedule
from ..noise import Noise
from ..recursion import AfterStep
from ..sample import sample
from ..samplers import NamedSampler
from ..solve import Callback
from ..solvers import Solver
from .multistep import lowered


class Asked(NamedTuple):
    """What a caller wants of a grid; all ``None`` for the one that the scheduler was set to.

    ``shape`` is that of x_T, where it is known: some pipelines shift their grid by the resolution.
    """

    steps: int | None = None
    sigmas: Tensor | Sequence[float] | None = None
    timesteps: Tensor | Sequence[float] | None = None
    mu: float | None = None
    shape: tuple[int, ...] | None = None


class Plan(NamedTuple):
    """A grid, float64 and decreasing, and what the model is given as its time in each step.

    ``timesteps`` is ``None`` where the model's time is a function of the schedule's, which the denoiser knows.
    ``kept`` has pairs (step, number) for multistep methods that lower their order: what that step sees of its memory.
    """

    grid: Tensor
    timesteps: Tensor | None = None
    kept: tuple[tuple[int, int], ...] = ()


class Times(ABC):
    """Whose grid it is: the rule that makes one out of what was asked."""

    @abstractmethod
    def plan(self, asked: Asked) -> Plan:
        """Return the grid; ``ValueError`` or ``TypeError`` in a sentence for what it cannot make."""


class Surroundings(ABC):
    """What a pipeline does around its model: the conditioning it makes, and its decoder."""

    @abstractmethod
    def conditions(self, cond: Mapping[str, Any], like: Tensor) -> tuple[Mapping[str, Any], Guidance | None]:
        """Return the model's conditioning and the guidance, from the arguments of the pipeline's call."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Return what the pipeline's decoder makes of latents, before any postprocessing."""


@dataclass(frozen=True)
class OwnTimes(Times):
    """A grid of this library's, for models that come without a scheduler: ``rule(steps)``, or the levels themselves."""

    rule: Callable[[int], Tensor]

    def plan(self, asked: Asked) -> Plan:
        for name, value in (("timesteps", asked.timesteps), ("mu", asked.mu)):
            if value is not None:
                raise ValueError(f"{name}: there is no scheduler that could take it; pass sigmas, or steps")
        if asked.sigmas is None:
            return Plan(self.rule(count_of(50 if asked.steps is None else asked.steps)))
        if asked.steps is not None:
            raise ValueError(f"steps: got {asked.steps!r} and sigmas; pass one of the two")
        return Plan(torch.tensor(numbers("sigmas", asked.sigmas), dtype=torch.float64, device="cpu"))


class Parts(NamedTuple):
    """The arguments of ``sample`` for one call of an adapter, for any other entry point of the library."""

    denoiser: Denoiser
    frame: Frame
    grid: Tensor
    solver: Solver
    cond: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A model of another library with its sampler: ``adapter.sample(x_T, steps=20).sum().backward()``.

    Args:
        denoiser: the model, with the schedule and the meaning of its output.
        frame, solver: the sampler.
        times: the rule of its grids.
        surroundings: of a pipeline; ``None`` for a model.

    Everything else of the library takes ``adapter.parts(steps=20)``, or the parts one by one, with another grid,
    another solver, another adjoint: ``sample(adapter.denoiser, x_T, frame=adapter.frame, grid=adapter.grid(20),
    solver=adapter.solver)``.
    """

    denoiser: Denoiser
    frame: Frame
    solver: Solver
    times: Times
    surroundings: Surroundings | None = None

    def __repr__(self) -> str:
        model = getattr(self.denoiser.network, "model", self.denoiser.network)
        name = getattr(model, "__name__", type(model).__name__)
        schedule = type(self.schedule).__name__
        return f"<Adapter of {name}: {self.frame.kind} frame of {schedule}, eta={self.frame.eta}, {self.solver!r}>"

    @property
    def schedule(self) -> Schedule:
        """The forward process of the model, in the time that ``grid`` counts in."""
        return self.denoiser.schedule

    def grid(
        self,
        steps: int | None = None,
        *,
        sigmas: Tensor | Sequence[float] | None = None,
        timesteps: Tensor | Sequence[float] | None = None,
        mu: float | None = None,
    ) -> Tensor:
        """Return the sampler's times: float64, decreasing, on the CPU.

        Whose grid it is: that of the scheduler's ``set_timesteps(steps)`` for ``from_diffusers``, that of the
        pipeline's own call for ``from_pipeline`` (many pass sigmas of their own to the scheduler, as Flux does), that
        of Karras for ``from_denoiser`` and ``from_edm``, equal steps for ``from_velocity``.

        Args:
            steps: the number of steps; ``None`` with nothing else is what the scheduler was last set to.
            sigmas, timesteps, mu: passed to ``set_timesteps`` as ``retrieve_timesteps`` of diffusers does, at most
                one of the first two; ``steps`` may be left out. Without a scheduler ``sigmas`` are the levels
                themselves, the last one included, and nothing is 50 steps.

        Where the scheduler's timesteps are not a function of its noise levels (custom ones, or rounded), ``sample`` and
        ``parts`` give the model the scheduler's own; ``adapter.denoiser`` by itself gives it the function's value.
        In the same way theirs is the solver that lowers its order at the end of a short run.
        """
        return self.times.plan(Asked(steps, sigmas, timesteps, mu)).grid

    def parts(
        self,
        *,
        steps: int | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        timesteps: Tensor | Sequence[float] | None = None,
        mu: float | None = None,
        cond: Mapping[str, Any] | None = None,
        like: Tensor | None = None,
    ) -> Parts:
        """Return ``(denoiser, frame, grid, solver, cond)`` of one call, the model's own timesteps included.

        ``like`` is x_T, or a tensor of its shape, for pipelines whose grid depends on the resolution; the other
        arguments are those of ``sample``. ``sample(x_T=x_T, **adapter.parts(steps=20)._asdict(), noise=...)``.
        """
        shape = None if like is None else tuple(like.shape)
        plan, cond = self.times.plan(Asked(steps, sigmas, timesteps, mu, shape)), {} if cond is None else cond
        denoiser = self._given(plan)
        if self.surroundings is not None:
            if like is None:
                raise ValueError("like: got None, but a pipeline's conditioning depends on the latents; pass like=x_T")
            cond, guidance = self.surroundings.conditions(cond, like)
            denoiser = denoiser.guided_by(guidance)
        return Parts(denoiser, self.frame, plan.grid, self._lowered(plan), cond)

    def _lowered(self, plan: Plan) -> Solver:
        """The solver, which forgets where the plan says so."""
        if not plan.kept:
            return self.solver
        clocks = self.frame.clock(plan.grid).tolist()
        return lowered(self.solver, tuple((clocks[n], number) for n, number in plan.kept))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the image, video or audio of latents: a pipeline's VAE with its scaling and shift, differentiable.

        Values are those of the VAE itself, images in [-1, 1]; the pipeline's postprocessing is the caller's.
        """
        if self.surroundings is None:
            raise ValueError(
                "decode: this adapter has a model, but no VAE; pass a whole pipeline to from_pipeline, or call the VAE "
                "yourself, with its scaling_factor and shift_factor"
            )
        return self.surroundings.decode(latents)

    def _given(self, plan: Plan) -> Denoiser:
        """The denoiser whose model is given the plan's timesteps."""
        denoiser = self.denoiser
        if plan.timesteps is None:
            return denoiser
        assert isinstance(denoiser.network, Wrapper)
        network = denoiser.network.pinned(plan.grid[:-1], plan.timesteps)
        return Denoiser(
            network,
            denoiser.schedule,
            denoiser.prediction,
            guidance=denoiser.guidance,
            time_dtype=denoiser.time_dtype,
        )

    def sample(
        self,
        x_T: Tensor,
        *,
        steps: int | None = None,
        sigmas: Tensor | Sequence[float] | None = None,
        timesteps: Tensor | Sequence[float] | None = None,
        mu: float | None = None,
        cond: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
        adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
        trajectory: bool = False,
        after_step: AfterStep | None = None,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Return ``sample(...)`` of the adapter's parts; see there, and ``grid`` for the first four arguments."""
        check_tensor(x_T)
        check_device(self.denoiser, x_T)
        parts = self.parts(steps=steps, sigmas=sigmas, timesteps=timesteps, mu=mu, cond=cond, like=x_T)
        return sample(
            parts.denoiser,
            x_T,
            frame=parts.frame,
            grid=parts.grid,
            solver=parts.solver,
            noise=noise,
            cond=parts.cond,
            adjoint=adjoint,
            trajectory=trajectory,
            after_step=after_step,
            callback=callback,
            progress=progress,
        )


class Wrapper(nn.Module):
    """A model of another library as ``network(x, t, **cond)``, with ``t`` in float64.

    The model gets ``x`` in its own floating dtype, and its output is widened to that of ``x``: a half-precision model
    serves float32 states, a float32 model float64 ones.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        if not callable(model):
            raise TypeError(f"model: got {type(model).__name__}; pass the model itself, a callable")
        self.model = model

    @property
    def dtype(self) -> torch.dtype | None:
        """The model's floating dtype: what it says it is, else that of its first floating parameter."""
        if not isinstance(self.model, nn.Module):
            return None
        # Models of diffusers know which of their parameters are kept in float32 for precision only.
        dtype = getattr(self.model, "dtype", None)
        if not isinstance(dtype, torch.dtype):
            dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        return dtype if dtype is not None and dtype.is_floating_point else None

    def narrowed(self, x: Tensor) -> Tensor:
        """``x`` in the model's dtype, or as it is where the model has none."""
        return x if self.dtype is None else x.to(self.dtype)

    def pinned(self, levels: Tensor, timesteps: Tensor) -> Wrapper:
        """The same wrapper, whose model is given these timesteps at these levels."""
        raise NotImplementedError(f"{type(self).__name__} has no timesteps besides its levels")

    @contextmanager
    def explained(self, x: Tensor, cond: Mapping[str, Any]) -> Iterator[None]:
        """If the model fails over a dtype or a device, say which of its arguments has another one than the model.

        Not said before: many models convert their conditioning by themselves, and autocast does it for others.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = self._misfit(x, cond) if re.search("type|device", str(error)) else ""
            if not reason:
                raise
            raise TypeError(f"{reason}; what the model said: {error}") from error

    def _misfit(self, x: Tensor, cond: Mapping[str, Any]) -> str:
        """The first argument in another floating dtype, or on another device, than the model; empty for none."""
        away = is_offloaded(self)
        place = next((p.device for p in self.parameters() if not (away and p.is_meta)), None)
        named = [("x", x), *((f"cond[{name!r}]", tensor) for name in cond for tensor in nests.tensors(cond[name]))]
        for name, tensor in named:
            if place is not None and tensor.device != place:
                return (
                    f"{name}: it is on {tensor.device}, but the model's parameters are on {place}; pass it "
                    f".to({str(place)!r})"
                )
            if self.dtype is not None and tensor.is_floating_point() and tensor.dtype != self.dtype:
                return (
                    f"{name}: it is {tensor.dtype}, but the model computes in {self.dtype}; pass it .to({self.dtype})"
                )
        return ""

    @staticmethod
    def widened(out: Any, x: Tensor) -> Any:
        """A tensor in the wider of its own dtype and that of ``x``; anything else is for the denoiser to refuse."""
        if isinstance(out, Tensor) and out.is_floating_point():
            return out.to(torch.promote_types(out.dtype, x.dtype))
        return out


def adapter(
    wrapper: Wrapper,
    sampler: NamedSampler,
    prediction: str,
    guidance: Guidance | None,
    times: Times,
) -> Adapter:
    """The adapter of a wrapped model, whose time is never rounded on its way to the wrapper."""
    check_guidance(guidance)
    frame, solver = sampler
    denoiser = Denoiser(wrapper, frame.schedule, prediction, guidance=guidance, time_dtype=torch.float64)
    return Adapter(denoiser, frame, solver, times)


def check_guidance(guidance: Any) -> None:
    """Refuse a scale alone: nobody could know what the unconditional call is given."""
    if isinstance(guidance, int | float | Tensor) and not isinstance(guidance, bool):
        scale = guidance if isinstance(guidance, int | float) else "a tensor"
        raise TypeError(
            f"guidance: got {scale}, a scale alone; pass Guidance(scale, unconditional={{...}}) with the same names as "
            "cond, such as Guidance(7.5, {'encoder_hidden_states': empty}) (a scale is enough for from_pipeline, "
            "which knows the names)"
        )


def check_tensor(x_T: Any) -> None:
    """Refuse states in several parts, and say what to do with them."""
    if isinstance(x_T, tuple | list | Mapping):
        raise TypeError(
            f"x_T: got {type(x_T).__name__}; an adapter samples one tensor (batch, ...). For parts that are sampled "
            "together on one grid (audio with video), pass one flat tensor torch.cat([part.flatten(1) ...], 1) and a "
            "model that splits it; parts with times of their own are calls of their own"
        )


def numbers(name: str, values: Tensor | Sequence[float]) -> list[float]:
    """Sigmas or timesteps as finite Python numbers, or a sentence that says what is wrong with them."""
    if isinstance(values, Tensor) and values.requires_grad:
        raise ValueError(f"{name}: a grid has no gradient; pass {name}.detach()")
    if isinstance(values, Tensor) or hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple) or not values:
        raise TypeError(f"{name}: got {type(values).__name__}; pass a list of one number per step")
    if any(isinstance(v, list | tuple) for v in values):
        raise ValueError(
            f"{name}: got more than one dimension; pass one number per step. A time of its own for each sample or "
            "token is not one step of one equation: sample the batch in parts, one per grid, or keep the known tokens "
            "in cond"
        )
    found = [float(v) for v in values]
    if not all(math.isfinite(v) for v in found):
        raise ValueError(f"{name}: they hold NaN or infinite values; pass finite numbers")
    return found


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate brings weights before each call: it gives such modules this attribute."""
    return any("_hf_hook" in vars(module) for module in model.modules())


def check_device(denoiser: Denoiser, x_T: Tensor) -> None:
    """Refuse a state that is not where the model is, or where its weights are brought to."""
    if not isinstance(x_T, Tensor):
        return
    offloaded = is_offloaded(denoiser)
    for parameter in denoiser.parameters():
        if parameter.device != x_T.device and not (offloaded and parameter.is_meta):
            raise ValueError(
                f"x_T: it is on {x_T.device}, but the model's parameters are on {parameter.device}; "
                f"pass x_T.to({str(parameter.device)!r}), or move the model"
            )
        return


def count_of(steps: int | None) -> int:
    """The number of steps, where there is no scheduler that could have been told it."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}; pass an integer >= 1")
    return steps


def range_of(model: Any, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    """The noise levels a model was trained on: those that were passed, else the model's own attributes."""
    ends = []
    for name, given in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        value = getattr(model, name, None) if given is None else given
        if value is None:
            raise ValueError(
                f"{name}: got None, and {type(model).__name__} has no attribute of that name; pass the noise level "
                "at which sampling should " + ("end" if name == "sigma_min" else "start")
            )
        ends.append(float(value))
    return ends[0], ends[1]

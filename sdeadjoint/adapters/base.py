"""What every adapter gives: a denoiser, the sampler that goes with it, and its grid."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import nests
from ..adjoints import Adjoint, Checkpoint
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..diffusion.guidance import Guidance
from ..diffusion.schedules import Schedule
from ..noise import Noise
from ..sample import Callback, sample
from ..samplers import NamedSampler
from ..solvers import Solver


@dataclass(frozen=True, eq=False)
class Adapter:
    """A model of another library with its sampler: ``adapter.sample(x_T, steps=20).sum().backward()``.

    Args:
        denoiser: the model, with the schedule and the meaning of its output.
        frame, solver: the sampler.
        times: ``times(steps)``, the sampler's own grid; ``grid`` calls it.

    Everything else of the library takes the parts as they are: ``sample(adapter.denoiser, x_T, frame=adapter.frame,
    grid=adapter.grid(20), solver=adapter.solver)``, another grid, another solver, another adjoint.
    """

    denoiser: Denoiser
    frame: Frame
    solver: Solver
    times: Callable[[int | None], Tensor]

    @property
    def schedule(self) -> Schedule:
        """The forward process of the model, in the time that ``grid`` counts in."""
        return self.denoiser.schedule

    def grid(self, steps: int | None = 50) -> Tensor:
        """The sampler's times for so many steps: float64, decreasing, on the CPU."""
        return self.times(steps)

    def sample(
        self,
        x_T: Tensor,
        *,
        steps: int | None = 50,
        cond: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
        adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
        trajectory: bool = False,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Tensor:
        """``sample(...)`` of the adapter's parts on ``grid(steps)``; see there for arguments, result and errors."""
        check_device(self.denoiser, x_T)
        return sample(
            self.denoiser,
            x_T,
            frame=self.frame,
            grid=self.grid(steps),
            solver=self.solver,
            noise=noise,
            cond=cond,
            adjoint=adjoint,
            trajectory=trajectory,
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
        place = next((p.device for p in self.parameters()), None)
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
    times: Callable[[int | None], Tensor],
) -> Adapter:
    """The adapter of a wrapped model, whose time is never rounded on its way to the wrapper."""
    frame, solver = sampler
    denoiser = Denoiser(wrapper, frame.schedule, prediction, guidance=guidance, time_dtype=torch.float64)
    return Adapter(denoiser, frame, solver, times)


def check_device(denoiser: Denoiser, x_T: Tensor) -> None:
    """Refuse a state that is not where the model is."""
    if not isinstance(x_T, Tensor):
        return
    for parameter in denoiser.parameters():
        if parameter.device != x_T.device:
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

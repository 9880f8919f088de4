"""The denoiser: a network, the schedule it was trained on, and what its output means."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .guidance import Guidance
from .predictions import PREDICTIONS, convert
from .schedules import Schedule
from .schedules.base import check_schedule


class Denoiser(nn.Module):
    """A network with the meaning of its output, able to predict x_0, eps or the velocity at any ``(x, t)``.

    Args:
        network: ``network(x, t, **cond) -> Tensor`` of x's shape; a module or any callable. ``t`` has shape
            (batch,), the schedule's time, in the dtype of the x that the network gets unless ``time_dtype`` says
            otherwise, and in float32 where that is narrower and cannot tell the schedule's steps apart (``Tabulated``)
            or is the ``network_dtype``. What it returns may be a buffer that it uses again: it is copied.
        schedule: the forward process the network was trained on.
        prediction: ``"epsilon"``, ``"sample"``, ``"v_prediction"``, ``"flow_prediction"`` or ``"score"``.
        guidance: classifier-free guidance, see ``Guidance``.
        time_dtype: the dtype in which the network gets ``t``. A bfloat16 time has three digits: leave a network in
            half precision its float32 time, and cast the embedding inside of it, as diffusers' models do.
        network_dtype: the dtype in which the network gets ``x`` (and ``t``, in float32 at least), x's own by default.
            ``torch.float32`` lets a float32 network serve float64 states, whose arithmetic then rounds in float64 only:
            for reversible solvers and long chains. Conditioning is passed as it is.

    The output keeps its own dtype under autocast and is combined with ``x`` by PyTorch's promotion rules.
    Errors: ``TypeError`` for an output that is not a floating tensor, ``ValueError`` for one of the wrong shape.
    A network that has state of its own (caches, step counters, generators) is not a function of ``(x, t, cond)``:
    ``Checkpoint`` notices and refuses it.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: Schedule,
        prediction: str = "epsilon",
        *,
        guidance: Guidance | None = None,
        time_dtype: torch.dtype | None = None,
        network_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(f"network: got {type(network).__name__}; pass a callable network(x, t, **cond)")
        check_schedule(schedule)
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction: got {prediction!r}; pass one of {PREDICTIONS}")
        for name, dtype in (("time_dtype", time_dtype), ("network_dtype", network_dtype)):
            if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
                raise TypeError(f"{name}: got {dtype!r}; pass a floating dtype such as torch.float32, or None")
        if not isinstance(guidance, Guidance | None):
            raise TypeError(f"guidance: got {type(guidance).__name__}; pass Guidance(scale, unconditional) or None")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.guidance = guidance
        self.time_dtype = time_dtype
        self.network_dtype = network_dtype

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        cond: Mapping[str, Any] | None = None,
        *,
        prediction: str = "sample",
        level: tuple[float, float] | None = None,
    ) -> Tensor:
        """The prediction of the asked kind at ``x`` (batch, ...) and time ``t`` (a number or a tensor (batch,)).

        ``level``: alpha and sigma at a number ``t``, if they are known; the schedule's otherwise.
        """
        times = t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
        alpha, sigma = self._broadcast(times, x) if level is None else level
        # The network may change its arguments in place.
        given = x.to(self.network_dtype or x.dtype, copy=True)
        t_given = times.to(x.device, self._time_dtype(given.dtype), copy=True).expand(x.shape[0]).contiguous()
        out = self._call(given, t_given, cond or {})
        found = convert(out, x, alpha, sigma, self.prediction, prediction)
        # It may return the same buffer at its next call.
        return found.clone() if found is out else found

    def guided_by(self, guidance: Guidance | None) -> Denoiser:
        """The same denoiser, on the same network, with another guidance."""
        other = copy.copy(self)
        other.guidance = guidance
        return other

    def _time_dtype(self, given: torch.dtype) -> torch.dtype:
        """The dtype of the network's time: integers above 256 have no place in eight bits of significand."""
        if self.time_dtype is not None:
            return self.time_dtype
        coarse = self.network_dtype is not None or self.schedule.domain[1] > 256
        return torch.promote_types(given, torch.float32) if coarse else given

    def _call(self, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        try:
            out = self.network(x, t, **cond) if self.guidance is None else self.guidance(self.network, x, t, cond)
        except (RuntimeError, IndexError) as error:
            self._explain(error, x, t)
            raise
        if not isinstance(out, Tensor):
            raise TypeError(
                f"network: returned {type(out).__name__}; it must return one tensor of x's shape {tuple(x.shape)} "
                "(wrap it, for instance: lambda x, t, **cond: network(x, t, **cond).sample; t is the schedule's time, "
                f"here from {self.schedule.t_max:g} to {self.schedule.t_min:g})"
            )
        if out.shape != x.shape:
            raise ValueError(
                f"network: returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; return x's shape "
                "(drop learned-variance channels, for instance)"
            )
        if not out.is_floating_point():
            raise TypeError(f"network: returned dtype {out.dtype}; it must return a real floating-point tensor")
        return out

    def _explain(self, error: RuntimeError | IndexError, x: Tensor, t: Tensor) -> None:
        """Errors of matrix products name the dtypes alone, those of tables not what was looked up."""
        if re.search("argument #1 'indices'|used as indices", str(error)):
            error.add_note(
                "(if the network looks its time up in a table: t is the schedule's time, a floating tensor; pass "
                "lambda x, t, **cond: network(x, t.long(), **cond) with schedule=Tabulated.ddpm(...) and "
                "grid=timesteps(schedule, steps), where t is a whole number)"
            )
        own = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        if own != x.dtype and "type" in str(error):
            error.add_note(
                f"(the network's parameters are {own} and it was given {x.dtype}: pass x_T of that dtype, or "
                f"Denoiser(..., network_dtype={own}))"
            )
        elif t.dtype != x.dtype and "type" in str(error):
            error.add_note(f"(t is {t.dtype}, x is {x.dtype}: cast inside of the network what is made of t)")

    def _broadcast(self, times: Tensor, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """alpha and sigma at one time, or at one per sample."""
        if times.ndim == 0 and times.requires_grad:
            times = times.expand(x.shape[:1])
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        if times.ndim == 0:
            return float(alpha), float(sigma)
        if times.shape != x.shape[:1]:
            got = tuple(times.shape)
            raise ValueError(f"t: got shape {got}; pass a number or a tensor of shape {tuple(x.shape[:1])}")
        shape = (-1, *[1] * (x.ndim - 1))
        return alpha.reshape(shape).to(x.device), sigma.reshape(shape).to(x.device)

    def __repr__(self) -> str:
        name = (
            type(self.network).__name__
            if isinstance(self.network, nn.Module)
            else getattr(self.network, "__name__", repr(self.network))
        )
        options = "".join(
            f", {key}={value!r}"
            for key, value in (
                ("guidance", self.guidance),
                ("time_dtype", self.time_dtype),
                ("network_dtype", self.network_dtype),
            )
            if value is not None
        )
        return f"Denoiser({name}, {self.schedule!r}, prediction={self.prediction!r}{options})"

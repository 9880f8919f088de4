"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import nests
from ..conditioning import Scheduled


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: ``out = out_uncond + scale (out_cond - out_uncond)``.

    Args:
        scale: 1 is the conditional network itself, 0 the unconditional one; a number, or a tensor, which has a gradient
            too: of no dimension, (batch,) with one number per sample, or of as many dimensions as the output.
        unconditional: the conditioning of the unconditional call, with the same names and structure as ``cond``.
            Its tensors get gradients (null-text inversion); one of batch size 1 is expanded to the batch.
        batched: one network call on the doubled batch (``True``), or two calls one after the other, which halves
            the activations' peak memory. They agree to round-off unless the network mixes samples.
        rescale: phi in [0, 1]: ``out`` becomes ``phi out std(out_cond) / std(out) + (1 - phi) out``, each sample's own
            standard deviation over all but the batch dimension (Lin et al., 2024, eqs. 15 and 16).
        interval: ``(low, high)``, in the schedule's time, which the grid counts in: the scale is 1 at times outside of
            it. Both ends belong to it; ``None`` is all times. One that holds no step of the grid is refused: it may
            be in other units. Source: Kynkaanniemi et al. (2024).

    Every prediction kind is affine in the others, so guidance acts on the network's raw output. The rescaling is not
    affine: it means what the paper says where the network predicts eps or v, and it has a gradient. Source: Ho and
    Salimans (2022), eq. 6, with ``scale = 1 + w`` of that paper.

    Cost: twice the network. Where the scale is the number 1, and outside of ``interval``, the network is called once,
    with ``cond`` alone; where it is the number 0 (without ``rescale``) once, with ``unconditional`` alone. So
    ``Scheduled([1.0, 7.5, 7.5, 1.0])`` calls it twice in two of four steps. A scale that is a tensor is not read: its
    gradient at 1 needs both outputs. Times that are a tensor, one per sample, are not read either.
    """

    scale: float | Tensor
    unconditional: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True
    rescale: float = 0.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rescale, bool) or not isinstance(self.rescale, int | float) or not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale: got {self.rescale!r}; pass a number in [0, 1], 0 for none")
        _check_interval(self.interval)
        values = self.scale.values if isinstance(self.scale, Scheduled) else [self.scale]
        if any(isinstance(value, bool) or not isinstance(value, Real | Tensor) for value in values):
            raise TypeError(f"scale: got {self.scale!r}; pass a number or a tensor, or Scheduled of them")
        if not isinstance(self.unconditional, Mapping):
            raise TypeError(
                f"unconditional: got {type(self.unconditional).__name__}; pass a mapping of names, like cond"
            )

    def __repr__(self) -> str:
        scale, unconditional = nests.told(self.scale), nests.told(self.unconditional)
        options = f"batched={self.batched}, rescale={self.rescale}"
        if self.interval is not None:
            options += f", interval={self.interval}"
        return f"Guidance(scale={scale}, unconditional={unconditional}, {options})"

    @property
    def tensors(self) -> dict[str, Any]:
        """What may hold tensors, as a nest; ``replace(guidance, **tensors)`` puts it back."""
        return {"scale": self.scale, "unconditional": self.unconditional}

    def check_times(self, times: Sequence[float]) -> None:
        """Refuse an interval that holds none of the times at which the steps of a grid begin."""
        if self.interval is None or any(self.interval[0] <= t <= self.interval[1] for t in times):
            return
        raise ValueError(
            f"guidance: interval={self.interval} holds none of the times at which the steps begin, from {times[0]:g} "
            f"to {times[-1]:g}; pass two times of the schedule, as the grid has them, or no guidance"
        )

    def __call__(
        self,
        network: Callable[..., Any],
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        time: float | Tensor | None = None,
    ) -> Any:
        """The guided output of ``network`` at ``(x, t)``; ``t`` has shape (batch,).

        ``time`` is the schedule's time before it is rounded to the network's dtype, a number where the samples share
        it; ``t`` itself if it is left out.
        """
        if set(cond) != set(self.unconditional):
            raise ValueError(
                f"cond: got names {sorted(cond)}, but the unconditional conditioning has {sorted(self.unconditional)}; "
                "pass the same names to both"
            )
        time = t if time is None else time
        only = self._only(time, cond)
        if only is not None:
            whole = _expanded(only, x.shape[0]) if self.batched else only
            return network(x, t, **whole)
        outputs = self._outputs(network, x, t, cond)
        for out in outputs:
            if not isinstance(out, Tensor) or out.shape != x.shape or not out.is_floating_point():
                return out  # the denoiser says what is wrong with it
        positive, negative = outputs
        guided = negative + self._factor(x, time) * (positive - negative)
        return guided if self.rescale == 0 else self._rescaled(guided, positive)

    def _only(self, time: float | Tensor, cond: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The conditioning of the one call that is enough; ``None`` where both are needed."""
        if self.interval is not None and not isinstance(time, Tensor):
            low, high = self.interval
            if not low <= time <= high:
                return cond
        if isinstance(self.scale, Tensor):
            return None
        if self.scale == 1:
            return cond
        # Times that are a tensor may lie outside of the interval, and a rescaling needs both deviations.
        alone = self.scale == 0 and self.rescale == 0 and (self.interval is None or not isinstance(time, Tensor))
        return self.unconditional if alone else None

    def _outputs(self, network: Callable[..., Any], x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> tuple[Any, ...]:
        """The conditional and the unconditional output, or what came in their place."""
        if self.batched:
            both = {name: _join(name, value, self.unconditional[name], x.shape[0]) for name, value in cond.items()}
            out = network(torch.cat([x, x]), torch.cat([t, t]), **both)
            if not isinstance(out, Tensor) or out.shape[:1] != (2 * x.shape[0],):
                return (out,)
            return out.chunk(2)
        # The network may change its arguments in place.
        positive = network(x.clone(), t.clone(), **cond)
        if isinstance(positive, Tensor):
            positive = positive.clone()  # it may return the same buffer again
        return positive, network(x, t, **self.unconditional)

    def _rescaled(self, guided: Tensor, positive: Tensor) -> Tensor:
        """``guided`` with the deviation of ``positive``, in part."""
        if guided[0].numel() < 2:
            raise ValueError(f"rescale: got x of shape {tuple(guided.shape)}; one number per sample has no deviation")
        dims = list(range(1, guided.ndim))
        ratio = positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return (self.rescale * ratio + (1 - self.rescale)) * guided

    def _factor(self, x: Tensor, time: float | Tensor) -> float | Tensor:
        """The scale at a time, to be multiplied with outputs like x; 1 for samples outside of the interval."""
        scale = self._broadcast(x)
        if self.interval is None or not isinstance(time, Tensor):
            return scale
        low, high = self.interval
        inside = ((time >= low) & (time <= high)).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(inside, scale, 1.0)

    def _broadcast(self, x: Tensor) -> float | Tensor:
        """The scale, to be multiplied with outputs like x."""
        scale = self.scale
        if not isinstance(scale, Tensor) or scale.ndim in (0, x.ndim):
            return scale
        if scale.ndim == 1 and len(scale) in (1, len(x)):
            return scale.reshape(-1, *[1] * (x.ndim - 1))
        raise ValueError(
            f"scale: got shape {tuple(scale.shape)} for an output of shape {tuple(x.shape)}; pass a number, a tensor "
            f"({len(x)},) with one number per sample, or one of {x.ndim} dimensions"
        )


def _check_interval(interval: Any) -> None:
    if interval is None:
        return
    numbers = isinstance(interval, tuple | list) and len(interval) == 2
    if not numbers or any(isinstance(end, bool) or not isinstance(end, Real) or math.isnan(end) for end in interval):
        raise TypeError(f"interval: got {interval!r}; pass (low, high), two times of the schedule, or None for all")
    if interval[0] > interval[1]:
        raise ValueError(f"interval: got {interval!r}; pass the lower time first")


def _expanded(cond: Mapping[str, Any], batch: int) -> Any:
    """Values of batch size 1 as the doubled batch would have them."""
    return nests.map_tensors(lambda v: v.expand(batch, *v.shape[1:]) if v.ndim and len(v) == 1 else v, dict(cond))


def _join(name: str, positive: Any, negative: Any, batch: int) -> Any:
    """Conditional and unconditional values stacked along the batch dimension, through nests."""
    if isinstance(positive, np.ndarray) or isinstance(negative, np.ndarray):
        raise TypeError(
            f"cond[{name!r}]: got {type(positive).__name__}, and {type(negative).__name__} in the guidance; arrays are "
            "not stacked into one batch: pass tensors to both, such as torch.from_numpy(array)"
        )
    if isinstance(positive, Tensor) and isinstance(negative, Tensor):
        if positive.dtype != negative.dtype:
            raise TypeError(
                f"guidance: unconditional[{name!r}] is of {negative.dtype}, but cond[{name!r}] of {positive.dtype}; "
                "pass both in the dtype that the network takes"
            )
        sizes = {value.shape[0] if value.ndim else None for value in (positive, negative)}
        if not sizes <= {batch, 1} or positive.shape[1:] != negative.shape[1:]:
            raise ValueError(
                f"cond[{name!r}]: cannot batch shapes {tuple(positive.shape)} and {tuple(negative.shape)} for {batch} "
                "samples; give both a leading batch dimension (or 1) and equal trailing ones, or batched=False"
            )
        return torch.cat([value.expand(batch, *value.shape[1:]) for value in (positive, negative)])
    if isinstance(positive, Mapping) and isinstance(negative, Mapping) and set(positive) == set(negative):
        items = {key: _join(f"{name}.{key}", value, negative[key], batch) for key, value in positive.items()}
        return nests.rebuilt(positive, items)
    if isinstance(positive, list | tuple) and type(positive) is type(negative) and len(positive) == len(negative):
        pairs = enumerate(zip(positive, negative, strict=True))
        return nests.rebuilt(positive, [_join(f"{name}[{i}]", p, n, batch) for i, (p, n) in pairs])
    if type(positive) is type(negative) and not isinstance(positive, Mapping | list | tuple) and positive == negative:
        return positive
    raise ValueError(
        f"cond[{name!r}]: {type(positive).__name__} and {type(negative).__name__} cannot be stacked into one batch; "
        "give both the same structure, or pass batched=False"
    )

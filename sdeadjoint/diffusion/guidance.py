"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    Every prediction kind is affine in the others, so guidance acts on the network's raw output. The rescaling is not
    affine: it means what the paper says where the network predicts eps or v, and it has a gradient. Cost: twice the
    network. Source: Ho and Salimans (2022), eq. 6, with ``scale = 1 + w`` of that paper.
    """

    scale: float | Tensor
    unconditional: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.rescale, bool) or not isinstance(self.rescale, int | float) or not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale: got {self.rescale!r}; pass a number in [0, 1], 0 for none")
        values = self.scale.values if isinstance(self.scale, Scheduled) else [self.scale]
        if any(isinstance(value, bool) or not isinstance(value, Real | Tensor) for value in values):
            raise TypeError(f"scale: got {self.scale!r}; pass a number or a tensor, or Scheduled of them")
        if not isinstance(self.unconditional, Mapping):
            raise TypeError(
                f"unconditional: got {type(self.unconditional).__name__}; pass a mapping of names, like cond"
            )

    def __repr__(self) -> str:
        scale, unconditional = nests.told(self.scale), nests.told(self.unconditional)
        return f"Guidance(scale={scale}, unconditional={unconditional}, batched={self.batched}, rescale={self.rescale})"

    @property
    def tensors(self) -> dict[str, Any]:
        """What may hold tensors, as a nest; ``replace(guidance, **tensors)`` puts it back."""
        return {"scale": self.scale, "unconditional": self.unconditional}

    def __call__(self, network: Callable[..., Any], x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Any:
        """The guided output of ``network`` at ``(x, t)``; ``t`` has shape (batch,)."""
        if set(cond) != set(self.unconditional):
            raise ValueError(
                f"cond: got names {sorted(cond)}, but the unconditional conditioning has {sorted(self.unconditional)}; "
                "pass the same names to both"
            )
        if self.batched:
            both = {name: _join(name, value, self.unconditional[name], x.shape[0]) for name, value in cond.items()}
            out = network(torch.cat([x, x]), torch.cat([t, t]), **both)
            if not isinstance(out, Tensor) or out.shape[:1] != (2 * x.shape[0],):
                return out
            positive, negative = out.chunk(2)
        else:
            # The network may change its arguments in place.
            positive = network(x.clone(), t.clone(), **cond)
            if isinstance(positive, Tensor):
                positive = positive.clone()  # it may return the same buffer again
            negative = network(x, t, **self.unconditional)
        for out in (positive, negative):
            if not isinstance(out, Tensor) or out.shape != x.shape or not out.is_floating_point():
                return out  # the denoiser says what is wrong with it
        guided = negative + self._factor(x) * (positive - negative)
        if self.rescale == 0:
            return guided
        if guided[0].numel() < 2:
            raise ValueError(f"rescale: got x of shape {tuple(x.shape)}; one number per sample has no deviation")
        dims = list(range(1, guided.ndim))
        ratio = positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return (self.rescale * ratio + (1 - self.rescale)) * guided

    def _factor(self, x: Tensor) -> float | Tensor:
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

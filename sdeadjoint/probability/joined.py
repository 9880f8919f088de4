"""The network at several nodes of a diffusion, joined in one call; and a few samples of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..conditioning import Scheduled
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion


def predictions(equation: Diffusion, nodes: Sequence[int], states: Sequence[Tensor]) -> list[Tensor]:
    """Return the frame's prediction at ``(t_n, x_n)`` for each of the nodes, by one call of the network.

    One node alone is evaluated as the sampler does it. For several the states are stacked along the batch, and so is
    the conditioning: see ``stacked``.
    """
    kind = equation.frame.prediction
    if len(nodes) == 1:
        return [equation.predict(nodes[0], states[0], equation.times[nodes[0]], kind)]
    batch, dims = states[0].shape[0], states[0].ndim
    parts = [equation.conditioned(n) for n in nodes]
    cond = stacked([own for _, own in parts], batch, "cond")
    denoiser = _guided([own for own, _ in parts], batch, dims)
    times = [equation.times[n] for n in nodes]
    t = torch.tensor(times, dtype=torch.float64, device="cpu").repeat_interleave(batch)
    out: Tensor = denoiser(torch.cat(list(states)), t, cond, prediction=kind)
    if not torch.isfinite(out).all():
        raise ValueError(
            f"network: the network's prediction is not finite (NaN or inf) at one of the steps {nodes[0]} to "
            f"{nodes[-1]} of {equation.steps}"
        )
    return list(out.reshape(len(nodes), batch, *out.shape[1:]))


def _guided(denoisers: Sequence[Denoiser], batch: int, dims: int) -> Denoiser:
    """The denoiser of the nodes' first, its guidance for all of them."""
    guidances = [denoiser.guidance for denoiser in denoisers if denoiser.guidance is not None]
    if not guidances:
        return denoisers[0]
    scales = [guidance.scale for guidance in guidances]
    same = all(not isinstance(scale, Tensor) and scale == scales[0] for scale in scales)
    scale = scales[0] if same else torch.cat([_column(scale, batch, dims) for scale in scales])
    unconditional = stacked([guidance.unconditional for guidance in guidances], batch, "unconditional")
    return denoisers[0].guided_by(replace(guidances[0], scale=scale, unconditional=unconditional))


def _column(scale: Any, batch: int, dims: int) -> Tensor:
    """A guidance scale with one row per sample, of as many dimensions as the state."""
    value = torch.as_tensor(scale)
    value = value.reshape((1,) * (dims - value.ndim) + tuple(value.shape))
    return value.expand(batch, *value.shape[1:])


def stacked(items: Sequence[Any], batch: int, name: str) -> Any:
    """Return one nest for several nodes: tensors with one row per sample are stacked, equal values are shared.

    A tensor whose first dimension is the batch, or 1, is taken to have one row per sample, as ``Guidance`` takes it.
    """
    columns = [_leaves(item) for item in items]
    if any(len(column) != len(columns[0]) for column in columns):
        raise ValueError(f"{name}: has another structure at another step; pass batch_size=None")
    joined = iter([_joined(values, batch, name) for values in zip(*columns, strict=True)])
    return nests.map_leaves(lambda _: next(joined), items[0])


def _leaves(nest: Any) -> list[Any]:
    found: list[Any] = []
    nests.map_leaves(found.append, nest)
    return found


def _joined(values: Sequence[Any], batch: int, name: str) -> Any:
    first = values[0]
    if all(isinstance(value, Tensor) and value.ndim and value.shape[0] in (1, batch) for value in values):
        return torch.cat([value.expand(batch, *value.shape[1:]) for value in values])
    if all(value is first for value in values):
        return first
    if not any(isinstance(value, Tensor) for value in values) and all(value == first for value in values):
        return first
    raise ValueError(
        f"{name}: holds a value that changes from step to step and has no row per sample, so steps cannot share a "
        "call; pass batch_size=None, or tensors whose first dimension is the batch"
    )


def rows(nest: Any, part: slice, batch: int) -> Any:
    """Return the nest for a few samples of the batch: rows of the tensors that have one row per sample."""
    if isinstance(nest, Scheduled):
        values = nest.values
        if isinstance(values, Tensor):
            per_sample = values.ndim > 1 and values.shape[1] == batch
            return Scheduled(values[:, part] if per_sample else values)
        return Scheduled([rows(value, part, batch) for value in values])
    if isinstance(nest, Mapping | list | tuple):
        return nests.map_items(lambda value: rows(value, part, batch), nest)
    if isinstance(nest, Tensor) and nest.ndim and nest.shape[0] == batch:
        return nest[part]
    return nest

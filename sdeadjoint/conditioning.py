"""Conditioning that changes from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import nests


class Scheduled(NamedTuple):
    """One value of the conditioning for each step: step n of the sampler sees ``values[n]``, in all its network calls.

        cond={"embedding": Scheduled(embeddings)}      # embeddings: (steps, batch, ...)

    Args:
        values: a tensor whose first dimension counts the steps, or a sequence with one value (a tensor or a nest) per
            step. Gradients have the same layout: one per slot.

    It may stand anywhere in ``cond`` and in ``Guidance(unconditional=...)`` (null-text inversion: Mokady et al., 2023).
    As a function of time the conditioning is constant on each step: the ``z_t`` of Blasingame and Liu (2024),
    Proposition 3.1, on the sampler's grid.
    """

    values: Tensor | Sequence[Any]

    def __repr__(self) -> str:
        return f"Scheduled(values={nests.told(self.values)})"


def at_step(nest: Any, n: int) -> Any:
    """The nest as step n sees it."""
    if isinstance(nest, Scheduled):
        return nest.values[n]
    if isinstance(nest, Mapping | list | tuple):
        return nests.map_items(lambda value: at_step(value, n), nest)
    return nest


def scheduled(nest: Any) -> Iterator[Scheduled]:
    """Every ``Scheduled`` of a nest."""
    if isinstance(nest, Scheduled):
        yield nest
    elif isinstance(nest, Mapping | list | tuple):
        for value in nest.values() if isinstance(nest, Mapping) else nest:
            yield from scheduled(value)


def check_schedules(nest: Any, steps: int, name: str) -> None:
    """Refuse a ``Scheduled`` that has not one value per step."""
    for found in scheduled(nest):
        values = found.values
        if not isinstance(values, Tensor | list | tuple) or (isinstance(values, Tensor) and values.ndim == 0):
            raise TypeError(f"{name}: Scheduled got {type(values).__name__}; pass a tensor (steps, ...) or a list")
        if len(values) != steps:
            raise ValueError(
                f"{name}: Scheduled holds {len(values)} values, but the grid has {steps} steps; pass one value per step"
            )

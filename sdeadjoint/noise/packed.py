"""Noise of a state that is a nest of tensors: each part has its own, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor

from .. import nests
from ..arguments import named
from ..packing import Packing, outline
from .base import BoundNoise, Increment, Noise


@final
@dataclass(frozen=True, eq=False)
class PackedNoise(Noise):
    """One noise, or None, for each tensor of a nest: ``{"x": None, "v": BrownianPath(seed=0)}``.

    Args:
        parts: a nest like the state, with a ``Noise`` or None in the place of each tensor.
        packing: of the state.

    Errors: ``ValueError`` for another structure, and for two parts with equal noise, which would be one path.
    """

    parts: Any
    packing: Packing

    def __post_init__(self) -> None:
        if outline(self.parts) != outline(self.packing.structure):
            raise ValueError(
                f"noise: its structure {outline(self.parts)} is not that of y0, {outline(self.packing.structure)}; "
                "pass a Noise or None in the place of each tensor, or one Noise for all of them"
            )
        for part in self._noises:
            if part is not None and not isinstance(part, Noise):
                raise TypeError(f"noise: got {named(part)} for a part of y0; pass BrownianPath(seed=...) or None")
        for a, b in combinations((part for part in self._noises if part is not None), 2):
            if a == b:
                raise ValueError(f"noise: two parts of y0 have equal noise, {a!r}; pass another seed for each")

    @property
    def _noises(self) -> list[Noise | None]:
        found: list[Noise | None] = []
        nests.map_leaves(found.append, self.parts)
        return found

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = (part.tensors if part is not None else {} for part in self._noises)
        return {f"{k}.{name}": tensor for k, part in enumerate(named) for name, tensor in part.items()}

    def on(self, tensors: Mapping[str, Tensor]) -> PackedNoise:
        numbers = iter(range(len(self._noises)))

        def other(part: Noise | None) -> Noise | None:
            prefix = f"{next(numbers)}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            return part if part is None or not own else part.on(own)

        return PackedNoise(nests.map_leaves(other, self.parts), self.packing)

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        likes = self.packing.parts(like)
        bound = [
            None if part is None else part.bind(clock, own, levy)
            for part, own in zip(self._noises, likes, strict=True)
        ]
        return _BoundPacked(tuple(bound), tuple(torch.zeros_like(own) for own in likes), self.packing, levy)


@final
@dataclass(frozen=True, eq=False)
class _BoundPacked(BoundNoise):
    parts: tuple[BoundNoise | None, ...]
    zeros: tuple[Tensor, ...]
    packing: Packing
    levy: bool

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts if part is not None for tensor in part.tensors)

    def increment(self, n: int) -> Increment:
        drawn = [
            Increment(zero, zero if self.levy else None) if part is None else part.increment(n)
            for part, zero in zip(self.parts, self.zeros, strict=True)
        ]
        areas = [H for _, H in drawn if H is not None]
        dB = self.packing.joined([dB for dB, _ in drawn])
        return Increment(dB, self.packing.joined(areas) if self.levy else None)

    def pull_back(self, n: int, grads: Sequence[Tensor | None], totals: list[Tensor | None]) -> None:
        pieces = [[None] * len(self.parts) if grad is None else self.packing.parts(grad) for grad in grads]
        at = 0
        for k, part in enumerate(self.parts):
            if part is not None:
                own = totals[at : at + len(part.tensors)]
                part.pull_back(n, [piece[k] for piece in pieces], own)
                totals[at : at + len(own)] = own
                at += len(own)

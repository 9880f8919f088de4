"""Noise of a state that is a nest of tensors: each part has its own, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor

from ..arguments import named
from ..packing import MismatchError, Packing, aligned, outline
from .base import BoundNoise, Increment, Noise
from .brownian import BrownianPath
from .shifted import ShiftedNoise


@final
@dataclass(frozen=True, eq=False)
class PackedNoise(Noise):
    """One noise, or None, for each tensor of a nest: ``{"x": None, "v": BrownianPath(seed=0)}``.

    Args:
        parts: a ``Noise`` or None for each tensor, in the packing's order; ``PackedNoise.of`` takes a nest.
        packing: of the state.
    """

    parts: tuple[Noise | None, ...]
    packing: Packing

    @classmethod
    def of(cls, nest: Any, packing: Packing) -> PackedNoise:
        """Noise for a state from a nest like it; another structure, and parts that share a path, are refused."""
        try:
            parts = tuple(aligned(packing.structure, nest))
        except MismatchError:
            raise ValueError(
                f"noise: got {outline(nest)} for a state {packing.outline}; "
                "pass a Noise or None in the place of each tensor, or one Noise for all of them"
            ) from None
        for part in parts:
            if part is not None and not isinstance(part, Noise):
                raise TypeError(
                    f"noise: got {named(part)}; pass BrownianPath(seed=0), FixedNoise(increments) or another Noise, "
                    "or None for no noise"
                )
        for a, b in combinations((part for part in parts if part is not None), 2):
            if shared := _seeds(a) & _seeds(b):
                raise ValueError(
                    f"noise: two parts of y0 have the seed {min(shared)[0]}, and so the same path; pass different seeds"
                )
        return cls(parts, packing)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        named = (part.tensors if part is not None else {} for part in self.parts)
        return {f"{k}.{name}": tensor for k, part in enumerate(named) for name, tensor in part.items()}

    def on(self, tensors: Mapping[str, Tensor]) -> PackedNoise:
        parts = list(self.parts)
        for k, part in enumerate(parts):
            prefix = f"{k}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if part is not None and own:
                parts[k] = part.on(own)
        return PackedNoise(tuple(parts), self.packing)

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        likes = self.packing.parts(like)
        bound = [
            None if part is None else part.bind(clock, own, levy)
            for part, own in zip(self.parts, likes, strict=True)
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

    @property
    def is_linear(self) -> bool:  # type: ignore[override]
        return all(part is None or part.is_linear for part in self.parts)

    def push_forward(self, n: int, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        at, pushed = 0, list[list[Tensor | None]]()
        for part in self.parts:
            own = () if part is None else tangents[at : at + len(part.tensors)]
            at += len(own)
            still = part is None or all(tangent is None for tangent in own)
            pushed.append([None, None] if still or part is None else [*part.push_forward(n, own), None])
        columns = list(zip(*(found[:2] for found in pushed), strict=True))
        return [self._joined(column) for column in columns[: 2 if self.levy else 1]]

    def _joined(self, tangents: Sequence[Tensor | None]) -> Tensor | None:
        if all(tangent is None for tangent in tangents):
            return None
        pairs = zip(tangents, self.zeros, strict=True)
        return self.packing.joined([zero if tangent is None else tangent for tangent, zero in pairs])


def _seeds(noise: Noise) -> set[tuple[int, bool, str, str]]:
    """The paths that a part is made of, as far as they are known by their seeds."""
    if isinstance(noise, ShiftedNoise):
        return _seeds(noise.path)
    if not isinstance(noise, BrownianPath):
        return set()
    seeds = [noise.seed] if isinstance(noise.seed, int) else noise.seed
    return {(seed, noise.refinable, str(noise.dtype), str(noise.device)) for seed in seeds}

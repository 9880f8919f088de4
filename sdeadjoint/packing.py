"""A nest of tensors as one tensor, for solvers that know one state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import nests
from .arguments import named


@dataclass(frozen=True)
class Packing:
    """Lay the tensors of a nest side by side in one: ``unpack(pack(nest))`` is the nest.

    One tensor stays as it is. Tensors with a first dimension in common, the batch, become (batch, numbers), so that
    samples stay apart; any others become one row of numbers.

    Args:
        structure: the nest without its tensors.
        shapes: of the tensors, in order.
        batch: the size of the first dimension, None if there is none in common.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    batch: int | None

    @classmethod
    def of(cls, nest: Any, name: str) -> Packing:
        """The packing of a nest; one without tensors, or with several dtypes or devices, is refused by ``name``."""
        tensors = list(nests.tensors(nest))
        if not tensors:
            raise TypeError(f"{name}: got {named(nest)}; pass a tensor, or a dict, list or tuple of tensors")
        for what, values in (("dtypes", {t.dtype for t in tensors}), ("devices", {t.device for t in tensors})):
            if len(values) > 1:
                found = ", ".join(sorted(map(str, values)))
                raise TypeError(f"{name}: its tensors have the {what} {found}; pass tensors of one")
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        sizes = {shape[0] if shape else None for shape in shapes}
        batch = sizes.pop() if len(sizes) == 1 else None
        return cls(nests.emptied(nest), shapes, batch)

    @property
    def is_trivial(self) -> bool:
        """Whether the nest is one tensor."""
        return not isinstance(self.structure, dict | list | tuple) and len(self.shapes) == 1

    def pack(self, nest: Any) -> Tensor:
        """One tensor; the nest's own if it is one."""
        if self.is_trivial:
            assert isinstance(nest, Tensor)
            return nest
        return self.joined(list(nests.tensors(nest)))

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor from those of a nest, in order."""
        if self.is_trivial:
            return tensors[0]
        rows = -1 if self.batch is None else self.batch
        if self.batch is None:
            return torch.cat([tensor.reshape(rows) for tensor in tensors])
        return torch.cat([tensor.reshape(self.batch, tensor.numel() // max(1, self.batch)) for tensor in tensors], 1)

    def parts(self, y: Tensor) -> list[Tensor]:
        """The nest's tensors from the packed one: views."""
        if self.is_trivial:
            return [y]
        per_sample = self.batch is not None
        sizes = [torch.Size(shape[1:] if per_sample else shape).numel() for shape in self.shapes]
        pieces = y.split(sizes, dim=1 if per_sample else 0)
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def unpack(self, y: Tensor) -> Any:
        """The nest from the packed tensor."""
        return nests.refilled(self.structure, iter(self.parts(y)))

    def fits(self, nest: Any) -> bool:
        """Whether another nest has this one's structure and shapes."""
        shapes = tuple(tuple(tensor.shape) for tensor in nests.tensors(nest))
        return shapes == self.shapes and outline(nests.emptied(nest)) == outline(self.structure)


def outline(nest: Any) -> Any:
    """A nest's structure, to be compared: names of mappings, lengths of sequences, places of leaves."""
    if isinstance(nest, dict):
        return {name: outline(value) for name, value in nest.items()}
    if isinstance(nest, list | tuple):
        return [outline(value) for value in nest]
    return None

"""A nest of tensors as one tensor, for solvers that know one state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import nests
from .arguments import named


class MismatchError(ValueError):
    """A nest is not like another one."""


@dataclass(frozen=True)
class Packing:
    """Lay the tensors of a nest side by side in one: ``unpack(pack(nest))`` is the nest.

    One tensor stays as it is. Tensors with a first dimension in common, the batch, become (batch, numbers), so that
    samples stay apart; any others become one row of numbers.

    Mappings are matched by their names, whatever the order in which these were put in; lists and tuples by position.

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
        """The packing of a nest; other things than tensors, and several dtypes or devices, are refused by ``name``."""
        leaves = list(_leaves(nest))
        strange = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
        if is_nest(nest) and strange:
            raise TypeError(f"{name}: holds {named(strange[0])}; pass tensors only, and everything else in cond")
        if is_nest(nest) and not leaves:
            raise TypeError(f"{name}: got a {named(nest)} without tensors; pass at least one")
        if strange or not leaves:
            raise TypeError(f"{name}: got {named(nest)}; pass a tensor, or a dict, list or tuple of tensors")
        for what, values in (("dtype", {t.dtype for t in leaves}), ("device", {t.device for t in leaves})):
            if len(values) > 1:
                found = ", ".join(sorted(map(str, values)))
                raise TypeError(f"{name}: its tensors have the {what}s {found}; pass tensors of one {what}")
        shapes = tuple(tuple(tensor.shape) for tensor in leaves)
        sizes = {shape[0] if shape else None for shape in shapes}
        batch = sizes.pop() if len(sizes) == 1 else None
        return cls(nests.emptied(nest), shapes, batch)

    @cached_property
    def is_trivial(self) -> bool:
        """Whether the nest is one tensor."""
        return not is_nest(self.structure)

    def tensors(self, nest: Any) -> list[Tensor]:
        """The tensors of a nest like this one, in this one's order; ``MismatchError`` for one that is not like it."""
        if self.is_trivial and isinstance(nest, Tensor) and nest.shape == self.shapes[0]:
            return [nest]
        try:
            found = list(aligned(self.structure, nest))
            fits = [isinstance(t, Tensor) and tuple(t.shape) for t in found] == list(self.shapes)
        except MismatchError:
            fits = False
        if not fits:
            raise MismatchError(f"{outline(nest)} in the place of {self.outline}")
        return found

    def fits(self, nest: Any) -> bool:
        """Whether a nest is like this one."""
        try:
            self.tensors(nest)
        except MismatchError:
            return False
        return True

    @property
    def outline(self) -> str:
        """The nest in words, for messages: its names and the shapes of its tensors."""
        return outline(nests.refilled(self.structure, (torch.empty(shape, device="meta") for shape in self.shapes)))

    def pack(self, nest: Any) -> Tensor:
        """One tensor from a nest like this one: a copy."""
        return self.joined(self.tensors(nest))

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor from those of a nest, in order: a copy."""
        if self.is_trivial:
            return tensors[0].clone()
        if self.batch is None:
            return torch.cat([tensor.reshape(-1) for tensor in tensors])
        return torch.cat([tensor.reshape(self.batch, tensor.numel() // max(1, self.batch)) for tensor in tensors], 1)

    def parts(self, y: Tensor) -> list[Tensor]:
        """The nest's tensors from the packed one: views where that is possible."""
        if self.is_trivial:
            return [y]
        per_sample = self.batch is not None
        sizes = [torch.Size(shape[1:] if per_sample else shape).numel() for shape in self.shapes]
        pieces = y.split(sizes, dim=1 if per_sample else 0)
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def unpack(self, y: Tensor) -> Any:
        """The nest from the packed tensor: copies, each of which may be changed in place."""
        if self.is_trivial:
            return y.clone()
        return nests.refilled(self.structure, (part.clone() for part in self.parts(y)))


def is_nest(value: Any) -> bool:
    """Whether a value is a mapping, list or tuple."""
    return isinstance(value, Mapping | list | tuple)


def aligned(like: Any, nest: Any) -> Iterator[Any]:
    """What a nest has in the places of another one's leaves, in that one's order; else ``MismatchError``."""
    if isinstance(like, Mapping):
        if not isinstance(nest, Mapping) or set(nest) != set(like):
            raise MismatchError
        for name, value in like.items():
            yield from aligned(value, nest[name])
    elif isinstance(like, list | tuple):
        if not isinstance(nest, list | tuple) or len(nest) != len(like):
            raise MismatchError
        for value, other in zip(like, nest, strict=True):
            yield from aligned(value, other)
    elif is_nest(nest):
        raise MismatchError
    else:
        yield nest


def outline(nest: Any) -> str:
    """A nest in words, for messages: its names, the shapes of its tensors, and the types of everything else."""
    if isinstance(nest, Mapping):
        return "{" + ", ".join(f"{name!r}: {outline(value)}" for name, value in nest.items()) + "}"
    if isinstance(nest, list | tuple):
        return "[" + ", ".join(map(outline, nest)) + "]"
    return str(tuple(nest.shape)) if isinstance(nest, Tensor) else named(nest)


def _leaves(nest: Any) -> Iterator[Any]:
    found: list[Any] = []
    nests.map_leaves(found.append, nest)
    yield from found

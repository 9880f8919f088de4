"""Memory for vectors of one size, used again and again, as fresh pages cost as much as what is written to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .base import Draws

# Numbers that are worked on at a time; a multiple of 16, as draws are. Measured: with 2^13 to 2^15 an operation's fixed
# costs show; a block bounds the memory that intermediate results take.
BLOCK = 2**16


class Pair(NamedTuple):
    """Increments and space-time Levy areas over one interval, each (paths, size); H is empty where nobody needs it."""

    W: Tensor
    H: Tensor

    def block(self, rows: slice, columns: slice) -> Pair:
        """The pair of some paths and some of their numbers, as views."""
        if (rows.stop - rows.start, columns.stop - columns.start) == self.W.shape:
            return self
        return Pair(self.W[rows, columns], self.H[rows, columns])


class Buffers:
    """Tensors of shape (paths, size) to write on, and a few of a block's size.

    Tensors are taken and given back. Inside of the transforms of ``torch.func``, which allow no writing on what was
    there before, all of them are new.

    Args:
        paths: how many rows.
        draws: what a row is.
    """

    def __init__(self, paths: int, draws: Draws) -> None:
        self.draws = draws
        self._paths = paths
        # The CPU's numbers may be drawn in blocks, for the reason in ``Draws.holding``. A block is some whole rows or a
        # part of one. On other devices everything is one block.
        is_cpu = torch.device(draws.device).type == "cpu"
        self._rows = min(paths, max(1, BLOCK // draws.size)) if is_cpu else paths
        self._columns = min(draws.size, BLOCK) if is_cpu else draws.size
        self._free: list[Tensor] = []
        self._spare: tuple[Tensor, ...] | None = None

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of all blocks."""
        for row in range(0, self._paths, self._rows):
            for column in range(0, self.draws.size, self._columns):
                yield (
                    slice(row, min(row + self._rows, self._paths)),
                    slice(column, min(column + self._columns, self.draws.size)),
                )

    def take(self) -> Tensor:
        """A tensor to write on, with anything in it."""
        if self._free:
            return self._free.pop()
        return self._new(self._paths, self.draws.size)

    def take_pair(self, *, areas: bool = True) -> Pair:
        """A pair to write on."""
        return Pair(self.take(), self.take() if areas else self._new(0, 0))

    def give(self, tensors: Iterable[Tensor | None]) -> None:
        """Take tensors back, such as a pair's, which nobody reads any more."""
        self._free += [tensor for tensor in tensors if tensor is not None and tensor.numel()]

    def spare(self, block: Tensor) -> tuple[Tensor, ...]:
        """Four tensors of a block's shape, for the time of its computation."""
        if self._spare is None:
            self._spare = self._new(4, self._rows, self._columns).unbind()
        if block.shape == self._spare[0].shape:
            return self._spare
        return tuple(tensor[: block.shape[0], : block.shape[1]] for tensor in self._spare)

    def _new(self, *shape: int) -> Tensor:
        with torch.inference_mode(False):  # inference tensors are not written on outside of that mode
            return torch.empty(shape, dtype=self.draws.dtype, device=self.draws.device)

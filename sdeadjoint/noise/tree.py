"""A tree of cuts, the pairs of which are computed when they are asked for, and a few of them kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .bridge import ROOT, Cut, Normals
from .buffers import Pair


class Fork(NamedTuple):
    """Where a node is cut: ``[start, middle]`` and ``[middle, end]``. ``is_last``: neither part is ever cut again."""

    start: float
    middle: float
    end: float
    is_last: bool = False


class Tree:
    """Pairs of increments and areas at the nodes of a binary tree, which are numbered as in a heap.

    A node's pair is a function of its number: the nodes above it are cut, one after another, from the nearest that is
    kept. Both parts of each cut are kept, so that a sweep over the leaves, in either direction, cuts each node once.
    Beyond ``capacity`` pairs those are dropped first that do not lie beside the way to a node which is in use, as its
    neighbours do not need them, the oldest before others; then those nearest to the root, which a sweep needs last.

    Args:
        normals: of the paths whose tree it is.
        length: of the root's interval.
        fork: where the node with this number is cut.
    """

    def __init__(self, normals: Normals, length: float, fork: Callable[[int], Fork]) -> None:
        self._normals, self._length, self._fork = normals, length, fork
        self._kept: dict[int, Pair] = {}  # from the oldest to the newest
        self._near: set[int] = set()
        self._lent: set[int] = set()
        self._capacity = 0

    def use(self, numbers: Sequence[int], capacity: int) -> None:
        """From now on keep what leads to these nodes and their neighbours, ``capacity`` pairs at most.

        This ends the use of all pairs that were asked for before.
        """
        beside = {number >> k ^ 1 for number in numbers for k in range(number.bit_length() - 1)}
        self._near, self._capacity = {ROOT, *numbers, *beside}, capacity
        self._lent.clear()
        self._forget(capacity)

    def pair(self, number: int, *, areas: bool = True) -> Pair:
        """The pair of this node, not to be edited; without areas, the parts of a last fork have none."""
        depth = number.bit_length() - 1
        up = next((k for k in range(depth + 1) if number >> k in self._kept), depth)
        at = number >> up
        if at not in self._kept:
            self._forget(self._capacity - 1)
            self._kept[at] = self._normals.whole(self._length)
        pair = self._kept[at]
        for k in reversed(range(up)):
            fork = self._fork(at)
            self._forget(self._capacity - 2, but=at)
            cut = Cut.at(fork.start, fork.middle, fork.end)
            parts = self._normals.parts(pair, cut, at, areas=areas or not fork.is_last)
            self._kept[2 * at], self._kept[2 * at + 1] = parts
            at = number >> k
            pair = parts[at & 1]
        self._lent.add(number)
        return pair

    def clear(self) -> None:
        """Give all memory back."""
        self._lent.clear()
        self._forget(0)

    def _forget(self, capacity: int, but: int = 0) -> None:
        """Drop the least useful pairs, ``but`` this one. Those that are lent are read by somebody: not written on."""
        while len(self._kept) > capacity:
            idle = (number for number in self._kept if number not in self._near and number != but)
            victim = next(idle, 0) or min(number for number in self._kept if number != but)
            pair = self._kept.pop(victim)
            if victim not in self._lent:
                self._normals.buffers.give(pair)

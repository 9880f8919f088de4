"""A Brownian path that depends on its seed alone: not on the grid, the order of the queries, or the batch.

The noise clock is cut at the powers of two, ``2^k <= |nu| < 2^(k+1)``, with one more cell ``[0, 2^-64)`` at
the bottom. Increments over disjoint cells are independent, so each cell has a tree (``tree.py``) of its own, whose
entropy is made of (seed, sign, cell). Powers of two, because then a node's cell and its place in it follow from the
bits of the number (``math.frexp``) without rounding: a ``nu`` that is bitwise equal in two grids is the same
point of the path.

Inside a cell the tree is cut in halves only, down to a lattice of ``2^DEPTH`` leaves. A node between two lattice
points is not snapped to one: the leaf is cut there exactly, by the Brownian bridge with two further normals of its
own, made of (seed, sign, cell, leaf). They do not depend on where the leaf is cut, so each point of the path has the
exact law, and the path is a continuous function of ``nu``. The price is that *two* nodes inside one leaf, closer
than ``2^-DEPTH`` of their own size, would see a smooth curve between them instead of fresh Brownian detail: such steps
are refused.

To a node of the grid lead DEPTH cuts and that of its leaf, of two draws each, besides two of the cell's root:
``2 (DEPTH + 2)``, 36 draws a step, where each node has a cell of its own. All of them are needed, as each cut's areas
are in the increments below it. ``m`` nodes in one cell share the upper ``log2 m`` of their cuts: about
``2 (DEPTH + 2 - log2 m)`` draws a step.

Negative clocks (the noise kind runs from below up to 0) are mirrored, ``B(nu) = -X(-nu)`` with X another such
path: an increment of B is the increment of X over the mirrored interval, and the Levy area changes sign. A step
across zero is joined from its two sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from .base import advances
from .bridge import ROOT, Cut, Normals, close, lengthen
from .buffers import Pair
from .tree import Fork, Tree

DEPTH = 16  # levels of the tree in a cell. Measured: 20 costs a quarter more time; 2^-16 tells 2 million steps apart
LEAVES = 2**DEPTH
BOTTOM, TOP = -64, 128  # the bottom cell is [0, 2^BOTTOM); |nu| must be below 2^TOP
SHORTEST = 1e-100  # the bridge in a leaf cubes lengths
# Pairs of tensors that a cell keeps for each end of a step that lies inside of it: its leaf, the nodes beside the way
# to it, and the root. All that a sweep needs again.
CAPACITY = DEPTH + 2


class Piece(NamedTuple):
    """Increment and space-time Levy area over an interval of length ``h``."""

    h: float
    W: Tensor
    H: Tensor

    def scaled(self, unit: float) -> Piece:
        """The piece on a clock whose unit is ``unit`` of the present one: B(c t) has the law of sqrt(c) B(t)."""
        root = math.sqrt(unit)
        return Piece(unit * self.h, root * self.W, root * self.H)


def combine(left: Piece, right: Piece) -> Piece:
    """The piece over two adjacent intervals: Chen's relation, as torchsde's own ``__call__`` has it."""
    h = left.h + right.h
    H = (right.h * (right.H + left.W / 2) + left.h * (left.H - right.W / 2)) / h
    return Piece(h, left.W + right.W, H)


def locate(m: float) -> tuple[int, float]:
    """The cell of ``m >= 0`` and the place in it, from 0 to LEAVES, both exact."""
    if m < 2.0**BOTTOM:
        return BOTTOM - 1, math.ldexp(m, DEPTH - BOTTOM)
    mantissa, exponent = math.frexp(m)  # m = mantissa * 2^exponent, mantissa in [1/2, 1)
    return exponent - 1, math.ldexp(2 * mantissa - 1, DEPTH)


class Stretch(NamedTuple):
    """Adjacent intervals of one cell, in lattice units, that are answered as one: their lengths and their pairs."""

    lengths: Sequence[float]
    pairs: Sequence[Pair]

    def write(
        self, rows: slice, columns: slice, out: Pair, join: Callable[[Pair, float, Pair, float], None]
    ) -> None:
        """A block of the whole, into ``out``."""
        first, *others = (pair.block(rows, columns) for pair in self.pairs)
        h, *lengths = self.lengths
        for to, part in zip(out, first, strict=True):
            if to.numel():  # areas are asked for
                to.copy_(part)
        for right, more in zip(others, lengths, strict=True):
            join(out, h, right, more)
            h += more


class _Cell:
    """The paths inside one cell, in lattice units: LEAVES unit intervals."""

    def __init__(self, normals: Normals, *, areas: bool) -> None:
        self._normals, self._areas = normals, areas
        self._tree = Tree(normals, float(LEAVES), _fork)
        self._splits: dict[float, tuple[Pair, Pair]] = {}

    def stretches(self, x0: float, x1: float) -> Iterator[Stretch]:
        """Adjacent stretches that make up [x0, x1], left to right; at most one end may lie inside any one leaf."""
        ends = [x for x in (x0, x1) if 0 < x < LEAVES]
        self._tree.use([_beside(x) for x in ends], max(1, len(ends)) * CAPACITY)
        self._drop_splits(ends)
        i0, i1 = math.floor(x0), math.floor(x1)
        if x0 > i0:
            yield Stretch([1.0 - (x0 - i0)], [self._split(x0)[1]])
            i0 += 1
        if i0 < i1:
            nodes = list(_cover(i0, i1))
            lengths = [float(_length(number)) for number in nodes]
            yield Stretch(lengths, [self._tree.pair(number) for number in nodes])
        if x1 > i1:
            yield Stretch([x1 - i1], [self._split(x1)[0]])

    def clear(self) -> None:
        """Give all memory back."""
        self._tree.clear()
        self._drop_splits(but=())

    def _drop_splits(self, but: Sequence[float]) -> None:
        for x in self._splits.keys() - set(but):
            for pair in self._splits.pop(x):
                self._normals.buffers.give(pair)

    def _split(self, x: float) -> tuple[Pair, Pair]:
        """The leaf around ``x``, cut there, as if it had never been cut elsewhere."""
        if x not in self._splits:
            start = math.floor(x)
            leaf, buffers = self._tree.pair(LEAVES + start), self._normals.buffers
            closed = Pair(leaf.W, buffers.take())
            for rows, columns in buffers.blocks():
                close(leaf.block(rows, columns), 1.0, closed.block(rows, columns).H)
            normals = Normals([entropy | (start + 1) << 96 for entropy in self._normals.entropies], buffers)
            cut = Cut.at(0.0, x - start, 1.0)
            self._splits[x] = normals.parts(closed, cut, ROOT, areas=self._areas)
            buffers.give([closed.H])
        return self._splits[x]


def _length(number: int) -> int:
    """The leaves below a node."""
    return LEAVES >> (number.bit_length() - 1)


def _fork(number: int) -> Fork:
    """Nodes are cut in halves."""
    length = _length(number)
    start = number * length - LEAVES
    return Fork(float(start), start + length / 2, float(start + length))


def _beside(x: float) -> int:
    """The node to which the way leads that the nodes on both sides of ``x`` lie beside."""
    number = LEAVES + math.floor(x)
    if x > math.floor(x):
        return number
    return number // (number & -number)  # the longest that begins at x


def _cover(i0: int, i1: int) -> Iterator[int]:
    """The nodes that make up the leaves from ``i0`` to ``i1 - 1``, left to right: the fewest there are."""
    while i0 < i1:
        length = i0 & -i0 or LEAVES
        while length > i1 - i0:
            length //= 2
        yield (LEAVES + i0) // length
        i0 += length


class LinePath:
    """Paths over the whole noise clock, one for each seed, asked for the steps of ``clock``."""

    def __init__(self, normals: Normals, clock: tuple[float, ...], *, areas: bool) -> None:
        self._normals = normals  # with the seeds for entropies, from which those of the cells are made
        self._clock = clock
        self._areas = areas
        # Of the last step, by (is_mirrored, cell): its neighbours begin in one of them.
        self._ends: dict[tuple[bool, int], _Cell] = {}
        self._sides: list[Piece] = []

    def step(self, n: int) -> Pair:
        """See ``SeededPath``."""
        nu0, nu1 = self._clock[n], self._clock[n + 1]
        for side in self._sides:
            self._normals.buffers.give([side.W, side.H])
        self._sides = []
        if nu0 < 0:
            side = self._over(max(0.0, -nu1), -nu0, is_mirrored=True)
            side.H.neg_()
            self._sides.append(side)
        if nu1 > 0:
            self._sides.append(self._over(max(0.0, nu0), nu1, is_mirrored=False))
        left, *others = (Pair(W, H) for _, W, H in self._sides)
        for right in others:
            for rows, columns in self._normals.buffers.blocks():
                at = left.block(rows, columns)
                self._join(at, self._sides[0].h, right.block(rows, columns), self._sides[1].h)
        return left

    def _over(self, m0: float, m1: float, *, is_mirrored: bool) -> Piece:
        """The path X of one half over ``[m0, m1]``, ``m0 >= 0``, in memory of its own."""
        (k0, x0), (k1, x1) = locate(m0), locate(m1)
        self._turn_to([(is_mirrored, k) for k in (k0, k1)])
        whole, h = self._normals.buffers.take_pair(areas=self._areas), 0.0
        for k in range(k0, k1 + 1):
            a, b = (x0 if k == k0 else 0.0), (x1 if k == k1 else float(LEAVES))
            if a < b:  # not where m1 is the lower edge of its cell
                cell = self._ends[is_mirrored, k] if k in (k0, k1) else self._cell(is_mirrored, k)
                unit = math.ldexp(1.0, max(k, BOTTOM) - DEPTH)
                for stretch in cell.stretches(a, b):
                    h = self._add(whole, h, stretch, unit)
                if k not in (k0, k1):
                    cell.clear()
        return Piece(h, whole.W, whole.H)

    def _turn_to(self, ends: Sequence[tuple[bool, int]]) -> None:
        """Keep the cells of a step's ends, and no others."""
        for end in self._ends.keys() - set(ends):
            self._ends.pop(end).clear()
        for end in ends:
            if end not in self._ends:
                self._ends[end] = self._cell(*end)

    def _add(self, whole: Pair, h: float, stretch: Stretch, unit: float) -> float:
        """Add a stretch at the right end of what is ``h`` long, in place; its new length."""
        buffers, root, length = self._normals.buffers, math.sqrt(unit), sum(stretch.lengths)
        for rows, columns in buffers.blocks():
            block = whole.block(rows, columns)
            W, H, *_ = buffers.spare(block.W)
            more = Pair(W, H if self._areas else block.H) if h > 0 else block
            stretch.write(rows, columns, more, self._join)
            if self._areas:
                close(more, length, more.H)
            for part in more:
                part.mul_(root)
            if h > 0:
                self._join(block, h, more, unit * length)
        return h + unit * length

    def _join(self, left: Pair, h: float, right: Pair, more: float) -> None:
        """Make a block over ``h`` one over ``h + more``, in place."""
        if self._areas:
            lengthen(left, h, right, more, self._normals.buffers.spare(left.W)[2])
        else:
            left.W.add_(right.W)

    def _cell(self, is_mirrored: bool, k: int) -> _Cell:
        """A cell is a function of its entropy, whatever it was asked before: it may be dropped and made anew."""
        # Positive and below 2^32: a word of the entropy that is zero in the default mode, which so is another path.
        number = 2 * (k - BOTTOM + 2) + is_mirrored
        own = [seed | number << 64 for seed in self._normals.entropies]
        return _Cell(Normals(own, self._normals.buffers), areas=self._areas)


def check_range(clock: tuple[float, ...]) -> None:
    """Refuse clocks that no cell holds."""
    largest = max(abs(nu) for nu in clock if math.isfinite(nu))
    if largest >= 2.0**TOP:
        raise ValueError(
            f"clock must stay below 2^{TOP} in size, but reaches {largest!r}; lower eta or shorten the grid"
        )
    for n, (nu0, nu1) in enumerate(pairwise(clock)):
        if advances(nu0, nu1) and (nu1 - nu0 < SHORTEST or _inside_one_leaf(nu0, nu1)):
            raise ValueError(
                f"clock: step {n} from {nu0!r} to {nu1!r} is shorter than a refinable path resolves, 2^-{DEPTH} of the "
                f"clock's value and 2^{BOTTOM - DEPTH} near 0; pass refinable=False, larger steps, another eta, or "
                "Frame(..., kind='data')"
            )


def _inside_one_leaf(nu0: float, nu1: float) -> bool:
    if nu0 < 0 < nu1:
        return False  # the two sides are paths of their own, and 0 is on the lattice of both
    (k0, x0), (k1, x1) = (locate(m) for m in sorted((abs(nu0), abs(nu1))))
    return k0 == k1 and math.floor(x0) == math.floor(x1) and x0 > math.floor(x0)

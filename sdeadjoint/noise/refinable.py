"""A Brownian path that depends on its seed alone: not on the grid, the order of the queries, or the batch.

The noise clock is cut at the powers of two, ``2^k <= |nu| < 2^(k+1)``, with one more cell ``[0, 2^-64)`` at
the bottom. Increments over disjoint cells are independent, so each cell has a ``torchsde.BrownianInterval``
of its own, whose entropy is made of (seed, sign, cell). Powers of two, because then a node's cell and its
place in it follow from the bits of the number (``math.frexp``) without rounding: a ``nu`` that is bitwise
equal in two grids is the same point of the path.

Inside a cell torchsde's ``halfway_tree`` is queried at integers only, on a lattice of ``2^DEPTH`` leaves. A node
between two lattice points is not snapped to one: the leaf is split there exactly, by the Brownian bridge with
two further normals of its own, made of (seed, sign, cell, leaf). They do not depend on where the leaf is
split, so each point of the path has the exact law, and the path is a continuous function of ``nu``. The price
is that *two* nodes inside one leaf, closer than ``2^-DEPTH`` of their own size, would see a smooth curve between
them instead of fresh Brownian detail: such steps are refused.

Negative clocks (the noise kind runs from below up to 0) are mirrored, ``B(nu) = -X(-nu)`` with X another such
path: an increment of B is the increment of X over the mirrored interval, and the Levy area changes sign. A step
across zero is joined from its two sides.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor
from torchsde import BrownianInterval

from .base import Draws, advances, release, release_with

DEPTH = 16  # levels of the tree in a cell. Measured: 20 costs a quarter more time; 2^-16 tells 2 million steps apart
LEAVES = 2**DEPTH
BOTTOM, TOP = -64, 128  # the bottom cell is [0, 2^BOTTOM); |nu| must be below 2^TOP
SHORTEST = 1e-100  # the bridge in a leaf cubes lengths
CACHE = 16  # pairs of tensors torchsde keeps per cell. Measured: 8 costs a quarter more time, 32 saves a tenth


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


def query(path: BrownianInterval, a: float, b: float) -> Piece:
    """torchsde's answer over [a, b], which must lie inside the path: one unit outside ends in a RecursionError."""
    W, U = path(a, b, return_U=True)
    return Piece(b - a, W, U / (b - a) - W / 2)


def locate(m: float) -> tuple[int, float]:
    """The cell of ``m >= 0`` and the place in it, from 0 to LEAVES, both exact."""
    if m < 2.0**BOTTOM:
        return BOTTOM - 1, math.ldexp(m, DEPTH - BOTTOM)
    mantissa, exponent = math.frexp(m)  # m = mantissa * 2^exponent, mantissa in [1/2, 1)
    return exponent - 1, math.ldexp(2 * mantissa - 1, DEPTH)


class _Cell:
    """The path inside one cell, in lattice units: LEAVES unit intervals."""

    def __init__(self, entropy: int, draws: Draws) -> None:
        self._entropy = entropy
        self._splits: OrderedDict[float, tuple[Piece, Piece]] = OrderedDict()
        self._lattice = BrownianInterval(
            t0=0.0,
            t1=float(LEAVES),
            size=(draws.size,),
            dtype=draws.dtype,
            device=draws.device,
            entropy=entropy,
            tol=1.0,  # rounds times to whole numbers, which they are
            cache_size=CACHE,
            halfway_tree=True,
            levy_area_approximation="space-time",
        )
        release_with(self, self._lattice)

    def pieces(self, x0: float, x1: float) -> Iterator[Piece]:
        """Adjacent pieces that make up [x0, x1], left to right; at most one end may lie inside any one leaf."""
        i0, i1 = math.floor(x0), math.floor(x1)
        if x0 > i0:
            yield self._split(x0)[1]
            i0 += 1
        if i0 < i1:
            yield query(self._lattice, float(i0), float(i1))
        if x1 > i1:
            yield self._split(x1)[0]

    def _split(self, x: float) -> tuple[Piece, Piece]:
        """The leaf around ``x``, cut there. A fresh tree each time: one cut elsewhere before is another path."""
        if x not in self._splits:
            start = math.floor(x)
            leaf = query(self._lattice, float(start), float(start + 1))
            bridge = BrownianInterval(
                t0=0.0,
                t1=1.0,
                W=leaf.W,
                H=leaf.H,
                dt=1.0,  # no tree of its own
                entropy=self._entropy | (start + 1) << 96,
                levy_area_approximation="space-time",
            )
            self._splits[x] = query(bridge, 0.0, x - start), query(bridge, x - start, 1.0)
            release(bridge)
            if len(self._splits) > 2:  # both ends of a step
                self._splits.popitem(last=False)
        return self._splits[x]


class LinePath:
    """One seed's path over the whole noise clock, asked for the steps of ``clock``."""

    def __init__(self, seed: int, clock: tuple[float, ...], draws: Draws) -> None:
        self._seed = seed
        self._clock = clock
        self._draws = draws
        # Of the last step, by (is_mirrored, cell): its neighbours begin in one of them.
        self._ends: dict[tuple[bool, int], _Cell] = {}

    def step(self, n: int) -> tuple[Tensor, Tensor]:
        """``(W, H)`` over step ``n``, flat."""
        nu0, nu1 = self._clock[n], self._clock[n + 1]
        sides: list[Piece] = []
        if nu0 < 0:
            side = self._over(max(0.0, -nu1), -nu0, is_mirrored=True)
            sides.append(Piece(side.h, side.W, -side.H))
        if nu1 > 0:
            sides.append(self._over(max(0.0, nu0), nu1, is_mirrored=False))
        whole = reduce(combine, sides)
        return whole.W, whole.H

    def _over(self, m0: float, m1: float, *, is_mirrored: bool) -> Piece:
        """The path X of one half over ``[m0, m1]``, ``m0 >= 0``."""
        (k0, x0), (k1, x1) = locate(m0), locate(m1)
        ends = [(is_mirrored, k) for k in (k0, k1)]
        self._ends = {end: self._ends[end] if end in self._ends else self._cell(*end) for end in ends}
        pieces: list[Piece] = []
        for k in range(k0, k1 + 1):
            a, b = (x0 if k == k0 else 0.0), (x1 if k == k1 else float(LEAVES))
            if a < b:  # not where m1 is the lower edge of its cell
                cell = self._ends[is_mirrored, k] if k in (k0, k1) else self._cell(is_mirrored, k)
                unit = math.ldexp(1.0, max(k, BOTTOM) - DEPTH)
                pieces.extend(piece.scaled(unit) for piece in cell.pieces(a, b))
        return reduce(combine, pieces)

    def _cell(self, is_mirrored: bool, k: int) -> _Cell:
        """A cell is a function of its entropy, whatever it was asked before: it may be dropped and made anew."""
        # Positive and below 2^32: a word of the entropy that is zero in the default mode, which so is another path.
        number = 2 * (k - BOTTOM + 2) + is_mirrored
        return _Cell(self._seed | number << 64, self._draws)


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

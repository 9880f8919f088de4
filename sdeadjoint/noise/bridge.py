"""A piece of Brownian path, cut in two by normals that a seed and a place in a tree determine.

Over a piece of length ``h``, let ``W`` be its increment and ``H`` its space-time Levy area. Given both, the pairs of
its two parts, of lengths ``l`` and ``r``, are linear in ``W``, ``H`` and two vectors ``X1`` and ``X2`` of normals:

    W_l = (l/h) W + s_l H + t X1        H_l = (l/h)^2 H - a X1 + c r X2
    W_r = (r/h) W - s_r H - t X1        H_r = (r/h)^2 H - b X1 - c l X2

(Foster, Lyons, Oberhauser, "An optimal polynomial approximation of Brownian motion", 2020, theorem 3.7 and its proof.)
Seeds, coefficients and the order of all roundings are those of ``torchsde.BrownianInterval``, so the numbers are
its own, bit by bit; ``tests/test_noise.py`` compares them. It draws ``X1`` and ``X2`` for each part anew. Here both
parts are made of one draw, in blocks of ``BLOCK`` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .buffers import Buffers, Pair

ROOT = 1  # nodes of a tree have the numbers of a heap: the parts of node m are 2 m and 2 m + 1


class Part(NamedTuple):
    """The coefficients of one part: of ``W`` and ``H`` in its increment; of ``H``, ``X1`` and ``X2`` in its area."""

    W_of_W: float
    W_of_H: float
    H_of_H: float
    H_of_X1: float
    H_of_X2: float


class Cut(NamedTuple):
    """The coefficients of both parts, and that of ``X1`` in their increments."""

    W_of_X1: float
    left: Part
    right: Part

    @classmethod
    def at(cls, start: float, middle: float, end: float) -> Cut:
        """Cut ``[start, end]`` at ``middle``. The order of operations decides the last bits: it is not to change."""
        per_h = 1 / (end - start)
        left, right = middle - start, end - middle
        left_squared, right_squared = left**2, right**2
        v = 0.5 * math.sqrt(left * right / (left * left_squared + right * right_squared))
        a, b, c = v * left_squared * per_h, v * right_squared * per_h, v * (1 / math.sqrt(3))
        to_left, to_right = left * per_h, right * per_h
        return cls(
            2 * (a * left + b * right) * per_h,
            Part(to_left, 6 * to_left * right * per_h, to_left**2, a, c * right),
            Part(to_right, 6 * to_right * left * per_h, to_right**2, b, c * left),
        )


class Normals:
    """What several paths are made of, a row for each: the normals of their trees' nodes.

    Args:
        entropies: of the paths, one for each.
        buffers: whose tensors hold what is made of them.
    """

    def __init__(self, entropies: Sequence[int], buffers: Buffers) -> None:
        self.entropies = tuple(entropies)
        self.buffers = buffers
        # Seeded anew for each node and row.
        self._generators = [torch.Generator(device=buffers.draws.device) for _ in range(2)]

    def whole(self, length: float) -> Pair:
        """The root of the paths' trees: the pair over an interval of this length, from nothing. Two draws."""
        seeds = [_root_seeds(entropy) for entropy in self.entropies]
        pair = self.buffers.take_pair()
        for rows, columns in self.buffers.blocks():
            W, H = pair.block(rows, columns)
            self._fill(W, 0, seeds[rows], is_new=columns.start == 0)
            self._fill(H, 1, seeds[rows], is_new=columns.start == 0)
            W.mul_(math.sqrt(length))
            H.mul_(math.sqrt(length / 12))
        return pair

    def parts(self, whole: Pair, cut: Cut, number: int, *, areas: bool = True) -> tuple[Pair, Pair]:
        """The pairs of both parts of the node with this number, whose pair is ``whole``.

        Two draws, or one where only increments are asked for.
        """
        seeds = [_seeds(entropy, number) for entropy in self.entropies]
        left, right = (self.buffers.take_pair(areas=areas) for _ in range(2))
        for rows, columns in self.buffers.blocks():
            W, H = whole.block(rows, columns)
            X1, X2, *spare = self.buffers.spare(W)
            left_block, right_block = left.block(rows, columns), right.block(rows, columns)
            self._fill(X1, 0, seeds[rows], is_new=columns.start == 0)
            _increments(Pair(W, H), X1, cut, (left_block.W, right_block.W), spare)
            if areas:
                self._fill(X2, 1, seeds[rows], is_new=columns.start == 0)
                _areas(H, (X1, X2), cut, (left_block.H, right_block.H), spare[0])
        return left, right

    def _fill(self, out: Tensor, which: int, seeds: Iterable[tuple[int, int]], *, is_new: bool) -> None:
        """Normals into each row of ``out``: from its seed, or the generator's next ones."""
        generator = self._generators[which]
        # A whole block for one row: as a view costs something.
        for row, pair in zip([out] if len(out) == 1 else out, seeds, strict=True):
            if is_new:
                generator.manual_seed(pair[which])
            row.normal_(generator=generator)


def _increments(whole: Pair, X1: Tensor, cut: Cut, outs: tuple[Tensor, Tensor], spare: Sequence[Tensor]) -> None:
    """Both parts' ``W`` into ``outs``. Products and sums are rounded one by one: never joined, as ``addcmul`` may."""
    shift, turn = spare
    torch.mul(X1, cut.W_of_X1, out=shift)
    left, right = outs
    torch.mul(whole.W, cut.left.W_of_W, out=left)
    torch.mul(whole.H, cut.left.W_of_H, out=turn)
    if cut.left == cut.right:
        torch.sub(left, turn, out=right)
        left.add_(turn)
    else:
        left.add_(turn)
        torch.mul(whole.W, cut.right.W_of_W, out=right)
        torch.mul(whole.H, cut.right.W_of_H, out=turn)
        right.sub_(turn)
    left.add_(shift)
    right.sub_(shift)


def _areas(
    H: Tensor, normals: tuple[Tensor, Tensor], cut: Cut, outs: tuple[Tensor, Tensor], spare: Tensor
) -> None:
    """Both parts' ``H`` into ``outs``."""
    X1, X2 = normals
    left, right = outs
    torch.mul(H, cut.left.H_of_H, out=left)
    left.sub_(torch.mul(X1, cut.left.H_of_X1, out=spare))
    torch.mul(X2, cut.left.H_of_X2, out=spare)
    if cut.left == cut.right:
        torch.sub(left, spare, out=right)
        left.add_(spare)
    else:
        left.add_(spare)
        torch.mul(H, cut.right.H_of_H, out=right)
        right.sub_(torch.mul(X1, cut.right.H_of_X1, out=spare))
        right.sub_(torch.mul(X2, cut.right.H_of_X2, out=spare))


# Below, halves are added by ``alpha=0.5``: half a number is exact, so that it does not matter whether product and sum
# are rounded as one, which depends on the processor.


def close(pair: Pair, h: float, out: Tensor) -> None:
    """The area, taken to ``U``, the integral of the path, and back, into ``out``: ``U/h - W/2``, ``U = h (W/2 + H)``.

    torchsde answers with ``U``, and the roundings of that way are part of the numbers.
    """
    torch.add(pair.H, pair.W, alpha=0.5, out=out)
    if h != 1:
        out.mul_(h).div_(h)
    out.sub_(pair.W, alpha=0.5)


def lengthen(left: Pair, h: float, right: Pair, more: float, spare: Tensor) -> None:
    """Make the pair over ``h`` that over ``h + more``, in place: Chen's relation, in the bits of ``combine``."""
    torch.add(right.H, left.W, alpha=0.5, out=spare)
    left.H.sub_(right.W, alpha=0.5).mul_(h).add_(spare.mul_(more)).div_(h + more)
    left.W.add_(right.W)


def _root_seeds(entropy: int) -> tuple[int, int]:
    W, H = np.random.SeedSequence(entropy=entropy, pool_size=8).generate_state(2).tolist()
    return W, H


@lru_cache(maxsize=4096)  # the backward sweep asks for what the forward sweep did
def _seeds(entropy: int, number: int) -> tuple[int, int]:
    """The seeds of a node's two normals, by its place in its row of the tree, and the row's depth."""
    depth = number.bit_length() - 1
    place = (number - (ROOT << depth), depth)
    W, H = np.random.SeedSequence(entropy=entropy, spawn_key=place, pool_size=8).generate_state(2).tolist()
    return W, H

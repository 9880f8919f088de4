"""Binomial checkpointing: which states to keep when only a given number of them fits."""

from __future__ import annotations

from math import comb


def repeats(length: int, snapshots: int) -> int:
    """The smallest r with ``length <= beta(snapshots, r) = C(snapshots + r, snapshots)``: a step's most advances."""
    r = 0
    while comb(snapshots + r, snapshots) < length:
        r += 1
    return r


def advances(length: int, snapshots: int) -> int:
    """The least number of forward steps that reverses ``length`` steps with ``snapshots`` states, the first included.

    ``r length - beta(snapshots + 1, r - 1)``, ``r = repeats(length, snapshots)``; the differentiated evaluation of each
    step is not counted. Source: Griewank and Walther (2000), Proposition 1.
    """
    r = repeats(length, snapshots)
    return r * length - comb(snapshots + r, snapshots + 1) if r else 0


def split(length: int, snapshots: int) -> int:
    """How far to advance from a stored state before storing the next, with ``snapshots >= 2``, that one included.

    Any m with ``beta(c, r-2) <= m <= beta(c, r-1)`` and ``beta(c-1, r-1) <= length - m <= beta(c-1, r)`` is optimal
    (Griewank and Walther (2000), section 3); the largest is taken, so that the most states lie behind it.
    """
    c, r = snapshots, repeats(length, snapshots)
    return min(comb(c + r - 1, c), length - comb(c + r - 2, c - 1))


def positions(length: int, snapshots: int) -> list[int]:
    """The steps whose starting states the first forward sweep stores; the first is 0."""
    stored, at = [0], 0
    for left in range(snapshots, 1, -1):
        if length - at <= 1:
            break
        at += split(length - at, left)
        stored.append(at)
    return stored

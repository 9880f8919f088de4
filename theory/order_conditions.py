"""Orders of Runge-Kutta and multistep methods from their coefficients, in exact rational arithmetic.

A method for ``dy = F(s, y) ds + dB`` is

    Y_i = y0 + ds sum_{j<i} a[i][j] F(s0 + c[i] ds, Y_j) + noise[i] dB + levy[i] H
    y1  = y0 + ds sum_i b[i] F(s0 + c[i] ds, Y_i) + dB

with H the space-time Levy area. What the conditions mean, and why they suffice: ``orders.md`` and ``weak.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, count, product

Row = tuple[Fraction, ...]
Tree = tuple["Tree", ...] | None
"""A rooted tree as the tuple of its subtrees; ``None`` is a leaf that stands for the clock s, ``()`` one for y."""

LARGEST_DENOMINATOR = 400_000
"""Dormand and Prince's second row of weights has one of 339200."""
_HALF = Fraction(1, 2)


def rational(x: float, tolerance: float = 0.0) -> Fraction:
    """The fraction of small denominator that ``x`` is the rounding of (or is within ``tolerance`` of)."""
    exact = Fraction(x).limit_denominator(LARGEST_DENOMINATOR)
    if abs(float(exact) - x) > tolerance:
        raise ValueError(f"x: got {x!r}, the rounding of no fraction with a denominator up to {LARGEST_DENOMINATOR}")
    return exact


@dataclass(frozen=True)
class Coefficients:
    """An explicit method's tableau in fractions, ``a`` square; ``of`` recovers them from floats."""

    a: tuple[Row, ...]
    b: Row
    c: Row
    noise: Row
    levy: Row

    @classmethod
    def of(
        cls,
        a: Sequence[Sequence[float]],
        b: Sequence[float],
        c: Sequence[float],
        noise: Sequence[float],
        levy: Sequence[float] = (),
    ) -> Coefficients:
        """From rows of floats, ``a`` strictly lower triangular (row i has i entries), ``levy`` empty for none."""
        stages = len(b)
        if [len(row) for row in a] != list(range(stages)):
            raise ValueError(f"a: got rows of lengths {[len(row) for row in a]}; pass 0, 1, ... for {stages} stages")
        rows = [tuple(map(rational, row)) for row in (b, c, noise, levy or (0.0,) * stages)]
        if any(len(row) != stages for row in rows):
            raise ValueError(f"c, noise, levy: got lengths {[len(row) for row in rows[1:]]}; pass {stages} each")
        square = tuple(tuple(map(rational, row)) + (Fraction(0),) * (stages - len(row)) for row in a)
        return cls(square, *rows)

    def with_weights(self, weights: Sequence[float]) -> Coefficients:
        """The method with other weights on the same stages: an embedded one.

        One weight more than there are stages is that of the drift at the step's end: a further
        stage, whose row of a is b, and which sees the whole increment.
        """
        given = tuple(map(rational, weights))
        if len(given) == len(self.b):
            return replace(self, b=given)
        zero = (Fraction(0),)
        square = (*(row + zero for row in self.a), self.b + zero)
        end = (dot(self.b),)
        return Coefficients(square, given, self.c + end, (*self.noise, Fraction(1)), self.levy + zero)

    def times_a(self, v: Row) -> Row:
        """The matrix a times a vector over the stages."""
        return tuple(dot(row, v) for row in self.a)


def dot(*rows: Row) -> Fraction:
    """``sum_i`` of the product of the rows' i-th entries."""
    return sum((math.prod(column) for column in zip(*rows, strict=True)), Fraction(0))


# ---------------------------------------------------------------- rooted trees


def vertices(tree: Tree) -> int:
    return 1 + sum(map(vertices, tree or ()))


def density(tree: Tree) -> int:
    """The product over the vertices of the sizes of the subtrees that hang there."""
    return vertices(tree) * math.prod(map(density, tree or ()))


@cache
def trees(size: int) -> tuple[Tree, ...]:
    """The rooted trees with this many vertices, each leaf but the root of y or of the clock."""
    return tuple(_forests(size - 1, size - 1))


def _forests(total: int, largest: int) -> Iterator[tuple[Tree, ...]]:
    """Multisets of trees with ``total`` vertices together and ``largest`` at most in each."""
    if total == 0:
        yield ()
    for size in range(1, min(total, largest) + 1):
        kinds = (*trees(size), None) if size == 1 else trees(size)
        for many in range(1, total // size + 1):
            rests = tuple(_forests(total - many * size, size - 1))
            for alike, rest in product(combinations_with_replacement(kinds, many), rests):
                yield (*alike, *rest)


def weight(tree: Tree, method: Coefficients) -> Fraction:
    """The elementary weight: what the method gives where the exact solution has ``1 / density``."""
    assert tree is not None
    return dot(method.b, _stages(tree, method))


def _stages(tree: tuple[Tree, ...], method: Coefficients) -> Row:
    factors = [method.c if sub is None else method.times_a(_stages(sub, method)) for sub in tree]
    return tuple(math.prod(column) for column in zip((Fraction(1),) * len(method.b), *factors, strict=True))


# ---------------------------------------------------------------- orders


def ode_order(method: Coefficients) -> int:
    """The greatest p such that every tree of up to p vertices has its weight (O1); at most the number of stages."""

    def holds(size: int) -> bool:
        return all(weight(tree, method) * density(tree) == 1 for tree in trees(size))

    return next(size for size in count(1) if not holds(size)) - 1


def strong_order(method: Coefficients) -> float:
    """0.0, 1.0 or 1.5 with additive noise (O3, O4), the most that increments and Levy areas allow."""
    if dot(method.b) != 1:
        return 0.0
    return 1.5 if weak_order(method) == 2 and dot(method.b, method.levy) == 1 else 1.0


def weak_order(method: Coefficients) -> int:
    """0, 1 or 2 with additive noise (W1, W2); 2 means at least 2."""
    b, noise, levy = method.b, method.noise, method.levy
    if dot(b) != 1:
        return 0
    conditions = (
        ode_order(method) >= 2,
        dot(b, noise) == _HALF,
        dot(b, noise, noise) + dot(b, levy, levy) / 12 == _HALF,
    )
    return 2 if all(conditions) else 1


def return_order(method: Coefficients) -> float:
    """0.0, 1.0, 1.5 or 2.0: how near a solve and its way back along the same path come to the start (R8)."""
    b, c, noise = method.b, method.c, method.noise
    if dot(b) != 1:
        return 0.0
    if not dot(b, noise) == dot(b, c) == dot(b, method.times_a((Fraction(1),) * len(b))) == _HALF:
        return 1.0
    kappa = 2 * dot(b, noise, method.levy) - dot(b, method.levy)
    return 1.5 if kappa else 2.0


def inconsistencies(method: Coefficients) -> list[str]:
    """What no order shows: rows of a that miss their nodes; stages of a method without Levy areas that see another
    part of the increment than its mean at their node, ``noise = c``."""
    ones = (Fraction(1),) * len(method.b)
    found = []
    if method.times_a(ones) != method.c:
        found.append(f"the rows of a add up to {_texts(method.times_a(ones))}, and c is {_texts(method.c)}")
    if not any(method.levy) and method.noise != method.c:
        found.append(f"noise is {_texts(method.noise)}, and c is {_texts(method.c)}")
    return found


def _texts(row: Row) -> str:
    return "(" + ", ".join(map(str, row)) + ")"


# ---------------------------------------------------------------- multistep methods


def multistep_order(
    weights: Sequence[Fraction], nodes: Sequence[Fraction], integral: Callable[[int], Fraction], tolerance: float = 0.0
) -> int:
    """The greatest k with ``sum_j weights[j] nodes[j]^m = integral(m)`` for every m < k (O2).

    ``nodes`` are those of the past drifts in the variable u of the interpolation, and ``integral(m)`` is what the
    method must give for the drift ``u^m``: ``clock_integral``, ``log2_integral`` or ``midpoint_value``. Weights that
    are irrational are compared within ``tolerance``.
    """

    def holds(m: int) -> bool:
        got = sum((w * u**m for w, u in zip(weights, nodes, strict=True)), Fraction(0))
        return abs(got - integral(m)) <= tolerance

    return next(m for m in range(len(nodes) + 1) if m == len(nodes) or not holds(m))


def clock_integral(s0: Fraction, s1: Fraction, m: int) -> Fraction:
    """``int s^m ds`` from s0 to s1."""
    return (s1 ** (m + 1) - s0 ** (m + 1)) / (m + 1)


def log2_integral(u0: int, u1: int, m: int) -> tuple[Fraction, ...]:
    """``int u^m ds`` with ``u = log2 s`` from u0 to u1: the coefficients of a polynomial in ``1 / log 2``.

    By parts, ``I_m = s1 u1^m - s0 u0^m - m/log(2) I_{m-1}``.
    """
    ends = Fraction(2) ** u1 * u1**m - Fraction(2) ** u0 * u0**m
    return (ends, *(-m * part for part in log2_integral(u0, u1, m - 1))) if m else (ends,)


def midpoint_value(u0: Fraction, u1: Fraction, m: int) -> Fraction:
    """The mid-point rule for ``u^m`` per unit of ds, exact for m < 2 up to ``O(ds^2)`` in any smooth variable u."""
    return ((u0 + u1) / 2) ** m

"""Methods in ``log s``: coefficients that depend on the step, as power series in ``h = log(s1/s0)`` of fractions.

The integrals over a step of a method in ``u = log s`` are s0 times functions of h, and ``ds = s0 (e^h - 1)``. So in the
clock s such a method is a tableau, or weights, whose entries are power series in h, which is ``O(ds)``. What that
means for its order: ``orders.md``, O6 and O7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .order_conditions import Coefficients, density, trees, vertices, weight

DEGREE = 8
"""Series are cut off after ``h^DEGREE``."""


@dataclass(frozen=True)
class Series:
    """``sum_k terms[k] h^k + O(h^(DEGREE + 1))``; sums and products with fractions and with each other."""

    terms: tuple[Fraction, ...]

    @classmethod
    def of(cls, *terms: Fraction | int) -> Series:
        found = tuple(map(Fraction, terms))[: DEGREE + 1]
        return cls(found + (Fraction(0),) * (DEGREE + 1 - len(found)))

    def __add__(self, other: Series | Fraction | int) -> Series:
        return Series(tuple(a + b for a, b in zip(self.terms, _series(other).terms, strict=True)))

    def __neg__(self) -> Series:
        return Series(tuple(-a for a in self.terms))

    def __sub__(self, other: Series | Fraction | int) -> Series:
        return self + -_series(other)

    def __mul__(self, other: Series | Fraction | int) -> Series:
        a, b = self.terms, _series(other).terms
        return Series(tuple(sum((a[j] * b[k - j] for j in range(k + 1)), Fraction(0)) for k in range(DEGREE + 1)))

    def __truediv__(self, other: Series) -> Series:
        """The quotient; both may begin with the same power of h, which costs as many terms at the end."""
        shift = other.valuation
        a, b = self.terms[shift:], other.terms[shift:]
        if any(self.terms[:shift]) or not b:
            raise ZeroDivisionError("the quotient is no power series")
        found: list[Fraction] = []
        for k in range(len(b)):
            found.append((a[k] - sum((found[j] * b[k - j] for j in range(k)), Fraction(0))) / b[0])
        return Series.of(*found)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Fraction | int) -> Series:
        return -self + other

    @property
    def valuation(self) -> int:
        """The least power of h that is there, ``DEGREE + 1`` if none is."""
        return next((k for k, a in enumerate(self.terms) if a), DEGREE + 1)

    def at(self, h: float) -> float:
        return math.fsum(float(a) * h**k for k, a in enumerate(self.terms))


def _series(value: Series | Fraction | int) -> Series:
    return value if isinstance(value, Series) else Series.of(value)


def moment(power: int, end: Fraction) -> Series:
    """``int (u/h)^power e^u du / h`` from 0 to ``end h``: ``sum_k end^(power + k + 1) h^k / (k! (power + k + 1))``."""
    return Series.of(
        *(end ** (power + k + 1) / (math.factorial(k) * (power + k + 1)) for k in range(DEGREE + 1))
    )


def integrals(places: Sequence[Fraction], end: Fraction) -> list[Series]:
    """``int l_j(u) e^u du / h`` from 0 to ``end h`` for the Lagrange polynomials on ``places`` times h."""
    found = []
    for j, place in enumerate(places):
        polynomial = [Fraction(1)]  # coefficients, lowest power first
        for k, other in enumerate(places):
            if k != j:
                shifted = [Fraction(0), *polynomial]
                polynomial = [
                    (a - other * b) / (place - other) for a, b in zip(shifted, [*polynomial, Fraction(0)], strict=True)
                ]
        found.append(sum((a * moment(n, end) for n, a in enumerate(polynomial)), Series.of(0)))
    return found


_ONE, _ZERO = Fraction(1), Series.of(0)


def dpm_solver_3(
    variant: str = "dpmsolver", r1: Fraction = Fraction(1, 3), r2: Fraction = Fraction(2, 3)
) -> Coefficients:
    """The tableau of ``DPMSolver3`` in units of ds, with its stages at ``r1 h`` and ``r2 h``."""
    ds = moment(0, _ONE)
    c1, c2 = moment(0, r1) / ds, moment(0, r2) / ds
    slope = c2 * (r2 / (2 * r1)) if variant == "midpoint" else integrals((Fraction(0), r1), r2)[1] / ds
    if variant == "heun":
        b = tuple(part / ds for part in integrals((Fraction(0), r1, r2), _ONE))
    else:
        last = integrals((Fraction(0), r2), _ONE)[1] / ds
        b = (1 - last, _ZERO, last)
    a = ((_ZERO,) * 3, (c1, _ZERO, _ZERO), (c2 - slope, slope, _ZERO))
    nodes = (_ZERO, c1, c2)
    return Coefficients(a, b, nodes, nodes, (_ZERO,) * 3)  # type: ignore[arg-type]


def ode_order(method: Coefficients) -> int:
    """The greatest p such that every tree of k <= p vertices has its weight up to ``O(h^(p + 1 - k))`` (O6)."""

    def holds(p: int) -> bool:
        return all(
            (_series(weight(tree, method)) * density(tree) - 1).valuation >= p + 1 - vertices(tree)
            for size in range(1, p + 1)
            for tree in trees(size)
        )

    return next(p for p in range(1, DEGREE) if not holds(p)) - 1


# ---------------------------------------------------------------- predictors and correctors


def multistep_order(weights: Sequence[Series], places: Sequence[Fraction]) -> int:
    """The greatest k with ``sum_j weights[j] places[j]^m = moment(m)`` up to ``O(h^(k - m))`` for every m < k (O7).

    ``weights`` are in units of ``s0 h`` and ``places`` in units of h, the step being from 0 to 1. The local error of
    such weights on exact drifts is ``O(h^(k + 1))``.
    """

    def holds(k: int) -> bool:
        # The m-th derivative of the drift in u comes with h^m, and the step with h.
        return all(
            (sum((w * place**m for w, place in zip(weights, places, strict=True)), _ZERO) - moment(m, _ONE)).valuation
            >= k - m
            for m in range(k)
        )

    return next(k for k in range(1, DEGREE) if not holds(k)) - 1


def uni_pc_weights(places: Sequence[Fraction], variant: str, corrects: bool) -> list[Series]:
    """Weights of ``UniPC`` in units of ``s0 h``: of the drifts at 0 and before it, and at 1 first if it corrects."""
    ds = moment(0, _ONE)
    scale = ds if variant == "bh2" else Series.of(*(Fraction(1, math.factorial(k)) for k in range(DEGREE + 1)))
    if corrects and len(places) == 2:
        half = scale * Fraction(1, 2)
        return [half, ds - half]
    if not corrects and len(places) == 2:
        slope = scale * (Fraction(1, 2) / (places[0] - places[1]))
        return [ds + slope, -slope]
    return integrals(places, _ONE)

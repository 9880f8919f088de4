"""What a step's linear functionals leave unknown of ``int W^2``: the constants of ``information.md``, in fractions.

On a step of length 1, W a Brownian motion from 0. The functionals are ``L_k = int P_k dW``, k < m, with the Legendre
polynomials P_k of [0, 1]: independent normals of variance ``1 / (2 k + 1)``. ``L_0`` is the increment dB, and ``L_1``
is -2 H, so that two of them are what SRA1 and ShARK see.
"""

from __future__ import annotations

from fractions import Fraction

from .order_conditions import Coefficients

Polynomial = tuple[Fraction, ...]
"""Coefficients, lowest power first."""


def legendre(k: int) -> Polynomial:
    """P_k of [0, 1], by Bonnet's recursion."""
    before, last = (Fraction(0),), (Fraction(1),)
    for n in range(k):
        stretched = product((Fraction(-1), Fraction(2)), last)
        older = (*before, *[Fraction(0)] * (len(stretched) - len(before)))
        before, last = last, tuple(((2 * n + 1) * a - n * b) / (n + 1) for a, b in zip(stretched, older, strict=True))
    return last


def product(p: Polynomial, q: Polynomial) -> Polynomial:
    found = [Fraction(0)] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            found[i + j] += a * b
    return tuple(found)


def primitive(p: Polynomial) -> Polynomial:
    """``int_0^t p``."""
    return (Fraction(0), *(a / (i + 1) for i, a in enumerate(p)))


def mean(p: Polynomial) -> Fraction:
    """``int_0^1 p``."""
    return sum(primitive(p), Fraction(0))


def unknown(functionals: int) -> Fraction:
    """``2 (tr K0^2 - tr Q^2)`` for the first so many ``L_k``: the conditional variance of ``int W^2``, on average.

    ``K0(s, t) = min(s, t)``, for which ``tr K0^2 = 1/6``, and ``Q = sum_k (2 k + 1) q_k(s) q_k(t)`` is the covariance
    of ``E [W | L]``, with ``q_k(t) = Cov(W_t, L_k) = int_0^t P_k``.
    """
    curves = [primitive(legendre(k)) for k in range(functionals)]
    known = sum(
        (
            (2 * j + 1) * (2 * k + 1) * mean(product(p, q)) ** 2
            for j, p in enumerate(curves)
            for k, q in enumerate(curves)
        ),
        Fraction(0),
    )
    return 2 * (Fraction(1, 6) - known)


def missed(method: Coefficients) -> Fraction:
    """``E (int W^2 - sum_i b_i (n_i dB + l_i H)^2)^2``: what a method does not know, and what it makes of what it does.

    ``E [int W^2 | dB, H] = dB^2/3 + dB H + 6/5 H^2 + 1/15``, whose distance from the method's sum is a quadratic
    polynomial of two normals of variances 1 and 1/12.
    """
    rows = list(zip(method.b, method.noise, method.levy, strict=True))
    square = sum((b * n * n for b, n, _ in rows), Fraction(0)) - Fraction(1, 3)
    mixed = sum((2 * b * n * area for b, n, area in rows), Fraction(0)) - 1
    areas = sum((b * area * area for b, _, area in rows), Fraction(0)) - Fraction(6, 5)
    bias = square + areas / 12 - Fraction(1, 15)
    return unknown(2) + bias**2 + 2 * square**2 + mixed**2 / 12 + 2 * areas**2 / 144

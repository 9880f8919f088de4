"""The loop, and nothing but the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .discretization import Carry, Discretization

Observer = Callable[[int, Carry], None]
"""Called with ``(n, carry_n)`` after the forward pass has made ``carry_n``; never during recomputation."""


def integrate(recursion: Discretization, carry: Carry) -> Iterator[Carry]:
    """``carry_1, ..., carry_N`` from ``carry_0``."""
    for n in range(recursion.steps):
        carry = recursion.step(n, carry, recursion.increment(n))
        yield carry

"""The loop, and nothing but the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .discretization import Carry, Discretization

Observer = Callable[[int, Carry], None]
"""Called with ``(n, carry_n)`` after the forward pass has made ``carry_n``; never during recomputation."""


def integrate(recursion: Discretization, carry: Carry, start: int, stop: int) -> Iterator[Carry]:
    """``carry_{start+1}, ..., carry_stop`` from ``carry = carry_start``."""
    for n in range(start, stop):
        carry = recursion.step(n, carry, recursion.increment(n))
        yield carry

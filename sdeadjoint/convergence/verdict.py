"""Whether a measured order agrees with the order that is claimed."""

from __future__ import annotations

import math
from dataclasses import dataclass

MARGIN = 0.15
OUTCOMES = ("holds", "violated", "inconclusive")


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is ``"holds"``, ``"violated"`` or ``"inconclusive"``; ``reason`` a sentence, with what would decide.

    The claim is a lower bound: more is no violation. With the interval [a, b] of the slope it holds if ``a >= claimed -
    MARGIN``, unless the last two levels show less, and is violated if ``b < claimed - MARGIN``. The margin, 0.15,
    allows for higher-order terms at finite steps; proved orders differ by a half at least.
    """

    outcome: str
    claimed: float
    reason: str

    @property
    def holds(self) -> bool:
        return self.outcome == "holds"

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}"


def judge(slope: float, interval: tuple[float, float], claimed: float, paths: int) -> Verdict:
    """The verdict on a slope by its interval alone."""
    low, high = interval
    bar = claimed - MARGIN
    seen = f"order {slope:.3f}, {interval_text(interval)}, claimed {claimed:g}"
    if low >= bar:
        return Verdict("holds", claimed, seen)
    if high < bar:
        return Verdict("violated", claimed, seen)
    if not math.isfinite(high - low):
        return Verdict("inconclusive", claimed, f"{seen}; take more paths")
    needed = paths_to_decide(slope, (high - low) / 2, bar, paths)
    what = f"some {needed} paths" if needed <= 1000 * paths else "smaller steps (the slope is at the limit itself)"
    return Verdict("inconclusive", claimed, f"{seen}; it takes {what} to decide")


def interval_text(interval: tuple[float, float]) -> str:
    """The interval, or that these paths do not tell it."""
    low, high = interval
    if not math.isfinite(high - low):
        return "no interval can be told from so few paths with such tails"
    return f"interval [{low:.3f}, {high:.3f}]"


def paths_to_decide(slope: float, half_width: float, bar: float, paths: int) -> int:
    """Paths after which an interval around the same slope would not contain the bar: widths shrink like paths^-1/2."""
    gap = max(abs(slope - bar), 1e-9)
    needed = paths * (1.1 * half_width / gap) ** 2
    if not math.isfinite(needed):
        return 10**18
    digits = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return int(math.ceil(needed / digits) * digits)

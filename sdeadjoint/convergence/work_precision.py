"""Work against precision: what an error costs, in network calls and in seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from .result import Convergence

TARGETS = 5


def cost_of(result: Convergence, error: float, work: str = "calls") -> float:
    """Network calls (``"calls"``) or seconds for all paths (``"seconds"``) at which the error falls to ``error``.

    Interpolated between measured levels on logarithmic axes; NaN outside of what was measured.
    """
    if work not in ("calls", "seconds"):
        raise ValueError(f"work: got {work!r}; pass 'calls' or 'seconds'")
    costs = result.calls if work == "calls" else result.seconds
    levels = list(zip(result.error, costs, strict=True))
    for (coarse, less), (fine, more) in pairwise(levels):
        if coarse >= error >= fine > 0 and coarse > fine:
            share = math.log(coarse / error) / math.log(coarse / fine)
            return float(less * (more / less) ** share)
    return math.nan


def work_precision(results: Sequence[Convergence]) -> str:
    """A table of calls and seconds per error for several solvers on one problem, in plain text.

    Errors are those of ``Convergence.error``, on a logarithmic scale that all solvers reach between them. Seconds are
    of one run on a machine that may have had other work, for all paths at once: compare calls first.
    """
    positive = [error for result in results for error in result.error if error > 0]
    if not positive:
        raise ValueError("results: no errors to compare; pass results of measure(...)")
    top, bottom = math.log10(max(positive)), math.log10(min(positive))
    exponents = sorted({round(top - (top - bottom) * (k + 0.5) / TARGETS, 1) for k in range(TARGETS)}, reverse=True)
    rows = [["error", *(f"{10**exponent:.1e}" for exponent in exponents)]]
    for result in results:
        for work, form in (("calls", "{:.0f}"), ("seconds", "{:.2f}")):
            costs = [cost_of(result, 10**exponent, work) for exponent in exponents]
            cells = ["-" if math.isnan(cost) else form.format(cost) for cost in costs]
            rows.append([f"{result.solver}, {work}", *cells])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)

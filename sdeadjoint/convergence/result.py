"""Measured orders of convergence, with everything they were read from, and what an error costs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .slope import Dropped, Slope
from .verdict import Verdict, interval_text

TARGETS = 5  # errors whose costs are compared


@dataclass(frozen=True, eq=False)
class Convergence:
    """Errors against numbers of steps, the order they show, and whether it is what the solver claims.

    Args:
        steps: the numbers of steps, increasing.
        rms, median: of the errors' Euclidean norms over the paths, one per level.
        slope, interval: the order read from ``error`` (rms; the mean for weak errors) and its 95 % interval over paths;
            NaN and the whole line where too few levels are above the floors.
        verdict: against the claimed order.
        fit, median_fit: both fitted laws, ``None`` where there is none; ``median_fit`` is on the levels of ``fit``.
        mean: modulus of the mean error and its standard error, per level; for weak errors only.
        calls, seconds: network calls of one solve at each level, and the time of all paths; NaN where solves may have
            run beside others.
        dropped: levels that the slope does not use, with reasons.
        scale: rms of what was compared. ``uncertainty``: estimated error of the reference.
        study, solver: their ``repr``. ``subject``: the quantity and the equation in a line; ``error_name``: ``error``
            in words.
        errors: (levels, units), all of them.
    """

    steps: tuple[int, ...]
    rms: tuple[float, ...]
    median: tuple[float, ...]
    slope: float
    interval: tuple[float, float]
    verdict: Verdict
    fit: Slope | None
    median_fit: Slope | None
    mean: tuple[tuple[float, float], ...]
    calls: tuple[int, ...]
    seconds: tuple[float, ...]
    dropped: tuple[Dropped, ...]
    scale: float
    uncertainty: float
    study: str
    solver: str
    subject: str
    error_name: str
    errors: NDArray[np.float64]

    @property
    def error(self) -> tuple[float, ...]:
        """The errors that the slope is of: the modulus of the mean for weak errors, else the rms."""
        return tuple(mean for mean, _ in self.mean) or self.rms

    @property
    def statistic(self) -> str:
        """The name of ``error``."""
        return "mean" if self.mean else "rms"

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2

    def as_json(self) -> dict[str, Any]:
        """Return all but the errors of single paths; numbers that do not exist are ``None``."""
        numbers = ("steps", "rms", "median", "slope", "interval", "mean", "calls", "seconds", "scale", "uncertainty")
        texts = ("study", "solver", "subject", "error_name")
        fields: dict[str, Any] = {name: getattr(self, name) for name in (*numbers, *texts)}
        fits = {name: fit and asdict(fit) for name, fit in (("fit", self.fit), ("median_fit", self.median_fit))}
        rest = {"verdict": asdict(self.verdict), "dropped": [asdict(gone) for gone in self.dropped]}
        plain: dict[str, Any] = _finite({**fields, **fits, **rest})
        return plain

    def table(self) -> str:
        """Print a table in plain text: one row per level, then the order and the verdict."""
        head = ("steps", "calls", "rms", "median", *(["|mean|", "+-"] if self.mean else []), "order", "seconds", "")
        reasons = {gone.steps: f"dropped: {gone.reason}" for gone in self.dropped}
        rows = [head]
        for i, n in enumerate(self.steps):
            order = "" if i == 0 else f"{self._local(i):.2f}"
            weak = [f"{value:.3g}" for value in self.mean[i]] if self.mean else []
            numbers = [f"{value:.4g}" for value in (self.rms[i], self.median[i])]
            seconds = "-" if math.isnan(self.seconds[i]) else f"{self.seconds[i]:.2f}"
            rows.append((str(n), str(self.calls[i]), *numbers, *weak, order, seconds, reasons.get(n, "")))
        widths = [max(len(row[k]) for row in rows) for k in range(len(head) - 1)]
        lines = [
            "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in rows
        ]
        return "\n".join([f"{self.solver}: {self.subject}", *lines, *self._summary()])

    def _summary(self) -> list[str]:
        lines = []
        for name, fit in zip((self.statistic, "median"), (self.fit, self.median_fit), strict=True):
            if fit is not None:
                told = interval_text(fit.interval).replace("interval [", "95 % interval [")
                lines.append(f"order of the {name}: {fit.slope:.3f}, {told}")
        return [*lines, str(self.verdict)]

    def _local(self, i: int) -> float:
        coarse, fine = self.error[i - 1], self.error[i]
        if not (coarse > 0 and fine > 0):
            return math.nan
        return math.log(coarse / fine) / math.log(self.steps[i] / self.steps[i - 1])

    def __str__(self) -> str:
        return self.table()


def dumps(results: list[Convergence]) -> str:
    """Write several results as one JSON text."""
    return json.dumps([result.as_json() for result in results], indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- work against precision


def cost_of(result: Convergence, error: float, work: str = "calls") -> float:
    """Return the network calls (``"calls"``) or the seconds for all paths (``"seconds"``) that ``error`` costs.

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
    """Print a table of calls and seconds per error for several solvers on one problem.

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

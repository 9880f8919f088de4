"""A measured order of convergence, with everything it was read from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .slope import Slope
from .verdict import Verdict, interval_text
from .window import Dropped


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
        calls, seconds: network calls of one solve at each level, and the time of all paths.
        dropped: levels that the slope does not use, with reasons.
        scale: rms of what was compared. ``uncertainty``: estimated error of the reference.
        study, solver: their ``repr``. ``subject``: the quantity and the equation in a line.
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
    errors: NDArray[np.float64]

    @property
    def error(self) -> tuple[float, ...]:
        """What the slope is of: the modulus of the mean for weak errors, else the rms."""
        return tuple(mean for mean, _ in self.mean) or self.rms

    @property
    def statistic(self) -> str:
        """The name of ``error``."""
        return "mean" if self.mean else "rms"

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2

    def as_json(self) -> dict[str, Any]:
        """All but the errors of single paths; numbers that do not exist are ``None``."""
        names = ("steps", "rms", "median", "slope", "interval", "mean", "calls", "seconds", "scale", "uncertainty")
        fields: dict[str, Any] = {name: getattr(self, name) for name in (*names, "study", "solver", "subject")}
        fits = {name: fit and asdict(fit) for name, fit in (("fit", self.fit), ("median_fit", self.median_fit))}
        rest = {"verdict": asdict(self.verdict), "dropped": [asdict(gone) for gone in self.dropped]}
        plain: dict[str, Any] = _finite({**fields, **fits, **rest})
        return plain

    def table(self) -> str:
        """A table in plain text: one row per level, then the order and the verdict."""
        head = ("steps", "calls", "rms", "median", *(["|mean|", "+-"] if self.mean else []), "order", "seconds", "")
        reasons = {gone.steps: f"dropped: {gone.reason}" for gone in self.dropped}
        rows = [head]
        for i, n in enumerate(self.steps):
            order = "" if i == 0 else f"{self._local(i):.2f}"
            weak = [f"{value:.3g}" for value in self.mean[i]] if self.mean else []
            numbers = [f"{value:.4g}" for value in (self.rms[i], self.median[i])]
            seconds = f"{self.seconds[i]:.2f}"
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
    """Several results as one JSON text."""
    return json.dumps([result.as_json() for result in results], indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

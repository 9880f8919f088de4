"""What a comparison found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .measurement import Measurement
from .table import render


@dataclass(frozen=True)
class Comparison:
    """Every method at every number of steps. ``print(comparison)`` shows the table."""

    settings: Mapping[str, Any]
    truth: str
    truth_uncertainty: float | None
    measurements: tuple[Measurement, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps, rising."""
        return tuple(sorted({row.steps for row in self.measurements}))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' names, in the order they were given."""
        return tuple(dict.fromkeys(row.method for row in self.measurements))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of gradients that any method has."""
        return tuple(dict.fromkeys(g.kind for row in self.measurements for g in row.gradients))

    def at(self, method: str, steps: int) -> Measurement:
        """One row; ``KeyError`` if there is none."""
        for row in self.measurements:
            if (row.method, row.steps) == (method, steps):
                return row
        raise KeyError(f"no measurement of {method!r} at {steps} steps; methods: {', '.join(self.methods)}")

    def __str__(self) -> str:
        known = self.truth_uncertainty
        return render(self.settings, self.truth + (f", known to {known:.0e}" if known else ""), self.measurements)

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Comparison:
        """What ``to_json`` wrote."""
        data = json.loads(Path(path).read_text())
        rows = tuple(Measurement.from_json(row) for row in data.pop("measurements"))
        return cls(**data, measurements=rows)

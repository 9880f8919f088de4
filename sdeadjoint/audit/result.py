"""The audit's table: as text, Markdown, CSV and JSON, and what was found wrong in whose sampler."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ..convergence.verdict import MARGIN

KINDS = ("ode", "strong", "gradient", "weak")
WIDE = 0.05  # of the exact standard deviation: an excess of the marginal that is told
FAR = 0.05  # relative error of a gradient at the most calls that is told


class Slope(NamedTuple):
    """A measured order, and its 95 % interval where it is of paths."""

    order: float
    interval: tuple[float, float] | None


class Own(NamedTuple):
    """A sampler on its own grid at a number of network calls.

    ``state`` is the rms error of the sample, ``gradient`` the relative error of the gradient against the equation's
    true one; both are ``None`` of samplers that state no order. ``excess`` is the standard deviation of the samples
    over the exact one, less 1.
    """

    calls: int
    steps: int
    state: float | None
    gradient: float | None
    excess: float


class Finding(NamedTuple):
    """Something that was found wrong, in a sentence with its numbers."""

    name: str
    family: str
    sentence: str


@dataclass(frozen=True)
class Row:
    """What is claimed of a sampler and what was measured; ``None`` for what does not apply or shows no order.

    ``claimed`` and ``measured`` have the orders of ``KINDS``. ``on_grid`` is the order of states on its own grids.
    """

    name: str
    family: str
    eta: float
    kind: str
    claimed: dict[str, float | None]
    measured: dict[str, Slope | None]
    on_grid: Slope | None
    own: tuple[Own, ...]

    @property
    def short(self) -> tuple[str, ...]:
        """The orders that are below what is claimed, by more than the laboratory's allowance."""
        return tuple(kind for kind in KINDS if _is_below(self.claimed[kind], self.measured[kind]))

    def findings(self) -> Iterator[Finding]:
        """Sentences for what departs from the claim, or from the equation."""
        names = {"ode": "without noise", "strong": "along paths", "gradient": "of gradients", "weak": "in law"}
        for kind in self.short:
            slope = self.measured[kind]
            assert slope is not None
            text = f"order {self.claimed[kind]:g} is stated, and {slope.order:.2f} measured {names[kind]}"
            yield Finding(self.name, self.family, text)
        worst = max(self.own, key=lambda own: own.calls)
        if abs(worst.excess) > WIDE:
            text = f"its samples' standard deviation is {worst.excess:+.1%} off the exact one at {worst.calls} calls"
            yield Finding(self.name, self.family, text)
        if worst.gradient is not None and worst.gradient > FAR:
            text = f"its gradient is {worst.gradient:.1%} off the equation's at {worst.calls} calls"
            yield Finding(self.name, self.family, text)

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        orders = [_order(self.claimed[kind], self.measured[kind], kind in self.short) for kind in KINDS]
        on_grid = "-" if self.on_grid is None else f"{self.on_grid.order:.1f}"
        excess = [f"{own.excess:+.2%}" for own in self.own]
        far = ["-" if own.gradient is None else f"{own.gradient:.2g}" for own in self.own]
        return (self.name, f"{self.eta:g}", *orders, on_grid, *excess, *far)


@dataclass(frozen=True)
class Audit:
    """All rows; ``print`` shows the table."""

    rows: tuple[Row, ...]

    @property
    def head(self) -> tuple[str, ...]:
        calls = [own.calls for own in self.rows[0].own]
        orders = ("ODE", "strong", "gradient", "weak", "on its grid")
        return ("sampler", "eta", *orders, *(f"std, {n}" for n in calls), *(f"gradient, {n}" for n in calls))

    def findings(self) -> list[Finding]:
        return [finding for row in self.rows for finding in row.findings()]

    def markdown(self, family: str) -> str:
        """The table of one family."""
        rows = [row.cells() for row in self.rows if row.family == family]
        lines = [self.head, tuple("---" for _ in self.head), *((f"`{row[0]}`", *row[1:]) for row in rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def csv(self) -> str:
        """One line for each sampler, in full precision."""
        out = io.StringIO()
        records = [_flat(row) for row in self.rows]
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return out.getvalue()

    def json(self) -> str:
        """Everything; numbers that do not exist are ``null``."""
        rows = []
        for row in self.rows:
            slopes = {kind: _plain(slope) for kind, slope in row.measured.items()}
            own = [own._asdict() for own in row.own]
            rows.append({**asdict(row), "measured": slopes, "on_grid": _plain(row.on_grid), "own": own})
        return json.dumps({"rows": rows, "findings": [f._asdict() for f in self.findings()]}, indent=1)

    def __str__(self) -> str:
        lines = [self.head, *(row.cells() for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.head))]
        padded = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
        return "\n".join(padded)


def _is_below(claimed: float | None, slope: Slope | None) -> bool:
    """Whether the interval, or the slope where it has none, lies below the claim with its allowance."""
    if claimed is None or slope is None:
        return False
    high = slope.order if slope.interval is None else slope.interval[1]
    return high < claimed - MARGIN


def _order(claimed: float | None, slope: Slope | None, short: bool) -> str:
    if slope is None:
        return "-"
    told = f"{slope.order:.1f}" if claimed is None else f"{slope.order:.1f} of {claimed:g}"
    return f"**{told}**" if short else told


def _flat(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"name": row.name, "family": row.family, "eta": row.eta, "kind": row.kind}
    for kind in KINDS:
        slope = row.measured[kind]
        record |= {f"{kind} claimed": row.claimed[kind], f"{kind} measured": None if slope is None else slope.order}
    record["order on its grid"] = None if row.on_grid is None else row.on_grid.order
    for own in row.own:
        record |= {f"{name} at {own.calls} calls": getattr(own, name) for name in ("state", "gradient", "excess")}
    return record


def _plain(slope: Slope | None) -> dict[str, Any] | None:
    if slope is None:
        return None
    ends = slope.interval if slope.interval is not None and all(map(math.isfinite, slope.interval)) else None
    return {"order": slope.order, "interval": ends}

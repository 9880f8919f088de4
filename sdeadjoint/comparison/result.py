"""The results of a comparison: values that survive JSON, and the table that one reads to choose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KINDS = ("x_T", "cond", "noise", "guidance", "weights")


@dataclass(frozen=True)
class Agreement:
    """A gradient g against a reference r.

    ``error``: ``||g - r|| / ||r||``; ``cosine``: that of the angle between them; ``ratio``: ``||g|| / ||r||``; all over
    the whole batch. The medians are over the samples of the batch, for x_T only, else None. A cosine with a vector that
    is zero is None.
    """

    error: float
    cosine: float | None
    median_error: float | None = None
    median_cosine: float | None = None
    ratio: float | None = None
    median_ratio: float | None = None

    @property
    def typical(self) -> tuple[float, float | None, float | None]:
        """Error, cosine and ratio: medians over samples where there are some."""
        if self.median_error is None:
            return self.error, self.cosine, self.ratio
        return self.median_error, self.median_cosine, self.median_ratio


@dataclass(frozen=True)
class Agreements:
    """One kind of gradient, taken as one vector, against its two references.

    ``kind``: ``"x_T"``, ``"cond"``, ``"noise"``, ``"guidance"`` or ``"weights"``.
    ``own``: against the gradient of the sampler that ran; ``true``: against that of the exact solution. None: not
    measured, because the method has no such gradient or the truth is not known.
    """

    kind: str
    own: Agreement | None
    true: Agreement | None


@dataclass(frozen=True)
class Measurement:
    """One method at one number of steps.

    Args:
        refused: the sentence in which the method refused something, empty if nothing.
        forward_calls, backward_calls: network calls while sampling, and during the backward pass.
        products: vector-Jacobian products.
        seconds: of sampling and backward pass together, the median of several.
        peak_bytes: of tensors alive at once. ``budget_bytes``: the memory that the method was given, if it was.
        round_trip: how far, relatively, a reversible solver's way back ended from where it should; None for others.
    """

    method: str
    family: str
    steps: int
    solver: str
    refused: str = ""
    forward_calls: int | None = None
    backward_calls: int | None = None
    products: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    budget_bytes: int | None = None
    round_trip: float | None = None
    gradients: tuple[Agreements, ...] = ()
    warnings: tuple[str, ...] = ()

    def gradient(self, kind: str) -> Agreements | None:
        """The gradient of a kind, None if it was not measured."""
        return next((gradient for gradient in self.gradients if gradient.kind == kind), None)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """From what ``dataclasses.asdict`` made of it."""
        gradients = tuple(
            Agreements(g["kind"], *(None if g[key] is None else Agreement(**g[key]) for key in ("own", "true")))
            for g in data["gradients"]
        )
        return cls(**{**data, "gradients": gradients, "warnings": tuple(data["warnings"])})


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
        """Write everything to a file, as strict JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def from_json(cls, path: str | Path) -> Comparison:
        """Read what ``to_json`` wrote."""
        data = json.loads(Path(path).read_text())
        rows = tuple(Measurement.from_json(row) for row in data.pop("measurements"))
        return cls(**data, measurements=rows)


# ---------------------------------------------------------------- the table

ROUND_OFF = 1e-9  # errors below are one and the same: none
COLUMNS = (
    ("calls", 7),
    ("back", 7),
    ("VJPs", 7),
    ("ms", 9),
    ("MiB", 8),
    ("own err", 10),
    ("own cos", 9),
    ("true err", 10),
    ("true cos", 9),
    ("trip", 9),
)
LEGEND = (
    "steps     steps of the sampler; within each, the most exact first, then the least memory",
    "calls     network calls while sampling;  back: during the backward pass;  VJPs: vector-Jacobian products",
    "ms, MiB   sampling and backward pass: median time in milliseconds, most tensor memory alive at once",
    "own       against the gradient of the sampler that ran (plain autograd, float64): |g - r| / |r| and cosine;",
    "          Reversible() runs another sampler than the others, and is compared with that",
    "true      the same against the gradient of the exact solution: {truth}",
    "          for x_T: medians over the {samples} samples; a dash: not measured, or no such gradient",
    "trip      how far a reversible solver's way back strayed, relatively",
)


def render(settings: Mapping[str, Any], truth: str, rows: Sequence[Measurement]) -> str:
    """One table for x_T with all costs, one with errors for every other kind of gradient, a legend, and remarks."""
    remarks: list[str] = []
    kinds = [kind for kind in KINDS if any(row.gradient(kind) is not None for row in rows)]
    first, *others = kinds or ["x_T"]
    lines = [*_title(settings), "", f"Gradient in {first}", *_block(rows, first, remarks, costs=True), ""]
    for kind in others:
        lines += [f"Gradient in the {kind}, as one vector", *_block(rows, kind, [], costs=False), ""]
    lines += [line.format(truth=truth, samples=settings["shape"][0]) for line in LEGEND]
    lines += [f"[{i}] {remark}" for i, remark in enumerate(remarks, start=1)]
    return "\n".join(lines)


def _title(settings: Mapping[str, Any]) -> Iterator[str]:
    shape = " x ".join(str(n) for n in settings["shape"])
    noise = "" if settings["noise"] == "None" else f", {settings['noise']}"
    yield settings["denoiser"]
    yield f"{settings['frame']}, {settings['solver']}{noise}; {shape} {settings['dtype']}"


def _block(rows: Sequence[Measurement], kind: str, remarks: list[str], *, costs: bool) -> Iterator[str]:
    columns = COLUMNS if costs else COLUMNS[5:9]
    width = max(len("method"), *(len(row.method) for row in rows)) + 2
    yield f"{'steps':>5}  {'method':{width}}" + "".join(f"{name:>{size}}" for name, size in columns)
    for row in sorted(rows, key=lambda row: _order(row, kind)):
        gradient = row.gradient(kind)
        if not costs and gradient is None:
            continue
        own, true = (None, None) if gradient is None else (gradient.own, gradient.true)
        cells = [*_agreement(own), *_agreement(true)]
        cells = [*_costs(row), *cells, _number(row.round_trip, "{:.0e}")] if costs else cells
        text = "".join(f"{cell:>{size}}" for cell, (_, size) in zip(cells, columns, strict=True))
        marks = "".join(f" [{_place(remark, remarks)}]" for remark in (row.refused, *row.warnings) if remark and costs)
        yield f"{row.steps:>5}  {row.method:{width}}{text}{marks}"


def _order(row: Measurement, kind: str) -> tuple[float, ...]:
    """Exact ones first; of those, and of equally wrong ones, the one with the least memory."""
    gradient = row.gradient(kind)
    error = math.inf if gradient is None or gradient.own is None else gradient.own.typical[0]
    return row.steps, error if error > ROUND_OFF else 0.0, math.inf if row.peak_bytes is None else row.peak_bytes


def _agreement(agreement: Agreement | None) -> tuple[str, str]:
    if agreement is None:
        return "-", "-"
    error, cosine, _ = agreement.typical
    form = "0" if error == 0 else "{:.1e}" if error < 1e-3 or error >= 100 else "{:.3g}"
    return form.format(error), _number(cosine, "{:.3f}")


def _costs(row: Measurement) -> list[str]:
    calls = [_number(value, "{:d}") for value in (row.forward_calls, row.backward_calls, row.products)]
    seconds = None if row.seconds is None else row.seconds * 1e3
    memory = None if row.peak_bytes is None else row.peak_bytes / 2**20
    return [*calls, _number(seconds, "{:.1f}"), _number(memory, "{:.2f}")]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _place(remark: str, remarks: list[str]) -> int:
    """The number of a remark, which is added if it is new."""
    if remark not in remarks:
        remarks.append(remark)
    return remarks.index(remark) + 1

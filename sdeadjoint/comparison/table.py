"""A comparison as a table of text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .measurement import KINDS, Agreement, Measurement

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
    error = math.inf if gradient is None or gradient.own is None else _typical(gradient.own)[0]
    return row.steps, error if error > ROUND_OFF else 0.0, math.inf if row.peak_bytes is None else row.peak_bytes


def _typical(agreement: Agreement) -> tuple[float, float | None]:
    """Medians where there are some."""
    if agreement.median_error is None:
        return agreement.error, agreement.cosine
    return agreement.median_error, agreement.median_cosine


def _agreement(agreement: Agreement | None) -> tuple[str, str]:
    if agreement is None:
        return "-", "-"
    error, cosine = _typical(agreement)
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

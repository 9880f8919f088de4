"""A comparison's pictures, with matplotlib: errors, cosines and memory against the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .methods import EXACT, OTHER, RECONSTRUCTED, RECORDED, TRUNCATED
from .result import KINDS, Agreement, Comparison, Measurement

# Okabe and Ito's colours, which the colour-blind can tell apart: one for each family, whose members differ by marker.
COLOURS = {EXACT: "#0072B2", RECORDED: "#D55E00", RECONSTRUCTED: "#CC79A7", TRUNCATED: "#009E73", OTHER: "#E69F00"}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}
FLOOR = 1e-6  # smaller errors are drawn there: round-off, of whatever dtype
COSINES = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5, 0.0, -0.5, -1.0)
SIDES = ("own", "true")
TITLES = {"own": "against the sampler's own gradient", "true": "against the true gradient"}


def draw_error(comparison: Comparison, path: str | Path) -> None:
    """Relative errors, both axes logarithmic: a row for each kind of gradient, a column for each reference."""

    def value(agreement: Agreement) -> float | None:
        return max(agreement.error if agreement.median_error is None else agreement.median_error, FLOOR)

    def finish(axis: Any) -> None:
        from matplotlib.ticker import LogLocator

        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(numticks=12))
        axis.minorticks_off()
        low, high = axis.get_ylim()
        if low <= FLOOR:
            axis.axhspan(FLOOR / 10, FLOOR * 2.5, color="0.93", zorder=0, linewidth=0)
            axis.text(
                0.65,
                FLOOR * 4,
                "round-off, $10^{-6}$ or less",
                transform=axis.get_yaxis_transform(),
                ha="center",
                color="0.4",
            )
            axis.set_ylim(bottom=FLOOR / 2.5)
        if low < 1 < high:
            axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)

    _draw(comparison, path, "relative error", value, finish)


def draw_cosine(comparison: Comparison, path: str | Path) -> None:
    """Cosines of the angle to the reference: 1 is right, 0 is at a right angle, below it is the wrong way.

    The axis is linear in the distance ``sqrt(2 - 2 cos)`` between the unit vectors, so that 0.99 and 1 are told apart.
    """

    def value(agreement: Agreement) -> float | None:
        return agreement.cosine if agreement.median_error is None else agreement.median_cosine

    def finish(axis: Any) -> None:
        axis.set_yscale("function", functions=(_distance, _cosine))
        axis.set_ylim(-1.0, 1.002)
        axis.set_yticks(list(COSINES), [f"{tick:g}" for tick in COSINES])
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)

    _draw(comparison, path, "cosine", value, finish)


def draw_memory(comparison: Comparison, path: str | Path) -> None:
    """Peak memory, both axes logarithmic, so that proportional growth has slope one."""
    from matplotlib.ticker import LogLocator

    with _figure(path, 7.6, 4.4) as figure:
        axis = figure.subplots(gridspec_kw={"left": 0.09, "right": 0.6, "top": 0.9, "bottom": 0.12})
        for name, style in _styles(comparison).items():
            rows = [row for row in _rows(comparison, name) if row.peak_bytes is not None]
            axis.loglog([row.steps for row in rows], [(row.peak_bytes or 0) / 2**20 for row in rows], **style)
        _steps_axis(axis, comparison.steps)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_ylabel("peak of tensor memory, MiB")
        axis.set_title("one gradient: sampling and backward pass", loc="left", fontsize=10)
        _legend(figure, comparison, 0.62)


def _draw(
    comparison: Comparison,
    path: str | Path,
    label: str,
    value: Callable[[Agreement], float | None],
    finish: Callable[[Any], None],
) -> None:
    """Panels of one quantity: a row for each kind of gradient, a column for each reference that is known."""
    kinds = [kind for kind in KINDS if kind in comparison.kinds]
    sides = [side for side in SIDES if _any(comparison, side)]
    width, height = 3.3 * len(sides) + 3.2, 2.6 * len(kinds) + 0.8
    layout = {"left": 0.75 / width, "right": 1 - 3.05 / width, "top": 1 - 0.45 / height, "bottom": 0.5 / height}
    with _figure(path, width, height) as figure:
        grid = figure.subplots(len(kinds), len(sides), squeeze=False, sharex=True, gridspec_kw=layout)
        for kind, line in zip(kinds, grid, strict=True):
            for side, axis in zip(sides, line, strict=True):
                axis.set_title(f"{_shown(kind)}, {TITLES[side]}", loc="left", fontsize=9)
                if _panel(axis, comparison, kind, side, value):
                    finish(axis)
                    _steps_axis(axis, comparison.steps)
                else:
                    axis.text(0.5, 0.5, "not known: it belongs to one grid", transform=axis.transAxes, ha="center")
                    axis.set_axis_off()
            line[0].set_ylabel(label)
        for axis in grid[:-1].flat:
            axis.set_xlabel("")
        _legend(figure, comparison, 1 - 2.9 / width)


def _distance(cosine: Any) -> Any:
    """Minus the distance of unit vectors; continued beyond 1, where there is room for markers."""
    return -np.sign(1 - cosine) * np.sqrt(np.abs(2 - 2 * cosine))


def _cosine(distance: Any) -> Any:
    """The inverse of ``_distance``."""
    return 1 + np.sign(distance) * distance**2 / 2


def _panel(axis: Any, comparison: Comparison, kind: str, side: str, value: Callable[[Agreement], float | None]) -> bool:
    """Draw the methods that have such a gradient; whether there is any."""
    shown = False
    for name, style in _styles(comparison).items():
        points = []
        for row in _rows(comparison, name):
            gradient = row.gradient(kind)
            agreement = None if gradient is None else gradient.own if side == "own" else gradient.true
            height = None if agreement is None else value(agreement)
            if height is not None:
                points.append((row.steps, height))
        if points:
            axis.plot(*zip(*points, strict=True), **style)
            shown = True
    axis.set_xscale("log")
    axis.grid(color="0.9")
    return shown


def _styles(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By method: its family's colour, and marker, dash and size of its own."""
    families = {row.method: row.family for row in comparison.measurements if row.gradients}
    styles: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for name in sorted(families, key=lambda name: list(COLOURS).index(families[name])):
        k = seen[families[name]] = seen.get(families[name], -1) + 1
        styles[name] = {
            "label": name,
            "color": COLOURS[families[name]],
            "marker": MARKERS[k % len(MARKERS)],
            "linestyle": DASHES[k % len(DASHES)],
            "linewidth": 1.3,
            "markersize": max(9 - 1.5 * k, 3.5),  # the first is seen around those that lie upon it
            "fillstyle": "none",
        }
    return styles


def _rows(comparison: Comparison, method: str) -> list[Measurement]:
    return sorted((row for row in comparison.measurements if row.method == method), key=lambda row: row.steps)


def _any(comparison: Comparison, side: str) -> bool:
    found = [gradient for row in comparison.measurements for gradient in row.gradients]
    return any((g.own if side == "own" else g.true) is not None for g in found)


def _shown(kind: str) -> str:
    return "$x_T$" if kind == "x_T" else kind


def _steps_axis(axis: Any, steps: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xticks(list(steps), [str(n) for n in steps])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("steps of the sampler")
    axis.grid(color="0.9")


def _legend(figure: Any, comparison: Comparison, left: float) -> None:
    """One for the whole figure, on the right: methods under the names of their families."""
    from matplotlib.lines import Line2D

    families = {row.method: row.family for row in comparison.measurements}
    handles, headings = [], []
    for name, style in _styles(comparison).items():
        if families[name] not in headings:
            headings.append(families[name])
            handles.append(Line2D([], [], linestyle="none", label=families[name]))
        handles.append(Line2D([], [], **style))
    box = {"loc": "center left", "bbox_to_anchor": (left, 0.5), "frameon": False, "labelspacing": 0.35}
    for text in figure.legend(handles=handles, **box).get_texts():
        if text.get_text() in headings:
            text.set(color=COLOURS[text.get_text()], fontweight="bold", position=(-30, 0))


@contextmanager
def _figure(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure in inches, written to ``path`` in the end."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plots need matplotlib: pip install 'sdeadjoint[demo]'") from error

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        yield figure
        figure.savefig(path)

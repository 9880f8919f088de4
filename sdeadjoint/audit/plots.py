"""The audit's picture: one line for each sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..convergence.plots import COLOURS, GREY, _figure
from .result import KINDS, Audit, Row

MARKERS = ("o", "s", "D", "^")
SUFFIXES = (".png", ".svg")
HEAD, FOOT, LINE = 0.45, 1.1, 0.2  # inches


def draw(audit: Audit, path: str | Path) -> None:
    """Draw orders, excess of the marginals and gradient errors; the suffix of ``path`` is the format."""
    rows = audit.rows
    height = HEAD + FOOT + LINE * len(rows)
    with _figure(path, 11.0, height) as figure:
        axes = figure.subplots(1, 3, sharey=True, gridspec_kw={"width_ratios": (1.0, 1.0, 1.15), "wspace": 0.08})
        figure.subplots_adjust(left=0.27, right=0.985, top=1 - HEAD / height, bottom=FOOT / height)
        for axis in axes:
            _background(axis, rows)
        _draw_orders(axes[0], rows)
        _draw_excess(axes[1], rows)
        _draw_gradients(axes[2], rows)
        axes[0].set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        title = "What samplers state, and what they give on problems with a known answer"
        figure.suptitle(title, x=0.01, y=1 - 0.12 / height, ha="left", va="top", fontsize=11)


def _label(row: Row) -> str:
    return row.name.replace("Scheduler", "")


def _background(axis: Any, rows: tuple[Row, ...]) -> None:
    """A line for each sampler, and one between the families."""
    for k in range(len(rows)):
        axis.axhline(k, color="0.93", linewidth=0.8, zorder=0)
    for k in range(1, len(rows)):
        if rows[k].family != rows[k - 1].family:
            axis.axhline(k - 0.5, color=GREY, linewidth=0.8)
    axis.tick_params(axis="y", length=0)


def _draw_orders(axis: Any, rows: tuple[Row, ...]) -> None:
    names = {"ode": "ODE", "strong": "strong", "gradient": "gradient", "weak": "weak (variance)"}
    for k, row in enumerate(rows):
        claim = row.claimed["ode"]
        if claim is not None:
            axis.plot(claim, k, "|", color="black", markersize=10, markeredgewidth=1.6, zorder=2)
        for place, kind in enumerate(KINDS):
            slope = row.measured[kind]
            if slope is not None:
                style = {"color": COLOURS[place], "markersize": 4.5, "zorder": 3, "alpha": 0.9}
                axis.plot(slope.order, k + 0.18 * (place - 1.5), MARKERS[place], **style)
        if row.on_grid is not None:
            axis.plot(row.on_grid.order, k, "x", color=GREY, markersize=5, zorder=3)
    axis.plot([], [], "|", color="black", markersize=10, markeredgewidth=1.6, label="stated, without noise")
    for place, kind in enumerate(KINDS):
        axis.plot([], [], MARKERS[place], color=COLOURS[place], markersize=4.5, label=names[kind])
    axis.plot([], [], "x", color=GREY, markersize=5, label="of states, on its own grid")
    _finish(axis, "order of convergence", 2)


def _draw_excess(axis: Any, rows: tuple[Row, ...]) -> None:
    axis.axvline(0.0, color=GREY, linewidth=0.8, zorder=1)
    _draw_calls(axis, rows, "excess", 100.0)
    axis.set_xscale("symlog", linthresh=1.0)
    axis.set_xticks([-100, -10, -1, 0, 1, 10, 100], ["-100", "-10", "-1", "0", "1", "10", "100"])
    _finish(axis, "samples' standard deviation, % off", 3)


def _draw_gradients(axis: Any, rows: tuple[Row, ...]) -> None:
    _draw_calls(axis, rows, "gradient", 1.0)
    axis.set_xscale("log")
    _finish(axis, "relative error of the gradient", 3)


def _draw_calls(axis: Any, rows: tuple[Row, ...], what: str, scale: float) -> None:
    """A marker for each number of calls, joined by a line, from few to many."""
    for k, row in enumerate(rows):
        found = [getattr(own, what) for own in row.own]
        values = [scale * value for value in found if value is not None]
        axis.plot(values, [k] * len(values), color="0.75", linewidth=1.2, zorder=2)
        for place, value in enumerate(values):
            axis.plot(value, k, MARKERS[place], color=COLOURS[place], markersize=4.5, zorder=3)
    for place, own in enumerate(rows[0].own):
        axis.plot([], [], MARKERS[place], color=COLOURS[place], markersize=4.5, label=f"{own.calls} calls")


def _finish(axis: Any, label: str, columns: int) -> None:
    axis.set_xlabel(label, fontsize=9)
    box = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 4.6}
    axis.legend(**box, ncols=columns, frameon=False, fontsize=7.5, handletextpad=0.2, columnspacing=1.0)
    axis.grid(axis="x", color="0.93")
    axis.set_axisbelow(True)

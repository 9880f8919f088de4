"""Figures of studies, by matplotlib: errors against steps, and work against precision."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .result import Convergence
from .verdict import MARGIN

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "-.", ":")
GREY = "0.35"
SUFFIXES = (".png", ".svg", ".pdf")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sdeadjoint",
}


def draw_orders(results: Sequence[Convergence], path: str | Path) -> None:
    """Draw errors against numbers of steps, on logarithmic axes; the suffix of ``path`` is the format.

    For each result: the errors that the slope is of (filled markers; hollow ones are dropped), the fitted line with the
    band of the slope's interval, and the median (small, dashed). A grey wedge begins at the first kept level: its lower
    edge has the claimed order, its upper edge the least that holds, the claim minus the allowance. For a single result
    the light band is from the 10th to the 90th percentile of the paths.
    """
    claims = sorted({r.verdict.claimed for r in results if np.isfinite(r.verdict.claimed)})
    width, height, below = 6.6, 4.6, 0.5 + 0.19 * (len(results) + len(claims) + 2)
    with _figure(path, width, height + below) as figure:
        axis = figure.add_axes((0.115, below / (height + below), 0.865, (height - 0.4) / (height + below)))
        for k, result in enumerate(results):
            _draw_result(axis, result, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], len(results) == 1)
        for k, order in enumerate(claims):
            _draw_claim(axis, [r for r in results if r.verdict.claimed == order], DASHES[k % len(DASHES)])
        if any(not result.mean for result in results):
            axis.plot([], [], "k--", marker="o", markersize=3, linewidth=0.8, label="medians of the paths")
        _finish(axis, "steps", _error_label(results), _title(results))
        _fit_ordinates(axis, results)
        steps = sorted({n for result in results for n in result.steps})
        axis.set_xticks(steps, [str(n) for n in steps])
        box = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.42 / (height - 0.4))}
        axis.legend(**box, frameon=False, fontsize=8, labelspacing=0.4)


def draw_work_precision(results: Sequence[Convergence], path: str | Path) -> None:
    """Draw errors against network calls per sample and, where they were measured, seconds for all paths."""
    timed = all(np.isfinite(result.seconds).all() for result in results)
    works = ("calls", "seconds") if timed else ("calls",)
    rows = len(results)
    width, height = 4.2 * len(works) + 0.3, 3.6 + 0.2 * rows
    with _figure(path, width, height) as figure:
        from matplotlib.ticker import LogLocator

        axes = figure.subplots(1, len(works), sharey=True, squeeze=False)[0]
        bottom = (0.55 + 0.2 * rows) / height
        figure.subplots_adjust(left=0.7 / width, right=0.985, top=1 - 0.35 / height, bottom=bottom, wspace=0.08)
        for axis, work in zip(axes, works, strict=True):
            for k, result in enumerate(results):
                costs = result.calls if work == "calls" else result.seconds
                style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "markersize": 5}
                axis.loglog(costs, result.error, label=_told(result), **style)
            what = "network calls per sample" if work == "calls" else "seconds for all paths, one run"
            _finish(axis, what, _error_label(results) if work == "calls" else "", "")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.xaxis.set_major_formatter("{x:g}")
        figure.suptitle(_title(results), fontsize=10, x=0.7 / width, ha="left", y=1 - 0.08 / height, va="top")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.6 / width, 0.0), frameon=False, fontsize=8)


def _draw_result(axis: Any, result: Convergence, colour: str, marker: str, is_single: bool) -> None:
    steps, error = np.array(result.steps), np.array(result.error)
    gone = np.isin(steps, [d.steps for d in result.dropped])
    if is_single and not result.mean:
        edges = np.quantile(np.abs(result.errors), [0.1, 0.9], axis=1)
        label = "10th to 90th percentile of the paths"
        axis.fill_between(steps, *edges, color=colour, alpha=0.1, linewidth=0, zorder=1, label=label)
    if result.fit is not None:
        _draw_fit(axis, result, colour)
    label = textwrap.fill(_told(result), 90)
    axis.plot(steps[~gone], error[~gone], marker, color=colour, markersize=6, label=label, zorder=3)
    hollow = {"color": colour, "markersize": 6, "mfc": "white", "zorder": 3}
    axis.plot(steps[gone], error[gone], marker, label="dropped" if gone.any() and is_single else None, **hollow)
    if not result.mean:
        axis.plot(steps, result.median, "--", marker=marker, color=colour, markersize=3, linewidth=0.8)


def _draw_fit(axis: Any, result: Convergence, colour: str) -> None:
    """Draw the fitted line, and the band of its slope's interval where there is one."""
    fit = result.fit
    assert fit is not None
    kept = np.array(fit.steps, dtype=float)
    middle = np.exp(np.log(kept).mean())
    centre = fit.constant * middle**-fit.slope
    axis.plot(kept, fit.constant * kept**-fit.slope, color=colour, linewidth=1.3, zorder=2)
    if np.isfinite(fit.half_width):
        low, high = (centre * (kept / middle) ** -slope for slope in fit.interval)
        axis.fill_between(kept, np.minimum(low, high), np.maximum(low, high), color=colour, alpha=0.3, linewidth=0)


def _draw_claim(axis: Any, results: Sequence[Convergence], dashes: str) -> None:
    """Draw a wedge above these results' errors, over the kept levels: the claimed order and the least that holds."""
    order = results[0].verdict.claimed
    result = max(results, key=lambda r: r.error[0])
    steps = np.array(result.fit.steps if result.fit is not None else result.steps, dtype=float)
    pairs = [(n, size) for r in results for n, size in zip(r.steps, r.error, strict=True) if n in steps]
    above = 1.8 * max(size * (n / steps[0]) ** order for n, size in pairs)
    start = min(above, 3.0 * max(result.error))  # a claim that is far too high would leave the figure
    claimed, least = (start * (steps / steps[0]) ** -slope for slope in (order, order - MARGIN))
    label = f"order {order:g}, as claimed; with the allowance, the wedge, {order - MARGIN:g} holds"
    axis.plot(steps, claimed, dashes, color=GREY, linewidth=1.1, label=label)
    axis.fill_between(steps, claimed, least, color=GREY, alpha=0.18, linewidth=0, zorder=0)


def _told(result: Convergence) -> str:
    """The solver, its order with half the interval and the median's, its claim and the verdict."""
    order = "no order"
    if result.fit is not None:
        half = result.fit.half_width
        order = f"order {result.fit.slope:.2f}" + (f" \N{PLUS-MINUS SIGN} {half:.2f}" if np.isfinite(half) else "")
        order += f" (median {result.median_fit.slope:.2f})" if result.median_fit and not result.mean else ""
    claim = f"claimed {result.verdict.claimed:g} (allowance {MARGIN:g})"
    return f"{result.solver}: {order}, {claim}: {result.verdict.outcome}"


def _finish(axis: Any, xlabel: str, ylabel: str, title: str) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.minorticks_off()
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if title:
        axis.set_title(title, fontsize=10, loc="left")


def _fit_ordinates(axis: Any, results: Sequence[Convergence]) -> None:
    """Set limits by the errors, as a wide band would take all the room, and tick labels that are not crowded."""
    from matplotlib.ticker import LogLocator, NullFormatter

    sizes = [size for r in results for size in (*r.error, *(() if r.mean else r.median)) if size > 0]
    if not sizes:
        return
    low, high = min(sizes) / 2.5, max(sizes) * 4
    axis.set_ylim(low, high)
    axis.yaxis.set_minor_formatter(NullFormatter())
    if high < 300 * low:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")


def _error_label(results: Sequence[Convergence]) -> str:
    labels = {result.error_name for result in results}
    return labels.pop() if len(labels) == 1 else "error"


def _title(results: Sequence[Convergence]) -> str:
    """Name the problem that all results have in common."""
    titles = {result.subject for result in results}
    return titles.pop() if len(titles) == 1 else "several studies"


@contextmanager
def _figure(path: str | Path, width: float, height: float) -> Iterator[Any]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures are drawn by matplotlib; pip install 'sdeadjoint[demo]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        yield figure
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, metadata=dates.get(path.suffix))

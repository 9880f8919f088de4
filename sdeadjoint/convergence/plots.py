"""Pictures of studies, with matplotlib: errors against steps, and work against precision."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .result import Convergence

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
COLUMNS = 3  # of a legend below
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sdeadjoint",
}
GREY = "0.4"
DASHES = ("-", "-.", ":")


def draw_orders(results: Sequence[Convergence], path: str | Path) -> None:
    """Errors against numbers of steps, on logarithmic axes; the suffix of ``path`` (.png, .svg) is the format.

    For each result: what the slope is of (filled markers; hollow ones are dropped), its fitted line with the
    band of the slope's interval, the median (small, dashed), and the claimed order as a grey line beside it. For a
    single result, the light band is from the 10th to the 90th percentile of the paths.
    """
    with _figure(path) as figure:
        axis = figure.add_axes((0.1, 0.13, 0.56, 0.77))
        claims = []
        for k, result in enumerate(results):
            _draw_result(axis, result, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], len(results) == 1)
            claims.append(result.verdict.claimed)
        for k, order in enumerate(sorted({claim for claim in claims if np.isfinite(claim)})):
            _draw_reference(axis, [r for r in results if r.verdict.claimed == order], DASHES[k % len(DASHES)])
        _finish(axis, "steps", "error", results)
        _fit_ordinates(axis, results)
        axis.set_xticks([n for n in results[0].steps], [str(n) for n in results[0].steps])
        axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8, labelspacing=0.7)


def draw_work_precision(results: Sequence[Convergence], path: str | Path) -> None:
    """Errors against network calls per sample, and against seconds for all paths, one line per solver."""
    with _figure(path, width=8.4) as figure:
        from matplotlib.ticker import LogLocator

        axes, rows = figure.subplots(1, 2, sharey=True), -(-len(results) // COLUMNS)
        figure.subplots_adjust(left=0.085, right=0.985, top=0.9, bottom=0.14 + 0.055 * rows, wspace=0.08)
        for axis, work in zip(axes, ("calls", "seconds"), strict=True):
            for k, result in enumerate(results):
                costs = result.calls if work == "calls" else result.seconds
                colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
                axis.loglog(costs, result.error, marker=marker, color=colour, markersize=5, label=result.solver)
            what = "network calls per sample" if work == "calls" else "seconds for all paths"
            _finish(axis, what, "error" if work == "calls" else "", [])
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.xaxis.set_major_formatter("{x:g}")
        figure.suptitle(_title(results), fontsize=10, y=0.98)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=COLUMNS, frameon=False, fontsize=8)


def _draw_result(axis: Any, result: Convergence, colour: str, marker: str, is_single: bool) -> None:
    steps, error = np.array(result.steps), np.array(result.error)
    gone = np.isin(steps, [d.steps for d in result.dropped])
    label = textwrap.fill(result.solver, 34)
    if result.fit is not None:
        fit = result.fit
        is_told = np.isfinite(fit.half_width)
        label += (
            f"\n{result.statistic}: {fit.slope:.2f} \N{PLUS-MINUS SIGN} {f'{fit.half_width:.2f}' if is_told else '?'}"
        )
        kept = np.array(fit.steps, dtype=float)
        middle = np.exp(np.log(kept).mean())
        centre = fit.constant * middle**-fit.slope
        axis.plot(kept, fit.constant * kept**-fit.slope, color=colour, linewidth=1.3, zorder=2)
        low, high = (centre * (kept / middle) ** -slope for slope in (fit.interval if is_told else (fit.slope,) * 2))
        axis.fill_between(kept, np.minimum(low, high), np.maximum(low, high), color=colour, alpha=0.3, linewidth=0)
    if is_single and not result.mean:
        edges = np.quantile(np.abs(result.errors), [0.1, 0.9], axis=1)
        label_band = "10th to 90th percentile"
        axis.fill_between(steps, *edges, color=colour, alpha=0.1, linewidth=0, zorder=1, label=label_band)
    axis.plot(steps[~gone], error[~gone], marker, color=colour, markersize=6, label=label, zorder=3)
    axis.plot(steps[gone], error[gone], marker, color=colour, markersize=6, mfc="white", zorder=3)
    if gone.any() and is_single:
        axis.plot([], [], marker, color=colour, mfc="white", label="dropped")
    if result.mean:
        return
    median = f"median: {result.median_fit.slope:.2f}" if result.median_fit else "median"
    axis.plot(steps, result.median, "--", marker=marker, color=colour, markersize=3, linewidth=0.8, label=median)


def _draw_reference(axis: Any, results: Sequence[Convergence], dashes: str) -> None:
    """A line of these results' claimed order above their errors, over the kept levels."""
    result, order = max(results, key=lambda r: r.error[0]), results[0].verdict.claimed
    steps = np.array(result.fit.steps if result.fit is not None else result.steps, dtype=float)
    start = 1.8 * max(r.error[r.steps.index(int(steps[0]))] for r in results if int(steps[0]) in r.steps)
    line = start * (steps / steps[0]) ** -order
    axis.plot(steps, line, dashes, color=GREY, linewidth=1.1, label=f"order {order:g} (claimed)")


def _finish(axis: Any, xlabel: str, ylabel: str, results: Sequence[Convergence]) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.minorticks_off()
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if results:
        axis.set_title(_title(results), fontsize=10, loc="left")


def _fit_ordinates(axis: Any, results: Sequence[Convergence]) -> None:
    """Limits from the errors, as a wide band would take all the room; tick labels that are not crowded."""
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


def _title(results: Sequence[Convergence]) -> str:
    """What all results have in common."""
    titles = {result.subject for result in results}
    return titles.pop() if len(titles) == 1 else "several studies"


@contextmanager
def _figure(path: str | Path, width: float = 8.0, height: float = 4.4) -> Iterator[Any]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots are drawn by matplotlib; pip install 'sdeadjoint[demo]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        yield figure
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)

"""Figures of a comparison, by matplotlib: errors, cosines and magnitudes, and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .methods import EXACT, OTHER, RECONSTRUCTED, RECORDED, TRUNCATED
from .result import KINDS, Agreement, Comparison, Measurement

# Okabe and Ito's colours, which the colour-blind can tell apart: one for each family, whose members differ by marker.
COLOURS = {EXACT: "#0072B2", RECORDED: "#D55E00", RECONSTRUCTED: "#CC79A7", TRUNCATED: "#009E73", OTHER: "#E69F00"}
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")
SUFFIXES = (".png", ".svg", ".pdf")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "sdeadjoint",
}
FLOOR = 1e-6  # smaller errors are drawn there: round-off, of whatever dtype
ALIKE = 1e-3  # relative differences that no figure shows
COSINES = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5, 0.0, -0.5, -1.0)
SIDES = ("own", "true")
TITLES = {"own": "against the sampler's own", "true": "against that of the exact solution"}
STEPS, CALLS = "steps of the sampler", "network calls, forward and backward"


class Panel(NamedTuple):
    """One pair of axes: which gradient, against which reference, which number of it, against steps or calls."""

    kind: str
    side: str
    number: str
    work: str

    def points(self, rows: Sequence[Measurement]) -> list[tuple[float, float]]:
        """One method's points."""
        found = []
        for row in rows:
            agreement, calls = self._agreement(row), (row.forward_calls or 0) + (row.backward_calls or 0)
            height = None if agreement is None else self._number(agreement)
            if height is not None:
                found.append((float(row.steps if self.work == STEPS else calls), height))
        return found

    def _agreement(self, row: Measurement) -> Agreement | None:
        gradient = row.gradient(self.kind)
        return None if gradient is None else gradient.own if self.side == "own" else gradient.true

    def _number(self, agreement: Agreement) -> float | None:
        error, cosine, ratio = agreement.typical
        return {"relative error": max(error, FLOOR), "cosine": cosine, "magnitude": ratio}[self.number]


def draw_all(comparison: Comparison, out: Path) -> list[str]:
    """Draw every figure in every format into a directory, and return the files' names."""
    names = []
    for stem, draw in (("error", draw_error), ("cosine", draw_cosine), ("memory", draw_memory)):
        own = [stem + suffix for suffix in SUFFIXES]
        draw(comparison, *(out / name for name in own))
        names += own
    return names


def draw_error(comparison: Comparison, *paths: str | Path) -> None:
    """Draw relative errors, both axes logarithmic: a row for each kind of gradient and reference that is known.

    On the left against the steps of the sampler, on the right against the network calls that a gradient takes.
    """
    rows = [
        [Panel(kind, side, "relative error", work) for work in (STEPS, CALLS)] for kind, side in _known(comparison)
    ]
    _draw(comparison, paths, rows)


def draw_cosine(comparison: Comparison, *paths: str | Path) -> None:
    """Draw the cosine of the angle to the reference, and beside it the magnitude relative to the reference's.

    A cosine of 1 is right, 0 is at a right angle, below it is the wrong way. Its axis is linear in the distance
    ``sqrt(2 - 2 cos)`` between the unit vectors, so that 0.99 and 1 are told apart. Magnitudes are logarithmic.
    """
    rows = [
        [Panel(kind, side, number, STEPS) for number in ("cosine", "magnitude")] for kind, side in _known(comparison)
    ]
    _draw(comparison, paths, rows)


def draw_memory(comparison: Comparison, *paths: str | Path) -> None:
    """Draw peak memory, both axes logarithmic, so that proportional growth has slope one."""
    from matplotlib.ticker import LogLocator

    names = {name: _rows(comparison, name) for name in comparison.methods}
    points = {
        name: [(float(row.steps), row.peak_bytes / 2**20) for row in rows if row.peak_bytes is not None]
        for name, rows in names.items()
    }
    groups = _groups(comparison, {name: (own,) for name, own in points.items() if own})
    with _laid_out(paths, comparison, groups, [[None]]) as axes:
        axis = axes[0][0]
        for group in groups:
            axis.loglog(*zip(*points[group.names[0]], strict=True), **group.style)
        for budget in sorted({row.budget_bytes for row in comparison.measurements if row.budget_bytes is not None}):
            axis.axhline(budget / 2**20, color="0.5", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
            text = {"transform": axis.get_yaxis_transform(), "ha": "left", "va": "bottom", "color": "0.4"}
            label = f"budget of Checkpoint(memory=...): {budget / 2**10:.0f} kiB; the step at hand comes on top"
            axis.text(0.01, budget / 2**20, label, **text)
        _steps_axis(axis, comparison.steps)
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_ylabel("peak of tensor memory, MiB")
        axis.set_title("one gradient: sampling and backward pass", loc="left", fontsize=9)


def _draw(comparison: Comparison, paths: Sequence[str | Path], rows: Sequence[Sequence[Panel]]) -> None:
    """Draw rows of panels, with one legend for all."""
    names = {name: _rows(comparison, name) for name in comparison.methods}
    points = {name: tuple(tuple(p.points(own)) for line in rows for p in line) for name, own in names.items()}
    groups = _groups(comparison, {name: own for name, own in points.items() if any(own)})
    with _laid_out(paths, comparison, groups, rows) as grid:
        for line, axes in zip(rows, grid, strict=True):
            first = line[0]
            axes[0].set_title(f"{_shown(first.kind)}, {TITLES[first.side]}", loc="left", fontsize=9, fontweight="bold")
            for panel, axis in zip(line, axes, strict=True):
                for group in groups:
                    found = panel.points(names[group.names[0]])
                    if found:
                        axis.plot(*zip(*found, strict=True), **group.style)
                axis.set_xscale("log")
                FINISH[panel.number](axis)
                _abscissa(axis, panel, comparison)
                axis.set_ylabel(panel.number if panel.number != "magnitude" else "magnitude / the reference's")


class Group(NamedTuple):
    """Methods whose points no figure tells apart, drawn as one curve."""

    names: tuple[str, ...]
    family: str
    style: dict[str, Any]


def _groups(comparison: Comparison, points: dict[str, Any]) -> list[Group]:
    """Methods by family; those of one family with the same points in all panels go together."""
    families = {row.method: row.family for row in comparison.measurements}
    found: list[tuple[list[str], str]] = []
    for name in sorted(points, key=lambda name: list(COLOURS).index(families[name])):
        for names, family in found:
            if family == families[name] and _alike(points[names[0]], points[name]):
                names.append(name)
                break
        else:
            found.append(([name], families[name]))
    seen: dict[str, int] = {}
    groups = []
    for names, family in found:
        k = seen[family] = seen.get(family, -1) + 1
        style = {
            "label": "\n".join(names),
            "color": COLOURS[family],
            "marker": MARKERS[k % len(MARKERS)],
            "linestyle": DASHES[k % len(DASHES)],
            "linewidth": 1.3,
            "markersize": max(9 - 1.5 * k, 3.5),  # the first is seen around those that lie upon it
            "fillstyle": "none",
        }
        groups.append(Group(tuple(names), family, style))
    return groups


def _alike(one: Any, other: Any) -> bool:
    if [len(part) for part in one] != [len(part) for part in other]:
        return False
    a, b = (np.array([pair for part in points for pair in part]) for points in (one, other))
    return bool(np.allclose(a, b, rtol=ALIKE, atol=0))


def _known(comparison: Comparison) -> list[tuple[str, str]]:
    """The kinds of gradients and their references that any method was compared with."""
    found = [gradient for row in comparison.measurements for gradient in row.gradients]
    kinds = [kind for kind in KINDS if kind in comparison.kinds]
    return [
        (kind, side)
        for kind in kinds
        for side in SIDES
        if any(g.kind == kind and (g.own if side == "own" else g.true) is not None for g in found)
    ]


def _finish_error(axis: Any) -> None:
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(numticks=12))
    axis.minorticks_off()
    low, high = axis.get_ylim()
    if low <= FLOOR:
        axis.axhspan(FLOOR / 10, FLOOR * 2.5, color="0.93", zorder=0, linewidth=0)
        text = {"transform": axis.get_yaxis_transform(), "ha": "center", "color": "0.4"}
        axis.text(0.65, FLOOR * 4, "round-off, $10^{-6}$ or less", **text)
        axis.set_ylim(bottom=FLOOR / 2.5)
    if low < 1 < high:
        axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)


def _finish_cosine(axis: Any) -> None:
    axis.set_yscale("function", functions=(_distance, _cosine))
    axis.set_ylim(-1.0, 1.006)
    axis.set_yticks(list(COSINES), [f"{tick:g}" for tick in COSINES])
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)


def _finish_magnitude(axis: Any) -> None:
    axis.set_yscale("log")
    axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.5), max(high, 2.0))


FINISH: dict[str, Callable[[Any], None]] = {
    "relative error": _finish_error,
    "cosine": _finish_cosine,
    "magnitude": _finish_magnitude,
}


def _distance(cosine: Any) -> Any:
    """Minus the distance of unit vectors; continued beyond 1, where there is room for markers."""
    return -np.sign(1 - cosine) * np.sqrt(np.abs(2 - 2 * cosine))


def _cosine(distance: Any) -> Any:
    """The inverse of ``_distance``."""
    return 1 + np.sign(distance) * distance**2 / 2


def _rows(comparison: Comparison, method: str) -> list[Measurement]:
    return sorted((row for row in comparison.measurements if row.method == method), key=lambda row: row.steps)


def _shown(kind: str) -> str:
    return "gradient in $x_T$" if kind == "x_T" else f"gradient in the {kind}"


def _abscissa(axis: Any, panel: Panel, comparison: Comparison) -> None:
    if panel.work == STEPS:
        _steps_axis(axis, comparison.steps)
        return
    from matplotlib.ticker import LogLocator, NullLocator

    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(CALLS)
    axis.grid(color="0.9")


def _steps_axis(axis: Any, steps: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xticks(list(steps), [str(n) for n in steps])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(STEPS)
    axis.grid(color="0.9")


@contextmanager
def _laid_out(
    paths: Sequence[str | Path], comparison: Comparison, groups: Sequence[Group], rows: Sequence[Sequence[object]]
) -> Iterator[Any]:
    """Make axes in rows, under the problem's name and above the methods in columns by family."""
    from matplotlib.lines import Line2D

    families = list(dict.fromkeys(group.family for group in groups))
    lines = max((sum(len(g.names) for g in groups if g.family == family) for family in families), default=0) + 1
    below, above = 0.75 + 0.17 * lines, 0.75
    width = max(4.3 * len(rows[0]), 2.4 * len(families), 6.6)
    height = below + above + (2.0 if len(rows) > 1 else 3.4) * len(rows) + 0.6 * (len(rows) - 1)
    layout = {
        "left": 0.75 / width,
        "right": 1 - 0.15 / width,
        "top": 1 - above / height,
        "bottom": below / height,
        "hspace": 0.34,
        "wspace": 0.22,
    }
    with _figure(paths, width, height) as figure:
        yield figure.subplots(len(rows), len(rows[0]), squeeze=False, gridspec_kw=layout)
        for k, family in enumerate(families):
            legend = figure.legend(
                handles=[Line2D([], [], **group.style) for group in groups if group.family == family],
                title=family,
                alignment="left",
                frameon=False,
                fontsize=7.5,
                labelspacing=0.35,
                loc="upper left",
                bbox_to_anchor=(0.05 / width + k / len(families), (below - 0.45) / height),
            )
            legend.get_title().set(color=COLOURS[family], fontweight="bold", fontsize=8)
        figure.suptitle(_problem(comparison), fontsize=9, x=0.1 / width, ha="left", y=1 - 0.08 / height, va="top")


def _problem(comparison: Comparison) -> str:
    """The problem and the sampler, a line each."""
    settings = comparison.settings
    samples, *shape = settings["shape"]
    what = f"{settings['solver']}, {samples} samples of shape {tuple(shape)}, {settings['dtype']}"
    return f"{settings.get('problem', settings['denoiser'])}\n{what}; truth: {comparison.truth}"


@contextmanager
def _figure(paths: Sequence[str | Path], width: float, height: float) -> Iterator[Any]:
    """A figure in inches, written to all paths in the end."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the figures need matplotlib: pip install 'sdeadjoint[demo]'") from error

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150)
        yield figure
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        for path in paths:
            figure.savefig(path, metadata=dates.get(Path(path).suffix))

"""The demo's pictures, with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from .descent import REACHED, Descent
from .faces.morph import Morphs
from .sheet import Sheet

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^")
DPI = 150
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}


def draw_sheet(sheet: Sheet, path: Path) -> None:
    """Rows of ten digits below one another: the ODE's, then the SDE's from the same x_T."""
    rows = len(sheet.ode) // 10
    titles = ("probability-flow ODE, DPM-Solver++(2M)", "diffusion SDE, SDE-DPM-Solver++(2M), from the same $x_T$")
    layout = {"wspace": 0.12, "hspace": 0.12, "top": 0.88, "bottom": 0.02, "left": 0.02, "right": 0.98}
    with _figure(path, 5.6, 1.04 * rows + 0.9) as figure:
        for half, images, title in zip(figure.subfigures(2, 1), (sheet.ode, sheet.sde), titles, strict=True):
            half.suptitle(title, fontsize=9, y=0.98)
            axes = half.subplots(rows, 10, squeeze=False, gridspec_kw=layout)
            for axis, image in zip(axes.flat, images, strict=True):
                _show(axis, image)


def draw_descents(descents: Mapping[str, Descent], path: Path) -> None:
    """Side by side for each descent: before, after, and the loss curves."""
    with _figure(path, 11.0, 5.0) as figure:
        for part, (title, descent) in zip(figure.subfigures(1, len(descents)), descents.items(), strict=True):
            _draw_descent(part, title, descent)


def _draw_descent(part: Any, title: str, descent: Descent) -> None:
    from matplotlib.ticker import MaxNLocator

    pairs = len(descent.start)
    part.suptitle(title.replace("x_T", "$x_T$"), fontsize=11, y=0.98)
    grid = part.add_gridspec(2, 1, height_ratios=(1.0, 0.95), top=0.875, bottom=0.1, left=0.13, right=0.97, hspace=0.22)
    images = grid[0].subgridspec(2, pairs, wspace=0.08, hspace=0.08)
    for column in range(pairs):
        colour = COLOURS[column % len(COLOURS)]
        for row, (name, samples) in enumerate((("before", descent.before), ("after", descent.after))):
            axis = part.add_subplot(images[row, column])
            _show(axis, samples[column])
            if column == 0:
                axis.set_ylabel(name)
            if row == 0:
                wish = f"{descent.start[column]} \N{RIGHTWARDS ARROW} {descent.wish[column]}"
                axis.set_title(wish, color=colour, fontsize=11, fontweight="bold", pad=4)
    axis = part.add_subplot(grid[1])
    for column, curve in enumerate(descent.losses):
        colour = COLOURS[column % len(COLOURS)]
        axis.semilogy(curve, color=colour, linewidth=1.5)
        axis.semilogy(len(curve) - 1, curve[-1], "o", color=colour, markersize=5)
    axis.axhspan(1e-6, 1 - REACHED, color="0.92", zorder=0, linewidth=0)
    lowest = min(curve[-1] for curve in descent.losses)
    axis.set_ylim(lowest / 20, 50)  # leaves room for the text below all curves
    axis.text(0.99, 0.03, f"reached: p(wish) > {REACHED:g}", transform=axis.transAxes, ha="right", color="0.4")
    axis.minorticks_off()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("iteration")
    axis.set_ylabel("loss, $-\\log\\,p$(wish)")


def draw_morphs(morphs: Morphs, path: Path) -> None:
    """A line for each pair: face a, the middle latent's image, the morph, face b; beside them the descents."""
    pairs = len(morphs.pairs)
    columns = {
        "face a": morphs.a,
        "latents half-way": morphs.middle,
        "latent found": morphs.morph,
        "face b": morphs.b,
    }
    likenesses = {"latents half-way": morphs.before, "latent found": morphs.after}
    height = 1.45 * pairs + 0.5
    with _figure(path, 8.6, height) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.68, 1.0))
        top, bottom = 1 - 0.3 / height, 0.25 / height
        layout = {"wspace": 0.05, "hspace": 0.16, "top": top, "bottom": bottom, "left": 0.02, "right": 0.99}
        axes = left.subplots(pairs, len(columns), squeeze=False, gridspec_kw=layout)
        for column, (name, images) in zip(axes.T, columns.items(), strict=True):
            column[0].set_title(name, fontsize=10, pad=5)
            for n, axis in enumerate(column):
                _show(axis, images[n], cmap="gray", interpolation="bicubic")
                if name in likenesses:
                    a, b = likenesses[name].a[n], likenesses[name].b[n]
                    axis.set_xlabel(f"to a {a:.2f}, to b {b:.2f}", fontsize=8, labelpad=2)
        _draw_distances(right, morphs)


def _draw_distances(part: Any, morphs: Morphs) -> None:
    from matplotlib.ticker import MaxNLocator

    axis = part.add_axes((0.19, 0.15, 0.76, 0.78))
    for pair, curve, colour in zip(morphs.pairs, morphs.losses, COLOURS, strict=False):
        axis.plot(curve, color=colour, linewidth=1.5, label=f"faces {pair[0]} and {pair[1]}")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("iteration")
    axis.set_ylabel("distance to the farther of a and b")
    axis.legend(frameon=False, loc="lower left")


def draw_memory(peaks: Mapping[str, Sequence[int]], steps: Sequence[int], path: Path) -> None:
    """Peak memory against the number of steps, both logarithmic, so that proportional growth has slope one."""
    from matplotlib.ticker import LogLocator

    with _figure(path, 6.4, 4.0) as figure:
        axis = figure.add_axes((0.12, 0.14, 0.6, 0.74))
        for (name, values), colour, marker in zip(peaks.items(), COLOURS, MARKERS, strict=False):
            megabytes = [value / 2**20 for value in values]
            axis.loglog(steps, megabytes, color=colour, marker=marker, linewidth=1.5)
            end = (steps[-1], megabytes[-1])
            axis.annotate(name, end, (8, 0), textcoords="offset points", va="center", color=colour)
        axis.set_xticks(list(steps), [str(n) for n in steps])
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.set_xlabel("steps of the sampler")
        axis.set_ylabel("peak of tensor memory, MiB")
        axis.grid(color="0.9")
        figure.suptitle("One gradient through the SDE with replayed noise", fontsize=11, x=0.42)


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure in inches, written to ``path`` in the end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        yield figure
        figure.savefig(path)


def _show(axis: Any, image: Tensor, cmap: str = "gray_r", interpolation: str = "nearest") -> None:
    axis.imshow(image[0].numpy(), cmap=cmap, vmin=-1, vmax=1, interpolation=interpolation)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)

"""What the examples write: a table on the terminal, pictures in a directory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False}
DPI = 150


def main(run: Callable[[Path], object], description: str | None) -> None:
    """``--out DIR``, then ``run(DIR)`` on one thread: sums then have one order on any machine."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the pictures go")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    run(out)
    print(f"Pictures are in {out}")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    Console(width=140).print(made)


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in inches, written to ``path`` in the end."""
    with rc_context(STYLE):
        made = Figure(figsize=(width, height), dpi=DPI)
        yield made
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path)


def show(axis: Any, image: Tensor) -> None:
    """A grey image (1, height, width) in [-1, 1], ink dark on paper."""
    axis.imshow(image[0].detach().numpy(), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)

"""What was measured of morphs, as a table and a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..output import COLOURS, figure, show, table
from .look_alikes import LookAlikes

EVERY = 4  # pairs to a line of the picture


@dataclass(frozen=True)
class Morphs:
    """Of one method, for n pairs: ``images`` (n, 1, 8, 8), ``losses`` (n,), ``accepted`` by either recogniser (2, n).

    ``peak``: bytes that one gradient takes; ``errors``: by tensor, the gradient's relative error and its cosine.
    """

    images: Tensor
    losses: Tensor
    accepted: Tensor
    calls: int
    seconds: float
    peak: int = 0
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def rates(self) -> tuple[float, float, float]:
        """MMPMR of either recogniser, and of both at once."""
        first, second = self.accepted.double().mean(1).tolist()
        return first, second, float(self.accepted.all(0).double().mean())

    @property
    def cells(self) -> list[str]:
        rates = [f"{rate:.0%}" for rate in self.rates]
        costs = [str(self.calls), f"{self.seconds:.1f}", f"{self.peak / 2**20:.1f}" if self.peak else ""]
        errors = [f"{x:.2g}" for tensor in ("x_T", "noise") for x in self.errors.get(tensor, ())]
        return [*rates, f"{self.losses.mean():.2f}", *costs, *errors]


@dataclass(frozen=True)
class Result:
    """``rows`` by sampler and method; ``direct``: by sampler, the bytes that plain backpropagation takes."""

    pairs: LookAlikes
    rows: dict[tuple[str, str], Morphs]
    direct: dict[str, int]

    def report(self, title: str) -> None:
        for judge in self.pairs.judges:
            print(
                f"{judge.name} recogniser: threshold {judge.threshold:.3f}, which {judge.false_matches} of "
                f"{judge.impostors} pairs of different digits pass; true-match rate {judge.true_match_rate:.1%}"
            )
        first, second = (judge.name for judge in self.pairs.judges)
        costs, errors = (
            ["loss", "calls", "seconds", "MiB"],
            ["x_T: error", "cosine", "noise: error", "cosine"],
        )
        rows = [[f"{sampler}, {method}", *row.cells] for (sampler, method), row in self.rows.items()]
        table(title, ["MMPMR:", first, second, "both", *costs, *errors], rows)
        peaks = ", ".join(f"{peak / 2**20:.1f} MiB ({sampler})" for sampler, peak in self.direct.items())
        print(f"Plain backpropagation, Direct(), gives the exact gradient in {peaks}.")

    def draw(self, path: Path) -> None:
        """A line for each pair; a, b, and every method's morph between them, with a dot for each recogniser."""
        morphs = {key: row.images for key, row in self.rows.items()}
        columns = {("a", ""): self.pairs.a, **morphs, ("b", ""): self.pairs.b}
        shown = range(0, len(self.pairs.a), EVERY)
        with figure(path, width=1.0 * len(columns) + 0.3, height=1.0 + 1.1 * len(shown)) as made:
            axes = made.subplots(len(shown), len(columns))
            for line, pair in zip(axes, shown, strict=True):
                for axis, (key, images) in zip(line, columns.items(), strict=True):
                    show(axis, images[pair])
                    for place, deceived in enumerate(
                        self.rows[key].accepted[:, pair].tolist() if key in morphs else []
                    ):
                        dot = {"mec": COLOURS[2], "mfc": COLOURS[2] if deceived else "none", "clip_on": False}
                        axis.plot(0.42 + 0.16 * place, -0.1, "o", ms=5, transform=axis.transAxes, **dot)
            for axis, (sampler, method) in zip(axes[0], columns, strict=True):
                words = method.replace("Adjoint", "Adjoint ").replace(", ", " ").split(" ")
                axis.set_title("\n".join([sampler, *words]), fontsize=9)
            made.tight_layout(h_pad=0.4, w_pad=0.4)

"""Statistical tests of Brownian increments and space-time Levy areas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats

from ..noise import Noise
from .contract import Case, require

Array = NDArray[np.float64]

CLOCKS = ((0.3, 0.7, 0.9, 1.0, 1.3, 1.3001, 5.0, 17.0), (-17.0, -5.0, -4.0, -0.9, -0.1, -0.001, 0.0))
LONG = tuple(n * (n + 10) / 100 for n in range(25))
LAGS = (1, 2, 16)


@dataclass(frozen=True)
class Sample(Case):
    """Many entries of one state: ``numbers`` draws of dB and H for every step.

    Args:
        clock: the noise clock's nodes.
        numbers: of entries, in two samples of a batch.
    """

    clock: tuple[float, ...]
    numbers: int = 2**14

    def standardised(self, noise: Noise) -> tuple[list[str], Array]:
        """``dB / sqrt(h)`` and ``H / sqrt(h/12)`` by name, (2 steps, numbers): standard normals, says the law."""
        like = torch.zeros(2, self.numbers // 2, dtype=torch.float64, device="cpu")
        bound = noise.bind(torch.tensor(self.clock, dtype=torch.float64, device="cpu"), like, True)
        increments, areas = [], []
        for n, (nu0, nu1) in enumerate(pairwise(self.clock)):
            drawn, h = bound.increment(n), nu1 - nu0
            assert drawn.H is not None
            increments.append((drawn.dB.detach() / math.sqrt(h)).reshape(-1).numpy())
            areas.append((drawn.H.detach() / math.sqrt(h / 12)).reshape(-1).numpy())
        names = [f"{part} of step {n}" for part in ("dB", "H") for n in range(len(increments))]
        return names, np.stack([*increments, *areas])

    def code(self, name: str) -> str:
        made = f"{name}(0)" if name == "make" else name
        return "\n".join(
            [
                "from sdeadjoint.testing.laws import Sample",
                f"names, rows = {self!r}.standardised({made})",
                "for name, row in zip(names, rows): print(name, row.mean(), row.var())",
            ]
        )


SAMPLES = (*(Sample(clock) for clock in CLOCKS), Sample(LONG, 2**11))
"""Two short clocks with many entries; a long one with few, for what comes back only after many steps."""


def check(noise: Noise, make: Callable[[int], Noise] | None, case: Sample, alarm: float) -> None:
    """All tests of one clock, each at the level ``alarm`` over their number."""
    names, rows = case.standardised(noise)
    tests = list(_tests(names, rows))
    if make is not None:
        other = case.standardised(make(1))[1]
        tests += list(_between(names, rows, other, "of seeds 0 and 1"))
    level = alarm / len(tests)
    p, sentence = min(tests)
    require(p >= level, f"{sentence}: probability {p:.1e} under the law, below {level:.1e} (one of {len(tests)} tests)")


def _tests(names: list[str], rows: Array) -> Iterator[tuple[float, str]]:
    """(p-value, what was found) of each test."""
    steps, count = len(rows) // 2, rows.shape[1]
    for part, block in (("dB", rows[:steps]), ("H", rows[steps:])):
        yield _variance(f"{part} of all steps", block.reshape(-1))
    for name, row in zip(names, rows, strict=True):
        yield _variance(name, row)
        yield _two_sided(float(row.mean()) * math.sqrt(count)), f"the mean of {name} is {row.mean():.4f} sd"
        yield float(stats.kstest(row, "norm").pvalue), f"{name} is not normal (Kolmogorov-Smirnov)"
        for lag in (*LAGS, count // 2):
            r = float(row[lag:] @ row[:-lag]) / (count - lag)
            yield _two_sided(r * math.sqrt(count - lag)), f"entries of {name} that are {lag} apart correlate by {r:.4f}"
    for i in range(len(rows)):
        for j in range(i):
            yield _correlation(names[i], names[j], rows[i], rows[j])


def _between(names: list[str], rows: Array, other: Array, which: str) -> Iterator[tuple[float, str]]:
    for name, a, b in zip(names, rows, other, strict=True):
        p, sentence = _correlation(name, name, a, b)
        yield p, f"{sentence} {which}"


def _variance(name: str, values: Array) -> tuple[float, str]:
    total, count = float(values @ values), len(values)
    p = 2 * min(special.chdtrc(count, total), special.chdtr(count, total))
    return float(min(p, 1.0)), f"the variance of {name} is {total / count:.4f} of what the law says"


def _correlation(name: str, other: str, a: Array, b: Array) -> tuple[float, str]:
    r = float(a @ b) / len(a)
    return _two_sided(r * math.sqrt(len(a))), f"{name} and {other} correlate by {r:.4f}"


def _two_sided(z: float) -> float:
    return float(2 * special.ndtr(-abs(z)))

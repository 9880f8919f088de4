"""What the demo prints and what it keeps as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from .descent import Descent
from .gradients import Comparison
from .scene import BANDWIDTH, LAST_LAMBDA, SCHEDULE, STEPS
from .sheet import Sheet

PACKAGES = ("sdeadjoint", "torch", "torchsde", "numpy", "scikit-learn")
QUANTITIES = ("x_T", "label", "noise", "Levy area")


def settings(seed: int) -> dict[str, Any]:
    """All that the numbers depend on."""
    return {
        "seed": seed,
        "schedule": repr(SCHEDULE),
        "bandwidth": BANDWIDTH,
        "steps": STEPS,
        "last_lambda": LAST_LAMBDA,
        "dtype": "float64",
    }


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def heading(seed: int, accuracy: float) -> Iterator[str]:
    yield f"sdeadjoint {version('sdeadjoint')}: exact gradients through diffusion samplers, on images of digits"
    yield ""
    yield f"model        scikit-learn's 1797 digits as a Gaussian mixture (bandwidth {BANDWIDTH}) with its exact score"
    yield f"samplers     {SCHEDULE!r}, {STEPS} steps uniform in log-SNR, float64, seed {seed}"
    yield f"classifier   a small perceptron; {accuracy:.1%} of 360 held-out images right"


def of_sheet(sheet: Sheet) -> Iterator[str]:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in sheet.as_asked.items())
    yield f"samples      {len(sheet.ode)} by each; classified as the class asked for: {shares}"
    yield f"replay       the SDE's samples again from the same seed: {_equal(sheet.replayed)}"


def of_gradients(rows: Sequence[Comparison]) -> Iterator[str]:
    yield ""
    yield "Gradient of the classifier's loss: relative error against plain autograd (Direct)"
    columns = "".join(f"{name:>10}" for name in QUANTITIES)
    yield f"  {'sampler':26}{'adjoint':26}{'samples':>14}{columns}"
    for row in rows:
        errors = "".join(f"{row.errors[name]:10.1e}" if name in row.errors else f"{'-':>10}" for name in QUANTITIES)
        yield f"  {row.sampler:26}{row.adjoint:26}{_equal(row.same_samples):>14}{errors}"


def of_descents(descents: Mapping[str, Descent]) -> Iterator[str]:
    for title, descent in descents.items():
        yield ""
        yield title
        yield f"  {'digit':>8}{'wish':>6}{'iterations':>12}{'p(wish), classifier':>21}{'p(wish), exact model':>22}"
        columns = (descent.start, descent.wish, descent.iterations, descent.probability, descent.exact_probability)
        for start, wish, iterations, p, exact in zip(*columns, strict=True):
            yield f"  {start:>8}{wish:>6}{iterations:>12}{p:>21.4f}{exact:>22.4f}"


def of_memory(peaks: Mapping[str, Sequence[int]], steps: Sequence[int]) -> Iterator[str]:
    yield ""
    yield "Peak tensor memory of one gradient through the SDE, MiB, by number of steps"
    yield f"  {'adjoint':26}" + "".join(f"{n:>9}" for n in steps)
    for name, values in peaks.items():
        yield f"  {name:26}" + "".join(f"{value / 2**20:>9.2f}" for value in values)


def _equal(same: bool) -> str:
    return "bitwise equal" if same else "DIFFERENT"

"""What the demo prints and what it keeps as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from .descent import Descent
from .faces import morph
from .faces.morph import Likeness, Morphs
from .faces.score import Errors
from .gradients import Comparison
from .scene import BANDWIDTH, LAST_LAMBDA, SCHEDULE, STEPS
from .sheet import Sheet

PACKAGES = ("sdeadjoint", "torch", "torchsde", "numpy", "scikit-learn", "scikit-image")
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
        "faces": {"schedule": repr(morph.SCHEDULE), "steps": morph.STEPS, "rate": morph.RATE, "dtype": "float32"},
    }


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def heading(seed: int, accuracy: float) -> Iterator[str]:
    yield f"sdeadjoint {version('sdeadjoint')}: exact gradients through diffusion samplers, on digits and faces"
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


def of_network(weights: int, rows: Sequence[Errors]) -> Iterator[str]:
    yield ""
    yield f"Faces: a U-Net of {weights} weights, trained on 90 faces of 24 x 24 pixels; 10 more are held out"
    yield "The score of the law that it was trained on is known. Rms errors of denoised images, pixels in [-1, 1]:"
    yield f"  {'':>11}{'relative error':>17}{'training images':>26}{'held-out images':>26}"
    yield f"  {'sigma/alpha':>11}{'of the score':>17}" + f"{'network':>15}{'exact':>11}" * 2
    for row in rows:
        numbers = "".join(f"{network:>15.3f}{exact:>11.3f}" for network, exact in (row.seen, row.unseen))
        yield f"  {row.level:>11g}{row.score:>17.3f}{numbers}"
    yield "  Where noise is low the exact score knows the training images and nothing else; the network generalises."


def of_morphs(morphs: Morphs) -> Iterator[str]:
    yield ""
    yield f"Morphs: distance (1 - cosine, eigenfaces) to face a and to face b; DDIM, {morph.STEPS} steps, float32"
    yield f"  {'faces':>10}{'half-way: to a':>18}{'to b':>8}{'found: to a':>16}{'to b':>8}"
    columns = (morphs.pairs, morphs.before.a, morphs.before.b, morphs.after.a, morphs.after.b)
    for (a, b), *distances in zip(*columns, strict=True):
        cells = "".join(f"{d:>{w}.2f}" for d, w in zip(distances, (18, 8, 16, 8), strict=True))
        yield f"  {f'{a}, {b}':>10}{cells}"
    yield f"  a and b are the nearest of 100 faces: {_share(morphs.before)} half-way, {_share(morphs.after)} found"
    yield (
        f"  encoding and sampling changes a pixel by {morphs.encoding_error:.1e} (rms); "
        f"the gradient is plain autograd's to {morphs.gradient_error:.1e}"
    )


def _share(likeness: Likeness) -> str:
    return f"{sum(likeness.nearest)} of {len(likeness.nearest)}"


def _equal(same: bool) -> str:
    return "bitwise equal" if same else "DIFFERENT"

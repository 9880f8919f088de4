"""The library's main job on real images: sample, differentiate, check, descend; in about a minute on two cores.

The first model is exact and needs no training: scikit-learn's digits as a Gaussian mixture. The second is a small
network, trained on scikit-image's faces, two of which are morphed. ``run`` prints what it finds and leaves pictures and
all numbers in a directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..command_line import one_thread
from . import descent, footprint, gradients, pictures, report, sheet
from .classifier import accuracy
from .faces import images, morph, score, unet
from .faces.eigenfaces import Eigenfaces
from .scene import Scene

__all__ = ["Effort", "run"]

NEEDED = {"scikit-learn": "sklearn", "scikit-image": "skimage", "matplotlib": "matplotlib"}
ON_LATENT = "ODE: descent on x_T"
ON_NOISE = "SDE: descent on the injected noise, x_T fixed"
TOLERANCE = 1e-12  # relative, float64: round-off of 30 steps is some 1e-15
FACES_TOLERANCE = 1e-4  # float32: round-off of 15 steps of a network is some 1e-6


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Rows of the sheet, start and wish pairs (at most 6), the step counts of the memory plot, pairs of faces (at most 3)
    and iterations of their descent.
    """

    rows: int = 3
    pairs: int = 6
    memory_steps: tuple[int, ...] = (10, 20, 50, 100)
    morphs: int = 3
    morph_iterations: int = 20


def run(out: Path, seed: int = 0, *, effort: Effort = Effort()) -> dict[str, Any]:
    """Do it all and write ``sheet.png``, ``demo.png``, ``memory.png``, ``faces.png`` and ``demo.json`` into ``out``.

    Returns the contents of ``demo.json``: every number that is printed, with the versions and the seed, and equal for
    equal ones. Errors: ``ImportError`` without scikit-learn, scikit-image or matplotlib; ``RuntimeError`` for a
    gradient that is not plain autograd's, and for a descent that does not reach its digit.
    """
    check_extras()
    out.mkdir(parents=True, exist_ok=True)
    with one_thread():
        numbers = _run(out, seed, effort)
    (out / "demo.json").write_text(json.dumps(numbers, indent=1) + "\n")
    pngs = "sheet.png (samples), demo.png (before, after, loss), memory.png, faces.png (morphs)"
    _print(("", f"Written to {out}: {pngs}, demo.json"))
    return numbers


def _run(out: Path, seed: int, effort: Effort) -> dict[str, Any]:
    """The numbers, printed as they come; the pictures are written."""
    scene = Scene.create(seed)
    share = accuracy(scene.classifier, scene.problem)
    _print(report.heading(seed, share))
    digits = sheet.generate(scene, effort.rows)
    _print(report.of_sheet(digits))
    comparisons = gradients.compare(scene)
    _print(report.of_gradients(comparisons))
    _check(comparisons)
    descents = {ON_LATENT: descent.on_latent(scene, effort.pairs), ON_NOISE: descent.on_noise(scene, effort.pairs)}
    _print(report.of_descents(descents))
    peaks = footprint.peaks(scene, effort.memory_steps)
    _print(report.of_memory(peaks, effort.memory_steps))
    pictures.draw_sheet(digits, out / "sheet.png")
    pictures.draw_descents(descents, out / "demo.png")
    pictures.draw_memory(peaks, effort.memory_steps, out / "memory.png")
    return {
        "versions": report.versions(),
        "settings": report.settings(seed) | asdict(effort),
        "classifier_accuracy": share,
        "sheet": digits.as_json(),
        "gradients": [comparison.as_json() for comparison in comparisons],
        "descents": {title: result.as_json() for title, result in descents.items()},
        "peak_memory_bytes": peaks,
        **_faces(out, seed, effort),
    }


def _faces(out: Path, seed: int, effort: Effort) -> dict[str, Any]:
    """The trained network's part of the numbers, and its picture."""
    denoiser = unet.load()
    errors = score.errors(denoiser, images.law(), seed)
    _print(report.of_network(sum(weight.numel() for weight in denoiser.parameters()), errors))
    morphs = morph.morphs(denoiser, Eigenfaces.of(images.seen()), effort.morphs, effort.morph_iterations)
    _print(report.of_morphs(morphs))
    _check_morphs(morphs.gradient_error)
    pictures.draw_morphs(morphs, out / "faces.png")
    return {"denoising": [row.as_json() for row in errors], "morphs": morphs.as_json()}


def check_extras() -> None:
    """Raise ``ImportError`` without scikit-learn, scikit-image or matplotlib."""
    missing = [name for name, module in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"the demo needs {', '.join(missing)}: pip install 'sdeadjoint[demo]'")


def _check(comparisons: Iterable[gradients.Comparison]) -> None:
    for row in comparisons:
        worst = max(row.errors.values())
        if not (row.same_samples and worst <= TOLERANCE):
            raise RuntimeError(f"{row.sampler} under {row.adjoint} is not plain autograd's: relative error {worst:.1e}")


def _check_morphs(error: float) -> None:
    if not error <= FACES_TOLERANCE:
        raise RuntimeError(
            f"the gradient through the faces' sampler is not plain autograd's: relative error {error:.1e}"
        )


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)

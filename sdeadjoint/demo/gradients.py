"""Gradients of the classifier's loss through the samplers, each against plain autograd."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint, Direct
from ..noise import BrownianPath, FixedNoise
from ..samplers import NamedSampler
from .scene import ODE, SDE, SHARK, Scene

SAMPLERS = {"ODE, DPM-Solver++(2M)": ODE, "SDE, SDE-DPM-Solver++(2M)": SDE, "SDE, ShARK": SHARK}
ADJOINTS = {"Checkpoint()": Checkpoint(), "Checkpoint(snapshots=8)": Checkpoint(snapshots=8)}
BATCH = 4


@dataclass(frozen=True)
class Comparison:
    """One sampler under one adjoint against ``Direct()``: relative errors (Euclidean norm) by quantity."""

    sampler: str
    adjoint: str
    same_samples: bool
    errors: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(scene: Scene) -> list[Comparison]:
    """Every sampler under every adjoint."""
    rows = []
    for name, sampler in SAMPLERS.items():
        x, exact = _gradients(scene, sampler, Direct())
        for adjoint_name, adjoint in ADJOINTS.items():
            x_again, grads = _gradients(scene, sampler, adjoint)
            errors = {key: float((grads[key] - exact[key]).norm() / exact[key].norm()) for key in exact}
            rows.append(Comparison(name, adjoint_name, torch.equal(x, x_again), errors))
    return rows


def _gradients(scene: Scene, sampler: NamedSampler, adjoint: Adjoint) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples, and the gradients of their loss in x_T, the label's logits, and the noise where there is any."""
    leaves = {"x_T": scene.latents(BATCH, offset=1), "label": scene.normals(BATCH, 10, offset=2)}
    frame, solver = sampler
    if frame.eta > 0:
        path, x_T = BrownianPath(scene.seed), leaves["x_T"]
        leaves["noise"] = path.increments(frame, scene.grid(), like=x_T)
        if solver.claims.levy != "none":
            leaves["Levy area"] = path.levy_areas(frame, scene.grid(), like=x_T)
    for leaf in leaves.values():
        leaf.requires_grad_()
    noise = FixedNoise(leaves["noise"], leaves.get("Levy area")) if "noise" in leaves else None
    x = scene.sample(sampler, leaves["x_T"], leaves["label"], noise, adjoint=adjoint)
    labels = torch.arange(BATCH)
    grads = torch.autograd.grad(scene.losses(x, labels).sum(), list(leaves.values()))
    return x.detach(), dict(zip(leaves, grads, strict=True))

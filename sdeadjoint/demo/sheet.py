"""A sheet of digits from noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..noise import BrownianPath
from .classifier import share
from .scene import ODE, SDE, Scene

CERTAIN = 20.0  # the logit of the class asked for, the others being 0: any other class is out of the question


@dataclass(frozen=True)
class Sheet:
    """``ode`` and ``sde``: samples (10 rows, 1, 8, 8) from the same x_T, column by column the digits 0 to 9."""

    ode: Tensor
    sde: Tensor
    replayed: bool
    as_asked: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"samples": len(self.ode), "replayed_bitwise": self.replayed, "classified_as_asked": self.as_asked}


def generate(scene: Scene, rows: int) -> Sheet:
    """``rows`` samples of each digit by either sampler; the SDE's twice, with the noise drawn and then replayed."""
    digits = torch.arange(10).repeat(rows)
    label = CERTAIN * torch.nn.functional.one_hot(digits, 10).double()
    x_T = scene.latents(len(digits))
    ode = scene.sample(ODE, x_T, label)
    sde, again = (scene.sample(SDE, x_T, label, BrownianPath(scene.seed)) for _ in range(2))
    as_asked = {name: share(scene.classifier, x, digits) for name, x in (("ODE", ode), ("SDE", sde))}
    return Sheet(ode, sde, torch.equal(sde, again), as_asked)

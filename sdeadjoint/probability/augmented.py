"""The probability-flow ODE together with the logarithm of the volume that it carries along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import nests
from ..conditioning import Scheduled
from ..diffusion.equation import Diffusion
from ..field import Field
from .divergence import Divergence


class Flow(nn.Module):
    """``d(y, l)/ds = (F, tr dF/dy)``: a drift for nests ``{"y": (batch, ...), "volume": (batch, columns)}``.

    The state is float64; the network gets ``x = w y`` in a dtype of its own.
    """

    def __init__(self, equation: Diffusion, divergence: Divergence, dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser = equation.denoiser
        self.frame = equation.frame
        self.divergence = divergence
        self.dtype = dtype
        self._nodes = dict(zip(equation.clocks, zip(equation.times, equation.weights, strict=True), strict=True))

    def forward(
        self, s: Tensor, state: Mapping[str, Tensor], cond: Mapping[str, Any], guidance: Any, probes: Any
    ) -> dict[str, Tensor]:
        t, weight = self._at(float(s))
        denoiser = self.denoiser
        if denoiser.guidance is not None:
            denoiser = denoiser.guided_by(replace(denoiser.guidance, **guidance))
        with torch.enable_grad():
            x = (weight * state["y"]).to(self.dtype)
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            F = denoiser(x, t, cond, prediction=self.frame.prediction)
        if not F.requires_grad:
            raise RuntimeError(
                "network: its output has no graph, so it has no divergence: it detaches, or runs under no_grad; "
                "let autograd see it"
            )
        # Where gradients are off the products have no graph, and the network's is dropped with F.
        volume = weight * self.divergence.trace(F, x, probes)
        return {"y": F.double() if torch.is_grad_enabled() else F.detach().double(), "volume": volume}

    def _at(self, s: float) -> tuple[float, float]:
        """Time and weight; at the grid's nodes those of its tables, bit by bit."""
        if s in self._nodes:
            return self._nodes[s]
        time = self.frame.time(s)
        return float(time), float(self.frame.weight(time))


def augmented(equation: Diffusion, state: Mapping[str, Tensor], flow: Flow, probes: Tensor | None) -> Field:
    """Return the augmented equation on the grid run upwards, from the data to the noise."""
    guidance = equation.denoiser.guidance
    given = {
        "cond": equation.cond,
        "guidance": None if guidance is None else guidance.tensors,
        "probes": probes,
    }
    return Field.create(
        flow,
        state,
        equation.clocks[::-1],
        cond=turned(given),
        noise_clock=None,
        time_dtype=torch.float64,
    )


def turned(nest: Any) -> Any:
    """The nest with the order of every ``Scheduled`` turned round: the sampler's last step is the first here."""
    if isinstance(nest, Scheduled):
        values = nest.values
        return Scheduled(values.flip(0) if isinstance(values, Tensor) else list(values)[::-1])
    if isinstance(nest, Mapping | list | tuple):
        return nests.map_items(turned, nest)
    return nest

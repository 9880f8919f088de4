"""What the functions of control have in common: a model's equation, and a trajectory on its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import check_state, check_types
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame


def equation_of(
    name: str,
    denoiser: Denoiser,
    frame: Frame,
    grid: Tensor | Sequence[float],
    cond: Mapping[str, Any] | None,
    guided: bool | None,
) -> Diffusion:
    """The equation of a denoiser, with or without its guidance, as the caller says."""
    check_types((name, denoiser, Denoiser, "Denoiser(network, schedule, prediction)"))
    if guided is not None:
        check_types(("guided", guided, bool, "True, False or None"))
    if denoiser.guidance is not None:
        if guided is None:
            raise ValueError(
                f"guided: {name} has guidance, and nothing says whether the guided law is tuned; "
                "pass guided=True to take the denoisers with their guidance, guided=False to take "
                "them without"
            )
        denoiser = denoiser if guided else denoiser.guided_by(None)
    return Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)


def states_of(equation: Diffusion, trajectory: Tensor) -> Tensor:
    """A trajectory as a constant, (steps + 1, batch, ...)."""
    check_types(("trajectory", trajectory, Tensor, "what sample(..., trajectory=True) returns"))
    want = equation.steps + 1
    if trajectory.ndim < 2 or len(trajectory) != want:
        raise ValueError(
            f"trajectory: got shape {tuple(trajectory.shape)} for a grid of {equation.steps} "
            f"steps; pass ({want}, batch, ...), what sample(..., trajectory=True) returns"
        )
    check_state("trajectory", trajectory)
    return plain(trajectory)


def check_like(name: str, tensor: Tensor, like: Tensor, wanted: str) -> None:
    """Refuse what has not the shape, dtype and device of another tensor."""
    check_types((name, tensor, Tensor, wanted))
    got, want = ((t.dtype, tuple(t.shape), t.device) for t in (tensor, like))
    if got != want:
        raise ValueError(f"{name}: got {_shown(got)}; pass {wanted}, {_shown(want)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: it holds NaN or infinite values; pass finite numbers")


def plain(tensor: Tensor) -> Tensor:
    """A constant of the same values that autograd may use, also one made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _shown(facts: tuple[torch.dtype, tuple[int, ...], torch.device]) -> str:
    dtype, shape, device = facts
    return f"{dtype} {shape} on {device}"

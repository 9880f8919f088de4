"""The door: checks that every entry point makes of its arguments, once, and the progress bar they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .frames import Frame
from .schedules.base import check_schedule
from .solvers import Solver


def check_types(*expected: tuple[str, object, type, str]) -> None:
    """Refuse the first ``(name, value, kind, wanted)`` whose value is not of its kind."""
    for name, value, kind, wanted in expected:
        if not isinstance(value, kind):
            got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"{name}: got {got}; pass {wanted}")


def check_problem(denoiser: Denoiser, frame: Frame, solver: Solver, cond: Mapping[str, Any]) -> None:
    """Refuse what does not make a sampler."""
    check_types(
        ("denoiser", denoiser, Denoiser, "Denoiser(network, schedule, prediction)"),
        ("frame", frame, Frame, "Frame(schedule, eta, kind), or the first of a pair such as samplers.ddim(schedule)"),
        ("solver", solver, Solver, "a solver such as Heun()"),
        ("cond", cond, Mapping, "a mapping from the network's keyword names to values"),
    )
    if strange := [name for name in cond if not isinstance(name, str)]:
        raise TypeError(f"cond: got the key {strange[0]!r}; pass the names of the network's keyword arguments")
    check_schedule(denoiser.schedule)
    check_schedule(frame.schedule)
    if denoiser.schedule != frame.schedule:
        raise ValueError(
            f"frame: its schedule is {frame.schedule!r}, but the denoiser's is {denoiser.schedule!r}; "
            "pass one schedule to both"
        )


def check_state(name: str, x: Tensor) -> None:
    """Refuse what cannot be a state of the sampler."""
    check_types((name, x, Tensor, "a tensor (batch, ...)"))
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise TypeError(
            f"{name}: got dtype {x.dtype}; pass float64, float32 or bfloat16, such as {name}.float() (float16 cannot "
            "hold the frame's range; a float16 network runs in its own dtype all the same, by an adapter or by "
            "Denoiser(..., network_dtype=torch.float16))"
        )
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}; pass a batch (batch, ...) of at least one sample")
    if x.is_meta:
        raise ValueError(f"{name}: it is on meta, where tensors have no values; pass it on the model's device")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name}: it holds NaN or infinite values; pass a finite state")


def progress_bar(total: int | None, description: str, unit: str = "step") -> Any:
    """A tqdm bar, or an error that says how to get one."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True shows a bar by tqdm; pip install 'sdeadjoint[progress]'") from error
    return tqdm(total=total, desc=description, unit=unit)

"""A network that embeds whole timesteps, and is given times of a schedule that run from 0 to 1."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .schedules import VPCosine, VPLinear
from .schedules.base import Schedule

DEPTH = 3  # a partial function or method, its function, and the module that this reads


class TimeWarning(UserWarning):
    """The network embeds whole timesteps, but it is given the times of a schedule that run from 0 to 1."""


def watch_time(network: Callable[..., Any], schedule: Schedule, start: float) -> None:
    """Warn at the next call of ``network`` if its time embedding is one of whole timesteps and gets ``start``.

    Nothing is guessed from names or from code: what is looked at is the number that the embedding is really given, so
    that a wrapper which counts otherwise, ``lambda x, t: unet(x, 999 * t).sample``, is not warned of. The embedding is
    the one of whole timesteps in diffusers (``Timesteps``), whose slowest waves need 10 000 of them. The schedules are
    ``VPLinear`` and ``VPCosine``: the times of a table are timesteps, and flows are trained on times from 0 to 1.
    Compiled networks are not watched: a hook would compile them once more.

    Args:
        network: the denoiser's.
        schedule: the denoiser's.
        start: the first time of the grid, which the first call of the network gets.
    """
    if not isinstance(schedule, VPLinear | VPCosine):
        return
    modules = [module for root in _roots(network) for module in root.modules()]
    if any(_is_compiled(module) for module in modules):
        return
    for module in {id(module): module for module in modules if _embeds_timesteps(module)}.values():
        _look_once(module, schedule, start)


def _look_once(module: nn.Module, schedule: Schedule, start: float) -> None:
    """A hook for one call; a module that has one already keeps it."""
    if any(isinstance(hook, _Look) for hook in module._forward_pre_hooks.values()):
        return
    look = _Look(schedule, start)
    look.handle = module.register_forward_pre_hook(look)


class _Look:
    """Compares the argument of one call with the schedule's time."""

    def __init__(self, schedule: Schedule, start: float) -> None:
        self.schedule = schedule
        self.start = start
        self.handle: Any = None

    def __call__(self, module: nn.Module, given: tuple[Any, ...]) -> None:
        self.handle.remove()
        if _equal(given[0] if given else None, self.start):
            name = type(self.schedule).__name__
            warnings.warn(
                f"network: it embeds whole timesteps (a {type(module).__name__} of diffusers), but {name} gives it "
                f"times from 0 to 1, here t = {self.start:g}; pass schedule=Tabulated.ddpm(...), whose times are "
                "timesteps, or use from_diffusers(model, scheduler). If it was trained on such times, silence this by "
                "warnings.filterwarnings('ignore', category=sdeadjoint.TimeWarning)",
                TimeWarning,
                stacklevel=2,
            )


def _equal(given: Any, start: float) -> bool:
    """Whether a tensor holds the number alone, as far as its dtype can."""
    if not isinstance(given, Tensor) or given.numel() == 0:
        return False
    if given.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool((given.detach() == torch.tensor(start, dtype=torch.float64).to(given.dtype).item()).all())
    except RuntimeError:  # inside of vmap tensors have no values
        return False


def _embeds_timesteps(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Timesteps" and kind.__module__ == "diffusers.models.embeddings" and bool(module.scale == 1)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _roots(network: Any) -> list[nn.Module]:
    """The modules that a callable is, is bound to, or reads by a name, itself or through functions of its program."""
    found, seen, layer = [], set(), [network]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for value in layer:
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, nn.Module):
                found.append(value)
            else:
                inner += _read_by(value)
        layer = inner
    return found


def _read_by(called: Any) -> Iterator[Any]:
    """What a function reads by name, and what a method or a partial function is made of."""
    if isinstance(called, functools.partial):
        yield from (called.func, *called.args, *called.keywords.values())
    elif isinstance(called, MethodType):
        yield from (called.__self__, called.__func__)
    elif isinstance(called, FunctionType) and not (called.__module__ or "").startswith("torch."):
        try:
            read = inspect.getclosurevars(called)
        except ValueError:  # a variable that has no value yet
            return
        yield from (*read.nonlocals.values(), *read.globals.values())

"""Checks that entry points make of their arguments, once, at the door."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch


def named(value: object) -> str:
    """Return what a message calls a value of the wrong type: its type, or the class that it is."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_types(*expected: tuple[str, object, type, str]) -> None:
    """Refuse the first ``(name, value, kind, wanted)`` whose value is not of its kind."""
    for name, value, kind, wanted in expected:
        if not isinstance(value, kind):
            raise TypeError(f"{name}: got {named(value)}; pass {wanted}")


def is_integer(value: object, least: int) -> bool:
    """Whether a value is an integer (True is not one) of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Whether a value is a real Python number (True is not one)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity; under ``torch.func.vmap`` in none of its instances."""
    return bool(finite_flag(tensor))


def finite_flag(tensor: Tensor) -> Tensor:
    """Whether all of it is finite, as a tensor of no dimension on its device, which nobody has waited for."""
    values = unwrapped(tensor).detach()
    if values.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=values.device)
    # The largest magnitude is NaN where any is. It takes two passes over the tensor, where isfinite takes four.
    return values.abs().amax() < torch.inf


def unwrapped(tensor: Tensor) -> Tensor:
    """A tensor whose values can be read: under the transforms of ``torch.func`` that of all instances."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor has numbers: those on the device "meta" have none, unless a subclass keeps them elsewhere."""
    return not tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter)


def check_state(name: str, x: Tensor) -> None:
    """Refuse what cannot be a state of the sampler."""
    check_types((name, x, Tensor, "a tensor (batch, ...)"))
    if x.is_complex():
        raise TypeError(
            f"{name}: got dtype {x.dtype}, but states are real; pass torch.view_as_real({name}), with a network that "
            "takes real and imaginary parts as a last dimension"
        )
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise TypeError(
            f"{name}: got dtype {x.dtype}; pass float64, float32 or bfloat16, such as {name}.float() (float16 cannot "
            "hold the frame's range; a float16 network runs in its own dtype all the same, by an adapter or by "
            "Denoiser(..., network_dtype=torch.float16))"
        )
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}; pass a batch (batch, ...) of at least one sample")
    if not has_values(x):
        raise ValueError(f"{name}: it is on meta, where tensors have no values; pass it on the model's device")
    if not all_finite(x):
        raise ValueError(f"{name}: it holds NaN or infinite values; pass a finite state")

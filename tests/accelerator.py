"""A simulated accelerator: tensors that hold their numbers on the CPU, and report another device.

    with Accelerator() as accelerator:
        x = torch.ones(3).to("meta")       # far: x.device is meta, and x has values
        (2 * x).sum().item()               # 6.0, and accelerator.reads == 1
        x + torch.ones(3)                  # raises, as on any accelerator: the other tensor is on the host

PyTorch's device "meta" has no values of its own, and its engine runs backward passes for it on the CPU: so it can
play the accelerator, in ``FarTensor``. Every operation that meets one is done on the numbers, after a check that no
tensor of the host with a dimension or more is among its arguments; what hands numbers to the host is counted. Modules
are moved by ``far``. Threads of the host see plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
META = torch.device("meta")
READS = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.is_nonzero, aten.allclose}
MOVES = {aten._to_copy, aten.copy_, aten.set_}


class FarTensor(Tensor):
    """A tensor with its numbers in ``near``, on the CPU, which reports the device "meta"."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=META
        )
        made.near = near
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["near"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _: None, size: torch.Size, stride: Any) -> FarTensor:
        return FarTensor(inner["near"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the accelerator outside of its context")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.near})"


class Accelerator(TorchDispatchMode):
    """The context in which the device "meta" has numbers; ``reads`` and ``copies`` count what the host was handed."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [*_tensors(args), *_tensors(kwargs.values())]
        is_far = any(isinstance(tensor, FarTensor) for tensor in given)
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        packet = func.overloadpacket
        if is_far and packet not in MOVES:
            strangers = [tensor for tensor in given if not isinstance(tensor, FarTensor) and tensor.dim() > 0]
            # A table of the accelerator may be indexed by the host's numbers, and is then waited for by nobody.
            if strangers and packet is not aten.index:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, but some are on the host")
        self.reads += is_far and packet in READS
        near = {name: _mapped(_near, value) for name, value in kwargs.items()}
        out = func(*_mapped(_near, args), **near)
        to_far = torch.device(asked).type == "meta" if asked is not None else is_far
        if packet is aten.copy_ and not isinstance(args[0], FarTensor):
            self.copies += is_far
            return args[0]
        self.copies += is_far and not to_far
        return _mapped(_wrapping(given), out) if to_far else out


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those among the arguments of an operation, and in their lists; PyTorch's own trees take several times as long."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The function's values for the tensors of an argument or of a result, which may be a list or a tuple of them."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is list or type(value) is tuple:
        return type(value)(_mapped(function, each) for each in value)
    return value


def _near(tensor: Tensor) -> Tensor:
    return tensor.near if isinstance(tensor, FarTensor) else tensor


def _wrapping(given: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Of results: what was changed in place stays the tensor that it was."""
    known = {id(tensor.near): tensor for tensor in given if isinstance(tensor, FarTensor)}

    def wrap(value: Tensor) -> Tensor:
        return known[id(value)] if id(value) in known else FarTensor(value)

    return wrap


def far(module: nn.Module) -> nn.Module:
    """The module, its parameters and buffers moved over."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(FarTensor(parameter.detach().clone()), requires_grad=parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FarTensor(buffer.detach().clone())
    return module

"""The function whose fixed point is sought, on states packed into one matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import nests
from ..arguments import check_types
from ..conditioning import scheduled

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """How a tensor (batch, ...), or a nest of such, is packed into a matrix (batch, numbers)."""

    nest: Any
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, z: Any) -> Layout:
        first = next(nests.tensors(z))
        shapes = tuple(tensor.shape for tensor in nests.tensors(z))
        return cls(nests.emptied(z), shapes, first.dtype, first.device)

    def pack(self, z: Any) -> Tensor:
        """The matrix, differentiable."""
        rows = [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in nests.tensors(z)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def unpack(self, rows: Tensor) -> Any:
        """The nest, differentiable."""
        widths = [shape[1:].numel() for shape in self.shapes]
        pieces = iter(
            piece.reshape(shape) for piece, shape in zip(rows.split(widths, dim=1), self.shapes, strict=True)
        )
        return nests.refilled(self.nest, pieces)


@dataclass(frozen=True)
class Field:
    """``z -> f(z, **cond)`` on packed states; ``name`` is what messages call f."""

    f: Callable[..., Any]
    cond: Mapping[str, Any]
    layout: Layout
    name: str = "f"

    def on(self, cond: Mapping[str, Any]) -> Field:
        return replace(self, cond=cond)

    def __call__(self, rows: Tensor) -> Tensor:
        out = self.f(self.layout.unpack(rows.clone()), **self.cond)  # a copy: f may work in place
        self._check(out)
        return self.layout.pack(out)

    def pushed(self, rows: Tensor, v: Tensor) -> Tensor:
        """``df/dz v``, differentiable where gradients are enabled.

        In forward mode, or by differentiating twice where f has operations without it.
        """
        try:
            with forward_ad.dual_level():
                tangent = forward_ad.unpack_dual(self(forward_ad.make_dual(rows, v))).tangent
        except (NotImplementedError, RuntimeError) as error:
            return self._pushed_backward(rows, v, error)
        return torch.zeros_like(rows) if tangent is None else tangent

    def _pushed_backward(self, rows: Tensor, v: Tensor, error: Exception) -> Tensor:
        """``df/dz v`` as the derivative of ``u -> (df/dz)^T u``, which is linear in u."""
        wanted = torch.is_grad_enabled()
        try:
            with torch.enable_grad():
                z = rows if wanted and rows.requires_grad else rows.detach().requires_grad_()
                out = self(z)
                u = torch.zeros_like(out, requires_grad=True)
                back = torch.autograd.grad(out, z, u, create_graph=True, allow_unused=True)[0]
                if back is None or not back.requires_grad:
                    return torch.zeros_like(rows)
                tangent = torch.autograd.grad(back, u, v, create_graph=wanted, allow_unused=True)[0]
        except Exception as second:
            raise RuntimeError(
                f"method: Newton() needs products with the derivative of {self.name}, which has neither a derivative "
                f"in forward mode ({type(error).__name__}: {error}) nor a second one in reverse "
                f"({type(second).__name__}: {second}); pass Anderson() or Broyden()"
            ) from second
        return torch.zeros_like(rows) if tangent is None else tangent

    def _check(self, out: Any) -> None:
        """Refuse what cannot be a state."""
        got = list(nests.tensors(out))
        shapes = [tuple(tensor.shape) for tensor in got]
        wanted = [tuple(shape) for shape in self.layout.shapes]
        if shapes != wanted or _structure(out) != _structure(self.layout.nest):
            raise ValueError(
                f"{self.name}: returned {_described(out)} for a state {_listed(wanted)}; return what has z0's structure"
            )
        for tensor in got:
            if tensor.dtype != self.layout.dtype or tensor.device != self.layout.device:
                raise TypeError(
                    f"{self.name}: returned {tensor.dtype} on {tensor.device} for a state of {self.layout.dtype} on "
                    f"{self.layout.device}; convert z0 or the output"
                )


@contextmanager
def autocast_cache_cleared(device: torch.device) -> Iterator[None]:
    """For evaluations without a graph: autocast would hand the parameters that it cast for them to later ones."""
    try:
        yield
    finally:
        if torch.is_autocast_enabled(device.type) or torch.is_autocast_enabled("cpu"):
            torch.clear_autocast_cache()


def refuse_transforms(tensors: Iterator[Tensor]) -> None:
    """Raise under transforms of torch.func and forward-mode differentiation, which would see the iterations."""
    for tensor in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError(
                "equilibria.solve: it was called inside of a transform of torch.func (vmap, grad, jvp, ...), which it "
                "does not support; pass the whole batch at once, and differentiate with backward or torch.autograd.grad"
            )
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                "equilibria.solve: a tensor carries a tangent of forward-mode differentiation, which would be that of "
                "the iterations; differentiate with backward or torch.autograd.grad"
            )


def check_start(z0: Any) -> None:
    """Refuse what is no state to start from."""
    tensors = list(nests.tensors(z0))
    if not tensors:
        raise TypeError(f"z0: got {type(z0).__name__} without tensors; pass a tensor (batch, ...) or a nest of such")
    first = tensors[0]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise TypeError(f"z0: got dtype {tensor.dtype}; pass float64, float32 or bfloat16")
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise TypeError(
                f"z0: got {tensor.dtype} on {tensor.device} beside {first.dtype} on {first.device}; pass one of each"
            )
        if tensor.ndim == 0 or tensor.numel() == 0 or len(tensor) != len(first):
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(f"z0: got {_listed(shapes)}; pass one batch (batch, ...) of at least one sample")
        if tensor.is_meta or not torch.isfinite(tensor).all():
            raise ValueError("z0: it holds NaN or infinite values, or none (on meta); pass a finite state")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "z0 requires a gradient, but an equilibrium does not depend on where the iteration starts: it would be "
                "zero; pass z0.detach(), and fit a start that is learned with SharedStart"
            )


def check_cond(cond: Any) -> None:
    """Refuse what cannot be handed to f by name."""
    check_types(("cond", cond, Mapping, "a mapping from f's keyword names to values"))
    if strange := [name for name in cond if not isinstance(name, str)]:
        raise TypeError(f"cond: got the key {strange[0]!r}; pass the names of f's keyword arguments")
    if any(True for _ in scheduled(cond)):
        raise TypeError("cond: got Scheduled, but an equilibrium has no steps; pass the value itself")


def _structure(nest: Any) -> Any:
    """The nest without what is in its leaves, for comparison."""
    if isinstance(nest, Mapping):
        return {name: _structure(value) for name, value in nest.items()}
    return [_structure(value) for value in nest] if isinstance(nest, list | tuple) else ()


def _described(out: Any) -> str:
    shapes = [tuple(tensor.shape) for tensor in nests.tensors(out)]
    return type(out).__name__ if not shapes else _listed(shapes)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))

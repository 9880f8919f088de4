"""The function whose fixed point is sought, on states packed into one matrix."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import nests
from ..arguments import check_types, has_values, named
from ..conditioning import scheduled
from ..packing import Packing

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """How a state, a tensor (batch, ...) or a nest of such, becomes a matrix (batch, numbers)."""

    packing: Packing
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, z: Any, name: str = "z0") -> Layout:
        packing = Packing.of(z, name)
        y = packing.pack(z)
        return cls(packing, y.shape, y.dtype, y.device)

    def pack(self, z: Any) -> Tensor:
        """The matrix, differentiable."""
        y = self.packing.pack(z)
        return y.reshape(len(y), -1)

    def unpack(self, rows: Tensor) -> Any:
        """The state, differentiable."""
        return self.packing.unpack(rows.reshape(self.shape))


@dataclass(frozen=True)
class Map:
    """``z -> f(z, **cond)`` on states laid out as matrices; ``name`` is what messages call f."""

    f: Callable[..., Any]
    cond: Mapping[str, Any]
    layout: Layout
    name: str = "f"

    def on(self, cond: Mapping[str, Any]) -> Map:
        return replace(self, cond=cond)

    def __call__(self, rows: Tensor) -> Tensor:
        out = self.f(self.layout.unpack(rows.clone()), **self.cond)  # a copy: f may work in place
        self._check(out)
        return self.layout.pack(out)

    def pushed(self, rows: Tensor, v: Tensor) -> Tensor:
        """``df/dz v``, differentiable where gradients are enabled.

        In forward mode, or by differentiating twice where f has operations without it.
        """
        _load_forward_mode()
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
                u = v.detach().clone().requires_grad_()
                back = torch.autograd.grad(out, z, u, create_graph=True, allow_unused=True)[0]
                tangent = _transposed(back, u, v, wanted)
        except Exception as second:
            raise RuntimeError(
                f"method: Newton() needs products with the derivative of {self.name}, which has "
                f"neither a derivative in forward mode ({type(error).__name__}: {error}) nor a "
                f"second one in reverse ({type(second).__name__}: {second}); pass Anderson() or "
                "Broyden()"
            ) from second
        return torch.zeros_like(rows) if tangent is None else tangent

    def _check(self, out: Any) -> None:
        """Refuse what cannot be a state."""
        layout = self.layout
        if not layout.packing.fits(out):
            shapes = [tuple(tensor.shape) for tensor in nests.tensors(out)]
            raise ValueError(
                f"{self.name}: returned {named(out)} with shapes {shapes} for a state with shapes "
                f"{list(layout.packing.shapes)}; return what has z0's structure"
            )
        for tensor in nests.tensors(out):
            if (tensor.dtype, tensor.device) != (layout.dtype, layout.device):
                raise TypeError(
                    f"{self.name}: returned {tensor.dtype} on {tensor.device} for a state of "
                    f"{layout.dtype} on {layout.device}; convert z0 or the output"
                )


def _transposed(back: Tensor | None, u: Tensor, v: Tensor, wanted: bool) -> Tensor | None:
    """``A v`` from ``back = A^T u`` with its graph; None for zero."""
    if back is None:
        return None
    tangent = None
    if back.requires_grad:
        tangent = torch.autograd.grad(back, u, v, create_graph=wanted, allow_unused=True)[0]
    if tangent is None and back.any():  # no way leads to u, and yet it matters
        raise RuntimeError("its derivative cannot be differentiated")
    return tangent


@cache
def _load_forward_mode() -> None:
    """Let torch compile its formulas, which it does at the first use, with a warning of its own."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


@contextmanager
def autocast_cache_cleared(device: torch.device) -> Iterator[None]:
    """For evaluations without a graph, whose cast parameters autocast would hand to later ones."""
    try:
        yield
    finally:
        kinds = filter(torch.amp.is_autocast_available, (device.type, "cpu"))
        if any(torch.is_autocast_enabled(kind) for kind in kinds):
            torch.clear_autocast_cache()


def refuse_transforms(tensors: Iterator[Tensor]) -> None:
    """Raise under transforms of torch.func and forward mode, which would see the iterations."""
    for tensor in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError(
                "equilibria.solve: it was called inside of a transform of torch.func (vmap, grad, "
                "jvp, ...), which it does not support; pass the whole batch at once, and "
                "differentiate with backward or torch.autograd.grad"
            )
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                "equilibria.solve: a tensor carries a tangent of forward-mode differentiation, "
                "which would be that of the iterations; differentiate with backward or "
                "torch.autograd.grad"
            )


def check_start(z0: Any) -> None:
    """Refuse what cannot be a state to start from."""
    packing = Packing.of(z0, "z0")
    if not packing.batch or any(torch.Size(shape).numel() == 0 for shape in packing.shapes):
        raise ValueError(
            f"z0: got shapes {list(packing.shapes)}; pass one batch (batch, ...), not empty"
        )
    for tensor in nests.tensors(z0):
        if tensor.dtype not in DTYPES:
            raise TypeError(f"z0: got dtype {tensor.dtype}; pass float64, float32 or bfloat16")
        if not (has_values(tensor) and torch.isfinite(tensor).all()):
            raise ValueError("z0: it is on meta or holds NaN or infinite values; pass finite ones")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "z0 requires a gradient, but an equilibrium does not depend on where the iteration "
                "starts: it would be zero; pass z0.detach(), and fit a start that is learned with "
                "SharedStart"
            )


def check_cond(cond: Any) -> None:
    """Refuse what cannot be handed to f by name."""
    check_types(("cond", cond, Mapping, "a mapping from f's keyword names to values"))
    if strange := [name for name in cond if not isinstance(name, str)]:
        raise TypeError(
            f"cond: got the key {strange[0]!r}; pass the names of f's keyword arguments"
        )
    if any(True for _ in scheduled(cond)):
        raise TypeError(
            "cond: got Scheduled, but an equilibrium has no steps; pass the value itself"
        )

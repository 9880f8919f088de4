"""Watching and changing the adjoint on its way back, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..arguments import check_types
from ..equation import Equation
from ..recursion import Observer, Recursion
from .base import Adjoint

Hook = Callable[[int, float, Any], Any]
"""``hook(n, t, a)`` in the backward pass, for n = N .. 1: ``a = dL/dx_n`` of the state at time t; what it returns, if
anything, goes on in its place."""


@dataclass(frozen=True)
class Hooked(Adjoint):
    """Any adjoint with a hook: ``hook(n, t, a)`` sees ``a = dL/dx_n`` for n = N, ..., 1 and may return another.

        Hooked(Checkpoint(), clip_norm(1.0))

    What the hook returns goes on in the place of ``a``, to the steps before and to everything they
    read; None leaves ``a`` as it is. ``dL/dx_T`` itself is ``x_T.grad`` (or a hook on x_T). A hook
    that changes ``a`` makes the result something else than a gradient, deliberately. ``clip_norm``,
    ``clip_quantile``, ``normalize`` and ``record_norms`` are ready-made.
    """

    adjoint: Adjoint
    hook: Hook

    def __post_init__(self) -> None:
        check_types(("adjoint", self.adjoint, Adjoint, "Hooked(adjoint, hook) with an adjoint such as Checkpoint()"))
        if not callable(self.hook):
            raise TypeError(f"hook: got {type(self.hook).__name__}; pass a function hook(n, t, a)")

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        before = recursion.hook.hooks if isinstance(recursion.hook, _Outward) else ()
        hook = _Outward(recursion.equation, (*before, self.hook))
        return self.adjoint.solve(replace(recursion, hook=hook), y, keep=keep, observe=observe)


@dataclass(frozen=True)
class _Outward:
    """A recursion's hook, which sees ``dL/dy_n``, from hooks that see ``dL/dx_n``, one after the other."""

    equation: Equation
    hooks: tuple[Hook, ...]

    def __call__(self, n: int, cotangent: Tensor) -> Tensor:
        a = given = self.equation.outward(n, cotangent)
        for hook in self.hooks:
            changed = hook(n, self.equation.times[n], a)
            if changed is not None:
                a = changed
        if a is given:
            return cotangent
        _check_shapes(a, given)
        return self.equation.inward(n, nests.map_tensors(lambda tensor: tensor.to(cotangent.dtype), a))


def _check_shapes(changed: Any, given: Any) -> None:
    shapes = [[tuple(tensor.shape) for tensor in nests.tensors(nest)] for nest in (changed, given)]
    if shapes[0] != shapes[1]:
        got, want = (found[0] if len(found) == 1 else found for found in shapes)
        raise ValueError(
            f"hook: returned {got or type(changed).__name__} for an adjoint of shape {want}; "
            "return a tensor of that shape, or None to leave the adjoint as it is"
        )


def clip_norm(limit: float) -> Hook:
    """Scale each sample's adjoint down to the Euclidean norm ``limit`` where it is longer."""
    return _ClipNorm(limit)


def clip_quantile(q: float) -> Hook:
    """Scale adjoints down to the batch's ``q``-quantile of Euclidean norms where they are longer.

    At every step by itself: the few samples of a batch whose adjoints grow do not drown the others,
    whatever the unit.
    """
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q <= 1:
        raise ValueError(f"q: got {q!r}; pass a quantile in (0, 1], such as 0.9")

    def hook(n: int, t: float, a: Tensor) -> Tensor:
        norms = _norms(a)
        limit = torch.quantile(norms.flatten(), q)
        scale = torch.where(norms > limit, limit / norms, torch.ones_like(norms))
        return a * scale.to(a.dtype)

    return hook


def normalize(norm: float = 1.0) -> Hook:
    """Scale each sample's adjoint to one Euclidean norm at every step; zeros stay zero."""
    return _Normalize(norm)


def record_norms(into: list[tuple[int, float, Tensor]]) -> Hook:
    """Append ``(n, t, norms)`` to a list at every step, norms of shape (batch,); the adjoint stays as it is."""
    return _RecordNorms(into)


@dataclass(frozen=True)
class _ClipNorm:
    limit: float

    def __post_init__(self) -> None:
        _check_positive("limit", self.limit)

    def __call__(self, n: int, t: float, a: Tensor) -> Tensor:
        return a * (self.limit / _norms(a).clamp(min=self.limit)).to(a.dtype)

    def __repr__(self) -> str:
        return f"clip_norm({self.limit!r})"


@dataclass(frozen=True)
class _Normalize:
    norm: float

    def __post_init__(self) -> None:
        _check_positive("norm", self.norm)

    def __call__(self, n: int, t: float, a: Tensor) -> Tensor:
        norms = _norms(a)
        return a * (self.norm / norms.where(norms > 0, norms.new_ones(()))).to(a.dtype)

    def __repr__(self) -> str:
        return f"normalize({self.norm!r})"


@dataclass(frozen=True, eq=False)
class _RecordNorms:
    into: list[tuple[int, float, Tensor]]

    def __call__(self, n: int, t: float, a: Tensor) -> None:
        self.into.append((n, t, _norms(a).flatten()))

    def __repr__(self) -> str:
        return "record_norms(...)"


def _norms(a: Tensor) -> Tensor:
    """One norm per sample, in float32 at least, of shape (batch, 1, ..., 1)."""
    wide = a.detach() if a.dtype.itemsize >= 4 else a.detach().float()
    # One dimension more than a has: over no dimension at all, of a state of shape (batch,), there is no norm.
    return torch.linalg.vector_norm(wide[..., None], dim=tuple(range(1, a.ndim + 1)), keepdim=True)[..., 0]


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{name}: got {value!r}; pass a positive number")

"""Curvature where PyTorch has no function of it: Gauss-Newton products and the largest eigenvalue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .arguments import is_integer, is_number, named

Tensors = Tensor | tuple[Tensor, ...]


def gauss_newton_product(
    x: Tensor,
    inputs: Tensor | Sequence[Tensor],
    direction: Tensor | Sequence[Tensor],
    *,
    loss: Callable[[Tensor], Tensor],
) -> Tensors:
    """Return ``J^T H J v``: J the derivative of a sample in its inputs, H the Hessian of a loss on the sample.

        x_0 = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=sa.Heun())
        Gv = sa.gauss_newton_product(x_0, x_T, v, loss=lambda x: (x - target).square().sum() / 2)

    It is the Hessian of ``loss(sample(...))`` without the curvature of the sampler. Where the loss is convex it is
    positive semidefinite, so that conjugate gradients on it (with damping) give a direction of descent.

    Args:
        x: what ``sample`` or ``solve`` returned, with its graph, which is retained: one solve serves many products.
        inputs: a tensor that x depends on, or several: x_T, conditioning, weights, noise.
        direction: v, one tensor for each input, of its shape.
        loss: a function of one tensor like x, twice differentiable, which returns one number.

    Returns the product: a tensor for a tensor, a tuple for several.
    Cost with ``Checkpoint()``: one tangent of the solve and one gradient, in the memory of two gradients and one state
    per step; no forward pass. With ``Direct()`` any solve that plain autograd can differentiate twice.
    Errors: ``TypeError`` and ``ValueError`` for arguments that do not fit; those of the adjoint, which must have second
    derivatives. Not for the whole Hessian: that is ``torch.autograd.grad`` of ``torch.autograd.grad(...,
    create_graph=True)``, or ``torch.autograd.functional.hvp``.
    Source: Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent", section 3.
    """
    leaves, vs = _listed("inputs", inputs), _listed("direction", direction)
    _check_product(x, leaves, vs)
    pushed = _pushed(x, leaves, vs)
    bent = _bent(x.detach(), pushed, loss)
    found = torch.autograd.grad(x, leaves, bent, retain_graph=True, allow_unused=True)
    back = tuple(torch.zeros_like(own) if grad is None else grad for own, grad in zip(leaves, found, strict=True))
    return back[0] if isinstance(inputs, Tensor) else back


class Curvature(NamedTuple):
    """Hold the eigenvalue of largest magnitude of a symmetric product, as far as it was found.

    ``value``: the Rayleigh quotient ``<v, P v>``; ``direction``: v, of length 1, like ``start``; ``residual``:
    ``|P v - value v|``: an eigenvalue lies within it of ``value``; ``products``: how many were taken.
    """

    value: float
    direction: Any
    residual: float
    products: int


def largest_curvature(
    product: Callable[[Any], Any], start: Tensor | Sequence[Tensor], *, products: int = 50, tolerance: float = 1e-3
) -> Curvature:
    """Return the eigenvalue of largest magnitude of a symmetric ``product(v)``, by power iteration from ``start``.

        (g,) = torch.autograd.grad(loss(x_0), x_T, create_graph=True)
        hessian = lambda v: torch.autograd.grad(g, x_T, v, retain_graph=True)[0]
        top = sa.largest_curvature(hessian, torch.randn_like(x_T))

    Args:
        product: ``P v`` for a v like ``start``, linear and symmetric: a Hessian-vector product, or
            ``lambda v: sa.gauss_newton_product(x_0, x_T, v, loss=loss)``.
        start: a tensor or several, not all zero; random, so that the eigenvector is part of it.
        products: how many at most.
        tolerance: stop at a residual of this fraction of the value.

    The error falls by ``|lambda_2 / lambda_1|`` per product, its square in the value. Where the two are close, or of
    one size and opposite signs, the residual stays large and says so. For several eigenvalues take
    ``scipy.sparse.linalg.eigsh``. A step of gradient descent longer than ``2 / value`` diverges along ``direction``.
    Errors: ``TypeError`` and ``ValueError`` for arguments that do not fit.
    Source: von Mises and Pollaczek-Geiringer (1929); the bound: Parlett, "The Symmetric Eigenvalue Problem", 4.5.1.
    """
    if not callable(product):
        raise TypeError(f"product: got {named(product)}; pass a function, such as lambda v: P @ v")
    v = _listed("start", start)
    if not is_integer(products, 1):
        raise ValueError(f"products: got {products!r}; pass an integer >= 1")
    if not is_number(tolerance) or not tolerance > 0:
        raise ValueError(f"tolerance: got {tolerance!r}; pass a positive number")
    length = _length(v)
    if not 0 < length < float("inf"):
        raise ValueError(
            f"start: has length {length}; pass a finite tensor that is not zero, such as torch.randn_like(x_T)"
        )
    for taken in count(1):
        v = [part.detach() / length for part in v]
        given = v[0] if isinstance(start, Tensor) else tuple(v)
        w = _listed("product", product(given))
        _check_shapes("product", w, v)
        value = sum(float((a.detach().double() * b.double()).sum()) for a, b in zip(w, v, strict=True))
        residual = _length([a.detach().double() - value * b.double() for a, b in zip(w, v, strict=True)])
        if residual <= tolerance * abs(value) or taken == products:
            break
        v, length = w, _length(w)
    return Curvature(value, given, residual, taken)


def _pushed(x: Tensor, leaves: Sequence[Tensor], vs: Sequence[Tensor]) -> Tensor:
    """``J v``: the derivative of ``J^T u`` in u, in which it is linear."""
    u = torch.zeros_like(x, requires_grad=True)
    with torch.enable_grad():
        pulled = torch.autograd.grad(x, leaves, u, create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(pulled, vs, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        raise ValueError("inputs: x does not depend on any of them; pass tensors that sample was given")
    gs, seeds = zip(*pairs, strict=True)
    found = torch.autograd.grad(gs, u, seeds, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def _bent(x: Tensor, pushed: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """``H J v``."""
    with torch.enable_grad():
        y = x.requires_grad_()
        value = loss(y)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else named(value)
            raise ValueError(f"loss: returned {got}; return one number")
        slope = torch.autograd.grad(value, y, create_graph=True, allow_unused=True)[0] if value.requires_grad else None
    if slope is None or not slope.requires_grad:
        return torch.zeros_like(x)
    found = torch.autograd.grad(slope, y, pushed, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def _check_product(x: Tensor, leaves: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {named(x)}; pass the tensor that sample returned")
    if not x.requires_grad:
        raise ValueError("x: has no graph; pass what sample returned for inputs that require gradients")
    if any(not leaf.requires_grad for leaf in leaves):
        raise ValueError("inputs: one of them does not require a gradient; call requires_grad_() before sample")
    _check_shapes("direction", vs, leaves)


def _check_shapes(name: str, got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (got, want)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name}: got the shapes {shapes[0]} in the place of {shapes[1]}; pass one tensor for each")


def _listed(name: str, value: Any) -> list[Tensor]:
    """One tensor or several, as a list."""
    several = [value] if isinstance(value, Tensor) else value
    if not isinstance(several, list | tuple) or not several or not all(isinstance(v, Tensor) for v in several):
        raise TypeError(f"{name}: got {named(value)}; pass a tensor, or a list or tuple of tensors")
    return cast(list[Tensor], list(several))


def _length(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.detach().double().square().sum() for tensor in tensors)) ** 0.5

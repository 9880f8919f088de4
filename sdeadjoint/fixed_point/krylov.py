"""GMRES for a batch of linear systems, which share nothing but the call that multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Solved(NamedTuple):
    """The solutions (batch, numbers), ``|A x - b| / |b|`` (batch,), and how often A was applied."""

    x: Tensor
    residual: Tensor
    products: int


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, *, tol: Tensor, limit: int) -> Solved:
    """Solve ``A x = b`` for each sample, from x = 0, to ``|A x - b| <= tol |b|``.

    x minimises the residual over the Krylov space of b, whose basis is made orthogonal twice (so
    that it is, to round-off). A sample that is done, or whose b is zero, takes no part any more:
    its vectors are zero.

    Args:
        apply: ``v -> A v``, (batch, numbers), for all samples at once.
        b: right-hand sides, float32 or wider.
        tol: (batch,).
        limit: products at most; the basis takes ``limit + 1`` tensors like b.

    Source: Saad and Schultz (1986).
    """
    batch, numbers = b.shape
    limit = min(limit, numbers)
    beta = torch.linalg.vector_norm(b, dim=1)
    active = beta > 0
    basis = b.new_zeros(batch, limit + 1, numbers)
    basis[:, 0] = b / torch.where(active, beta, 1)[:, None]
    H = b.new_zeros(batch, limit + 1, limit)
    weights = b.new_zeros(batch, limit)
    residual = active.to(b.dtype)
    products = 0
    while bool(active.any()) and products < limit:
        j = products
        products += 1
        w, H[:, : j + 1, j] = _orthogonal(apply(basis[:, j]), basis[:, : j + 1])
        H[:, j + 1, j] = torch.linalg.vector_norm(w, dim=1)
        y, rest = _least_squares(H[:, : j + 2, : j + 1], beta)
        sound = active & torch.isfinite(y).all(1)
        weights[:, : j + 1] = torch.where(sound[:, None], y, weights[:, : j + 1])
        residual = torch.where(sound, rest / beta, residual)
        active = sound & (residual > tol) & (H[:, j + 1, j] > 0)
        length = torch.where(active, H[:, j + 1, j], 1)[:, None]
        basis[:, j + 1] = torch.where(active[:, None], w / length, 0)
    x = (weights[:, None, :products] @ basis[:, :products])[:, 0]
    return Solved(x, residual, products)


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """w less its part along the basis (batch, vectors, numbers), and its components there."""
    components = torch.zeros_like(basis[:, :, 0])
    for _ in range(2):
        along = (basis @ w[:, :, None])[:, :, 0]
        w = w - (along[:, None] @ basis)[:, 0]
        components = components + along
    return w, components


def _least_squares(H: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """``argmin |H y - beta e_1|`` of each sample, and that norm; not finite where H is singular."""
    q, r = torch.linalg.qr(H)
    y = torch.linalg.solve_triangular(r, beta[:, None, None] * q[:, 0, :, None], upper=True)
    rest = (H @ y)[:, :, 0]
    rest[:, 0] -= beta
    return y[:, :, 0], torch.linalg.vector_norm(rest, dim=1)

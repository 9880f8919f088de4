"""How well gradients agree with references."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradient_check.call import Gradients
from .measurement import KINDS, Agreement, Gradient


def kind_of(name: str) -> str:
    """The kind of a tensor by its name in a ``Call``."""
    head = name.split(".")[0].split("[")[0]
    return head if head in KINDS else "weights"


def gradients(found: Gradients, own: Gradients, true: Gradients | None) -> tuple[Gradient, ...]:
    """By kind, in the order of ``KINDS``, each kind's tensors as one vector; None counts as zero."""
    kinds = [kind for kind in KINDS if any(kind_of(name) == kind for name in found)]
    return tuple(Gradient(kind, _agreement(kind, found, own), _agreement(kind, found, true)) for kind in kinds)


def _agreement(kind: str, found: Gradients, reference: Gradients | None) -> Agreement | None:
    names = [name for name in found if kind_of(name) == kind]
    if reference is None or not all(name in reference for name in names):
        return None
    g, r = (_joined([pair[i] for pair in _pairs(names, found, reference)], kind) for i in (0, 1))
    if not r.norm() > 0:
        return None
    medians: tuple[float | None, float | None] = (None, None)
    if kind == "x_T" and (r.norm(dim=1) > 0).all():
        errors = (g - r).norm(dim=1) / r.norm(dim=1)
        cosines = (g * r).sum(1) / (g.norm(dim=1) * r.norm(dim=1))
        medians = (float(errors.median()), float(cosines.median()) if (g.norm(dim=1) > 0).all() else None)
    cosine = float((g * r).sum() / (g.norm() * r.norm())) if g.norm() > 0 else None
    return Agreement(float((g - r).norm() / r.norm()), cosine, *medians)


def _pairs(names: list[str], found: Gradients, reference: Gradients) -> list[tuple[Tensor, Tensor]]:
    """In float64; a missing one is zero, a tensor without either is left out."""
    pairs = []
    for name in names:
        g, r = found[name], reference[name]
        if g is not None or r is not None:
            like = (g if r is None else r).double()  # type: ignore[union-attr]
            zero = torch.zeros_like(like)
            pairs.append((zero if g is None else g.to(like), zero if r is None else like))
    return pairs


def _joined(tensors: list[Tensor], kind: str) -> Tensor:
    """One vector per sample for x_T, one for all else: (batch or 1, numbers)."""
    if not tensors:
        return torch.zeros(1, 1, dtype=torch.float64, device="cpu")
    rows = len(tensors[0]) if kind == "x_T" else 1
    return torch.cat([tensor.to_dense().reshape(rows, -1) for tensor in tensors], dim=1)

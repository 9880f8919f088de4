"""Pairs of images of different digits that look alike, and what it takes to pass for both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import sdeadjoint as sa

from .recognisers import Recogniser


@dataclass(frozen=True)
class LookAlikes:
    """``a`` and ``b``: images (n, 1, 8, 8); ``digits``: theirs, (2, n); ``judges``: whom a morph must deceive."""

    a: Tensor
    b: Tensor
    digits: Tensor
    judges: tuple[Recogniser, Recogniser]

    @classmethod
    def create(
        cls, problem: sa.problems.Digits, places: Tensor, judges: tuple[Recogniser, Recogniser], pairs: int
    ) -> LookAlikes:
        """For each two digits the closest images among those at ``places``; of these the closest."""
        pixels, labels = problem.images[places].flatten(1), problem.labels[places]
        distances, found = torch.cdist(pixels, pixels), []
        for a, b in torch.combinations(torch.arange(10)).tolist():
            between = distances.masked_fill((labels[:, None] != a) | (labels != b), torch.inf)
            found.append((float(between.min()), divmod(int(between.argmin()), len(places))))
        first, second = places[torch.tensor([pair for _, pair in sorted(found)[:pairs]]).T]
        digits = torch.stack([problem.labels[first], problem.labels[second]])
        return cls(problem.images[first], problem.images[second], digits, judges)

    def logits(self, certain: float) -> tuple[Tensor, Tensor]:
        """Conditioning of a and of b, (n, 10) each: ``certain`` for the image's own digit, 0 for the others."""
        a, b = certain * functional.one_hot(self.digits, 10).double()
        return a, b

    def losses(self, x: Tensor) -> Tensor:
        """Of each morph, (n,): its distances to a and b, and how much they differ, summed over the recognisers."""
        distances = [(1 - judge.similarity(x, self.a), 1 - judge.similarity(x, self.b)) for judge in self.judges]
        return torch.stack([a + b + (a - b).abs() for a, b in distances]).sum(0)

    def accepted(self, x: Tensor) -> Tensor:
        """Whether either recogniser takes a morph for both, (2, n)."""
        return torch.stack([judge.accepts(x, self.a) & judge.accepts(x, self.b) for judge in self.judges])

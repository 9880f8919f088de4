"""Looks that digits may have, and differentiable measures of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


def relief(images: Tensor) -> Tensor:
    """The images (n, 1, 8, 8) in [-1, 1] as reliefs: half the difference to the neighbour up and to the left."""
    padded = functional.pad(images, (1, 0, 1, 0), value=-1.0)
    return (padded[..., 1:, 1:] - padded[..., :-1, :-1]) / 2


def ink(x: Tensor) -> Tensor:
    """The mean darkness of each image, (n,): 0 for white paper, 1 for a black square."""
    return (x.mean((1, 2, 3)) + 1) / 2


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """``2 E|x - y| - E|x - x'| - E|y - y'|`` between samples (kinds, n, ...) of two laws, in the mean over the kinds.

    Without bias, so that it may be negative; 0 in the mean if the laws are equal. Szekely and Rizzo (2013).
    """

    def mean_distance(a: Tensor, b: Tensor, pairs: int) -> Tensor:
        squares = (a.flatten(2)[:, :, None] - b.flatten(2)[:, None]).square().sum(-1)
        return (squares + 1e-6).sqrt().sum((1, 2)) / pairs  # the root has no derivative at 0

    n, m = x.shape[1], y.shape[1]
    own = mean_distance(x, x, n * (n - 1)) + mean_distance(y, y, m * (m - 1))
    return (2 * mean_distance(x, y, n * m) - own).mean()


@dataclass(frozen=True)
class Style:
    """``|G(x) - G*|^2 / |G*|^2``, G(x) = mean f f^T over batch and pixels, and G* the same of the style's images.

    f are ten features: one, the image, and the slopes in eight directions where they are positive, each divided by its
    root mean square in the style's images. Gatys, Ecker and Bethge (2016) with these instead of a network's features.
    """

    scale: Tensor
    target: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Style:
        raw = features(images)
        scale = raw.square().mean(1, keepdim=True).sqrt()
        return cls(scale, gram(raw / scale))

    def __call__(self, x: Tensor) -> Tensor:
        return (gram(features(x) / self.scale) - self.target).square().sum() / self.target.square().sum()


def features(x: Tensor) -> Tensor:
    """(10, pixels) of images (n, 1, 8, 8), continued over their borders."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], dtype=x.dtype) / 4
    angles = torch.arange(8, dtype=x.dtype)[:, None, None, None] * math.pi / 4
    continued = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    slopes = functional.conv2d(continued, angles.cos() * sobel + angles.sin() * sobel.T).relu()
    return torch.cat([torch.ones_like(x), x, slopes], 1).transpose(0, 1).flatten(1)


def gram(f: Tensor) -> Tensor:
    """The mean of the products of two features."""
    return f @ f.T / f.shape[1]

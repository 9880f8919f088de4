"""Linear measurements of images, and what a mixture of Gaussians says after them, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Measurement:
    """A linear map with ``A A^T = gain I``."""

    apply: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]
    gain: float

    def missing(self, x: Tensor) -> Tensor:
        """The component that A maps to zero."""
        return x - self.transposed(self.apply(x)) / self.gain


MEASUREMENTS = {
    "inpainting, lower half missing": Measurement(
        lambda x: x[:, :, :4], lambda y: functional.pad(y, (0, 0, 0, 4)), gain=1.0
    ),
    "super-resolution, 4x4 to 8x8": Measurement(
        lambda x: functional.avg_pool2d(x, 2),
        lambda y: functional.interpolate(y, scale_factor=2.0) / 4,
        gain=0.25,
    ),
}


def ranked(measurement: Measurement, y: Tensor, images: Tensor) -> Tensor:
    """For each y the indices of ``images``, from the one that fits best to the worst, (n, images)."""
    return torch.cdist(y.flatten(1), measurement.apply(images).flatten(1)).argsort(1)


def posterior(
    measurement: Measurement, y: Tensor, images: Tensor, *, bandwidth: float, accuracy: float, seed: int
) -> tuple[Tensor, Tensor]:
    """``E[x | y]``, and one draw from ``p(x | y)`` for each y.

    x is a draw of the mixture of Gaussians of standard deviation ``bandwidth`` around ``images``, and y = A x plus
    errors of standard deviation ``accuracy``.
    """
    variance, n = measurement.gain * bandwidth**2 + accuracy**2, len(y)
    gaps = (y[:, None] - measurement.apply(images)).flatten(2)
    weights = (-gaps.square().sum(2) / (2 * variance)).softmax(1)
    towards = bandwidth**2 / variance
    mean = (weights @ images.flatten(1)).reshape(n, *images.shape[1:])
    mean = mean + towards * measurement.transposed((weights[:, None] @ gaps).reshape(y.shape))
    generator = torch.Generator().manual_seed(seed)
    component = images[torch.multinomial(weights, 1, generator=generator)[:, 0]]
    x = component + bandwidth * torch.randn(component.shape, generator=generator, dtype=y.dtype)
    error = accuracy * torch.randn(y.shape, generator=generator, dtype=y.dtype)
    # Conditioning by residuals: a draw of (x, y), moved to the y that was measured.
    return mean, x + towards * measurement.transposed(y - measurement.apply(x) - error)

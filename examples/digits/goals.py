"""What a sample is asked to be: a digit, with an amount of ink."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

INK_ACCURACY = 0.05  # the relative error of the ink that counts as one


@dataclass(frozen=True)
class Goal:
    """A digit for each sample, and an amount of ink."""

    classifier: nn.Module
    wish: Tensor
    wished_ink: Tensor

    def probability(self, x: Tensor) -> Tensor:
        return self.classifier(x).softmax(1).gather(1, self.wish[:, None])[:, 0]

    def ink(self, x: Tensor) -> Tensor:
        """Over what is wished."""
        return ink(x) / self.wished_ink

    def losses(self, x: Tensor) -> Tensor:
        digit = functional.cross_entropy(self.classifier(x), self.wish, reduction="none")
        return digit + (self.ink(x) - 1).square() / (2 * INK_ACCURACY**2)


def ink(x: Tensor) -> Tensor:
    """The average darkness of each image, in [0, 1] but for the grain."""
    return (x.flatten(1).mean(1) + 1) / 2

"""Real images with an exact score: scikit-learn's digits as a Gaussian mixture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdeadjoint.problems.base import Cond
from sdeadjoint.problems.mixture import Mixture

CLASSES = 10


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Digits(Mixture):
    """The 1797 handwritten digits that come with scikit-learn, (1, 8, 8), each blurred by a Gaussian in pixel space.

    ``x_0 ~ sum_k w_k N(image_k, bandwidth^2)``: a kernel density estimate, whose score at any noise level is
    a closed formula, an image model without training. It generates its own images plus noise of standard
    deviation ``bandwidth`` and nothing between them, so it shows that gradients are right, not that a model
    generalises.

    Args:
        bandwidth: standard deviation of each component; pixels span [-1, 1] in steps of 1/8. Responsibilities
            carry a relative error of about ``1e-14 / bandwidth^2``: keep it above 1e-4.
        conditional: ``w_k = 1/1797`` if False. If True everything takes ``cond={"label": logits}``, logits of
            shape (batch, 10), and image k of class c weighs ``softmax(logits)_c / (number of images of class
            c)``: differentiable in the logits; ``-inf`` excludes a class; zeros make all classes equally
            likely.

    Attributes: ``images`` float64 (1797, 1, 8, 8) in [-1, 1], ``labels`` int64 (1797,).

    Cost: (batch, 1797) float64 numbers and two matrix products with the images per evaluation. Nothing is
    downloaded. Needs the optional extra: ``pip install sdeadjoint[digits]``. Source: Alpaydin and Kaynak
    (1998), UCI "Optical Recognition of Handwritten Digits", its test set.
    """

    bandwidth: float
    conditional: bool
    labels: Tensor

    def __init__(self, bandwidth: float = 0.1, conditional: bool = False) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("Digits needs scikit-learn's images: pip install sdeadjoint[digits]") from error
        if isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float) or not bandwidth > 0:
            raise ValueError(f"bandwidth: got {bandwidth!r}; pass a positive standard deviation, such as 0.1")
        data = load_digits()
        images = torch.from_numpy(data.images).double().unsqueeze(1) / 8 - 1
        super().__init__([1.0] * len(images), images, float(bandwidth) ** 2)
        labels = torch.from_numpy(data.target).long()
        for name, value in (("bandwidth", bandwidth), ("conditional", conditional), ("labels", labels)):
            object.__setattr__(self, name, value)

    @property
    def images(self) -> Tensor:
        """The components' means: float64 (1797, 1, 8, 8), from -1 (paper) to 1 (ink)."""
        return self.means

    @property
    def _constants(self) -> tuple[Tensor, ...]:
        """The mixture's, the class of each image, and the logarithm of that class's size."""
        log_sizes = torch.bincount(self.labels, minlength=CLASSES).double().log()
        return (*super()._constants, self.labels, log_sizes[self.labels])

    def _log_weights(self, cond: Cond, batch: int, device: torch.device) -> Tensor:
        if not self.conditional:
            return super()._log_weights(cond, batch, device)
        if not cond or set(cond) != {"label"}:
            raise ValueError(f"cond: got {sorted(cond or ())}; {self!r} needs cond={{'label': logits (batch, 10)}}")
        logits = cond["label"]
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.shape != (batch, CLASSES):
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"cond['label']: got {got}; pass real logits of shape ({batch}, {CLASSES})")
        labels, log_sizes = self._on(device)[5:]
        return logits.to(device, torch.float64).log_softmax(1)[:, labels] - log_sizes

    def __repr__(self) -> str:
        return f"Digits(bandwidth={self.bandwidth!r}, conditional={self.conditional!r})"

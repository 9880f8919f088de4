"""scikit-image's faces, and the law that the network was trained on, whose score is known."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...problems import Mixture

SIDE = 24
TRAINING_FACES = 90  # the other 10 are held out
BANDWIDTH = 0.02  # pixels span [-1, 1]: two and a half of 256 grey levels, which nobody sees


@cache
def faces() -> Tensor:
    """The 100 faces, float64 (100, 1, 25, 25), from -1 (black) to 1 (white).

    They are in scikit-image's wheel; nothing is downloaded. Source: Huang et al. (2007), "Labeled Faces in the Wild".
    """
    from skimage.data import lfw_subset

    return 2 * torch.from_numpy(lfw_subset()[:100]).double().unsqueeze(1) - 1


def seen() -> Tensor:
    """The images that training draws from: eight crops of each of the first 90 faces."""
    return crops(faces()[:TRAINING_FACES])


def unseen() -> Tensor:
    """Eight crops of each of the 10 faces that are held out."""
    return crops(faces()[TRAINING_FACES:])


def crops(images: Tensor) -> Tensor:
    """The four corners (24 x 24) of every image (n, 1, 25, 25), and their mirror images: (8 n, 1, 24, 24)."""
    corners = torch.cat([images[..., i : i + SIDE, j : j + SIDE] for i in (0, 1) for j in (0, 1)])
    return torch.cat([corners, corners.flip(-1)])


def law() -> Mixture:
    """What training draws: one of the crops at random, plus noise of standard deviation ``BANDWIDTH``."""
    images = seen()
    return Mixture([1.0] * len(images), images, BANDWIDTH**2)

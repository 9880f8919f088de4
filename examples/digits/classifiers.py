"""A small classifier of the digits, trained when it is needed: what the audits attack, and what the wishes ask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TRAINING_IMAGES = 1437  # the first writers'; the other 360 images are held out
ITERATIONS = 300


def trained(images: Tensor, labels: Tensor, *, seed: int, noise: float = 0.0) -> nn.Module:
    """A perceptron 64-128-10 in float64 with a smooth activation, frozen; the same for the same seed. About one second.

    ``images`` (n, 1, 8, 8) in [-1, 1], ``labels`` (n,). Each iteration sees all images, blurred by Gaussian noise of
    standard deviation ``noise``: 0 makes a classifier that is accurate and easily fooled, 0.6 one that judges shapes
    and not single pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10)).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(ITERATIONS):
        blur = noise * torch.randn(images.shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        functional.cross_entropy(network(images + blur), labels).backward()
        optimizer.step()
    return network.requires_grad_(False)


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of ``images`` that is classified as ``labels`` say."""
    return float((classifier(images).argmax(1) == labels).double().mean())

"""A small classifier of the digits, trained when it is needed: what the audits attack, and what the wishes ask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

TRAINING_IMAGES = 1437  # the first writers'; the other 360 images are held out
BATCH, ITERATIONS = 512, 300


def trained(images: Tensor, labels: Tensor, *, seed: int, noise: float = 0.0, batch: int = BATCH) -> nn.Module:
    """A perceptron 64-128-10 with a smooth activation, frozen; the same for the same seed. About one second.

    Trained in float32, as weights need no more, and returned in float64, as the images are.
    ``images`` (n, 1, 8, 8) in [-1, 1], ``labels`` (n,). Each iteration sees ``batch`` images at random, or all if there
    are no more than that, blurred by Gaussian noise of standard deviation ``noise``: 0 makes a classifier that is
    accurate and easily fooled, 0.6 one that judges shapes and not single pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))
    images = images.float()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(ITERATIONS):
        seen, named = images, labels
        if len(images) > batch:
            chosen = torch.randint(len(images), (batch,), generator=generator)
            seen, named = images[chosen], labels[chosen]
        if noise:
            seen = seen + noise * torch.randn(seen.shape, generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(network(seen), named).backward()
        optimizer.step()
    return network.double().requires_grad_(False)


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of ``images`` that is classified as ``labels`` say."""
    return float((classifier(images).argmax(1) == labels).double().mean())

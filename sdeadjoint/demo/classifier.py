"""A small classifier of digits: the loss that the demo differentiates through the samplers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..problems import Digits

TRAINING_IMAGES = 1437  # the first writers'; the other 360 images are held out
NOISE = 0.6  # blurs the training images, so that the classifier judges shapes and not single pixels
ITERATIONS = 300


def trained(problem: Digits, seed: int) -> nn.Module:
    """A perceptron 64-128-10 in float64, trained on the noisy images; the same for the same seed. About one second."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10)).double()
    images, labels = problem.images[:TRAINING_IMAGES], problem.labels[:TRAINING_IMAGES]
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(ITERATIONS):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        functional.cross_entropy(network(images + NOISE * noise), labels).backward()
        optimizer.step()
    return network.requires_grad_(False)


def accuracy(classifier: nn.Module, problem: Digits) -> float:
    """The part of the held-out images that it gets right."""
    return share(classifier, problem.images[TRAINING_IMAGES:], problem.labels[TRAINING_IMAGES:])


def share(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The part of ``images`` that is classified as ``labels`` say."""
    return float((classifier(images).argmax(1) == labels).double().mean())

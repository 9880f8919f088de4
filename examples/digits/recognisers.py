"""Two recognisers of handwriting: do two images show the same digit?

Each is a network that maps an image to a unit vector; two images match if the cosine of their vectors is above a
threshold. As in biometrics, the threshold is the least at which no more than one in a thousand pairs of images of
*different* digits matches (a false-match rate, FMR, of 0.1 %), on images that were not trained on. An identity is a
digit, all images of it are its bona fide images, and a recogniser is trained in seconds.

Source of the training loss: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition" (CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa

TRAINING_IMAGES = 1437  # at random; the other 360 are held out, by the same writers
FALSE_MATCH_RATE = 1e-3
DIMENSIONS = 16
SCALE, MARGIN = 8.0, 0.7
GRAIN, WARP = 0.1, 0.08  # standard deviations of the pixels and of the affine map's entries, fresh in each iteration
BATCH, RATE = 128, 1e-2


@dataclass(frozen=True)
class Recogniser:
    """``impostors``: held-out pairs of different digits, of which ``false_matches`` pass the threshold.

    ``true_match_rate``: the part of the held-out pairs of equal digits that passes.
    """

    name: str
    network: nn.Module
    threshold: float
    impostors: int
    false_matches: int
    true_match_rate: float

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """Cosines of the embeddings, (n,), differentiable in both images (n, 1, 8, 8)."""
        return (embedding(self.network, x) * embedding(self.network, y)).sum(1)

    def accepts(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether x is taken for the digit of y, (n,)."""
        return self.similarity(x, y) > self.threshold


def embedding(network: nn.Module, x: Tensor) -> Tensor:
    return functional.normalize(network(x), dim=1)


def split(problem: sa.problems.Digits, seed: int) -> tuple[Tensor, Tensor]:
    """The places of the training images and of those held out."""
    places = torch.randperm(len(problem.images), generator=torch.Generator().manual_seed(seed))
    return places[:TRAINING_IMAGES], places[TRAINING_IMAGES:]


def trained(problem: sa.problems.Digits, seed: int) -> tuple[Recogniser, Recogniser]:
    """A convolutional one and a perceptron, float64, a function of the seed; a few seconds."""
    return (
        _recogniser("convolutional", _convolutional, problem, seed, iterations=400),
        _recogniser("perceptron", _perceptron, problem, seed, iterations=600),
    )


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.SiLU(), nn.Conv2d(32, 48, 3, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(768, DIMENSIONS),
    )  # fmt: skip


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 384), nn.SiLU(), nn.Dropout(0.2), nn.Linear(384, DIMENSIONS))


def _recogniser(
    name: str, make: Callable[[], nn.Module], problem: sa.problems.Digits, seed: int, iterations: int
) -> Recogniser:
    training, held_out = split(problem, seed)
    images, labels = problem.images[training].float(), problem.labels[training]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, centres = make(), nn.Parameter(torch.randn(10, DIMENSIONS))
        optimizer = torch.optim.AdamW([*network.parameters(), centres], lr=RATE, weight_decay=1e-2)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for _ in range(iterations):
            batch = torch.randint(len(images), (BATCH,))
            cosines = embedding(network, _retaken(images[batch])) @ functional.normalize(centres, dim=1).T
            handicap = MARGIN * functional.one_hot(labels[batch], 10)
            optimizer.zero_grad()
            functional.cross_entropy(SCALE * (cosines - handicap), labels[batch]).backward()
            optimizer.step()
            decay.step()
    network = network.double().eval().requires_grad_(False)
    return Recogniser(name, network, *_calibrated(network, problem.images[held_out], problem.labels[held_out]))


def _retaken(images: Tensor) -> Tensor:
    """The images as another scan would show them: moved, stretched, turned a little, with grain."""
    maps = torch.eye(2, 3) + WARP * torch.randn(len(images), 2, 3)
    places = functional.affine_grid(maps, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images + 1, places, align_corners=False) - 1  # outside of the image is paper, -1
    return moved + GRAIN * torch.randn_like(moved)


def _calibrated(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, int, int, float]:
    """Threshold; pairs of different digits, and how many are above it; the part of the pairs of equal ones that is."""
    vectors = embedding(network, images)
    first, second = torch.triu_indices(len(images), len(images), 1)
    cosines, same = (vectors @ vectors.T)[first, second], labels[first] == labels[second]
    impostors = cosines[~same].sort(descending=True).values
    threshold = float(impostors[int(FALSE_MATCH_RATE * len(impostors))])  # those strictly above it are false matches
    false_matches = int((impostors > threshold).sum())
    return threshold, len(impostors), false_matches, float((cosines[same] > threshold).double().mean())

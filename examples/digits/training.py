"""Trains the U-Net of the digits: ``python -m examples.digits.training --out unet.safetensors``, minutes on two cores.

The loss is the mean squared error of the predicted v at random times, the published weights an exponential moving
average. The first 1437 images only: the writers of the other 360 stay unknown to the network. The same seed gives the
same weights on the same machine with the same number of threads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

import sdeadjoint as sa
from examples.digits.classifiers import TRAINING_IMAGES
from examples.digits.unet import NONE, PREDICTION, SCHEDULE, UNet

SEED = 0
ITERATIONS = 3000
BATCH = 128
RATE = 2e-3
DECAY = 0.995  # of the moving average: it looks back some 200 iterations
NAMELESS = 0.1  # share of the images whose label is dropped, for classifier-free guidance


def train(iterations: int = ITERATIONS, seed: int = SEED) -> tuple[UNet, list[float]]:
    """The averaged network, and the loss of every iteration."""
    digits = sa.problems.Digits()
    images, labels = digits.images[:TRAINING_IMAGES].float(), digits.labels[:TRAINING_IMAGES]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    losses = []
    for _ in (bar := trange(iterations, desc="training")):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = v_error(network, images[chosen], drop_some(labels[chosen], generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        averaged.update_parameters(network)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}", refresh=False)
    network.load_state_dict(averaged.module.state_dict())
    return network.eval(), losses


def drop_some(labels: Tensor, generator: torch.Generator) -> Tensor:
    """The labels, a tenth of them replaced by ``NONE``."""
    return torch.where(torch.rand(labels.shape, generator=generator) < NAMELESS, NONE, labels)


def v_error(network: UNet, x_0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """``mean (v - network)^2`` at ``x = alpha x_0 + sigma eps``, ``v = alpha eps - sigma x_0``, t uniform on [0, 1]."""
    assert PREDICTION == "v_prediction"
    t = torch.rand(len(x_0), generator=generator, dtype=torch.float64)
    alpha, sigma = (values.float()[:, None, None, None] for values in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    eps = torch.randn(x_0.shape, generator=generator)
    predicted = network(alpha * x_0 + sigma * eps, t.float(), embedding=network.classes(labels))
    return functional.mse_loss(predicted, alpha * eps - sigma * x_0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the weights go; a new file")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out: {arguments.out} exists; remove it, or name another file")
    network, losses = train(arguments.iterations, arguments.seed)
    last = losses[-100:]
    print(f"loss: {losses[0]:.3f} at first, {sum(last) / len(last):.3f} in the mean of the last {len(last)} iterations")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), arguments.out)
    print(f"{sum(p.numel() for p in network.parameters())} weights are in {arguments.out}")


if __name__ == "__main__":
    main()

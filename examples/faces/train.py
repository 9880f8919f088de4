"""Trains the demo's U-Net of faces: ``python -m examples.faces.train --out unet.npz``, some four minutes of one core.

The images are draws from ``sdeadjoint.demo.faces.images.law()``: a random crop of one of the first 90 faces of
scikit-image's ``lfw_subset``, mirrored or not, plus noise of standard deviation 0.02. The exact score of that law is
known, and the demo compares. The loss is the mean squared error of the predicted v at times spread evenly over [0, 1];
the weights kept are an exponential moving average, in half precision. The same seed gives the same weights on the same
machine with one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import trange

from sdeadjoint.demo.faces import images, unet

SEED = 0
ITERATIONS = 2000
BATCH = 32
RATE = 2e-3
WARM = 0.05  # share of the iterations in which the rate rises; it falls to nothing in the others
DECAY = 0.998  # of the moving average: it looks back some 500 iterations


def train(iterations: int = ITERATIONS, seed: int = SEED) -> tuple[unet.UNet, list[float]]:
    """The averaged network, and the loss of every iteration."""
    seen = images.seen().float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = unet.UNet()
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, iterations, pct_start=WARM)
    losses = []
    for _ in (bar := trange(iterations, desc="training")):
        chosen = torch.randint(len(seen), (BATCH,), generator=generator)
        x_0 = seen[chosen] + images.BANDWIDTH * torch.randn(BATCH, 1, 24, 24, generator=generator)
        loss = v_error(network, x_0, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rates.step()
        averaged.update_parameters(network)
        losses.append(loss.item())
        bar.set_postfix(loss=f"{sum(losses[-100:]) / len(losses[-100:]):.4f}", refresh=False)
    network.load_state_dict(averaged.module.state_dict())
    return network.eval(), losses


def v_error(network: unet.UNet, x_0: Tensor, generator: torch.Generator) -> Tensor:
    """``mean (v - network)^2`` at ``x = alpha x_0 + sigma eps``, ``v = alpha eps - sigma x_0``.

    Of n images, one has its time in each n-th part of [0, 1]: the loss is less noisy than with independent times.
    """
    assert unet.PREDICTION == "v_prediction"
    n = len(x_0)
    t = (torch.arange(n, dtype=torch.float64) + torch.rand(n, generator=generator, dtype=torch.float64)) / n
    levels = (unet.SCHEDULE.alpha(t), unet.SCHEDULE.sigma(t))
    alpha, sigma = (values.float()[:, None, None, None] for values in levels)
    eps = torch.randn(x_0.shape, generator=generator)
    predicted = network(alpha * x_0 + sigma * eps, t.float())
    return functional.mse_loss(predicted, alpha * eps - sigma * x_0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the weights go; a new file")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out: {arguments.out} exists; remove it, or name another file")
    torch.set_num_threads(1)
    network, losses = train(arguments.iterations, arguments.seed)
    last = losses[-100:]
    print(f"loss: {losses[0]:.3f} at first, {sum(last) / len(last):.3f} in the mean of the last {len(last)} iterations")
    unet.save(network, arguments.out)
    print(f"{sum(p.numel() for p in network.parameters())} weights are in {arguments.out}")


if __name__ == "__main__":
    main()

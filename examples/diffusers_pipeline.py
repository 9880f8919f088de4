"""A diffusers pipeline with its own gradient, in the memory of one of its steps.

The task: a Stable-Diffusion-shaped pipeline (a UNet with cross attention, a VAE, DPM-Solver++ or DDIM, classifier-free
guidance) draws an image; the gradient of a loss on that image goes back through the VAE and through every step of the
sampler, into the initial latents, into the prompt's embeddings and into the weights of a LoRA. The models are small
and have random weights, so nothing is downloaded; a real pipeline's ``unet``, ``vae`` and ``scheduler`` take the same
lines.

Measured: ``adapter.sample(...)`` with ``Checkpoint()`` against plain backpropagation through diffusers' own loop: the
relative difference of each gradient, the peak memory of all tensors besides the weights, and for one row
seconds, which grow with N. Both are in float32, and so are the differences. Plain backpropagation keeps the
activations of N steps, ``Checkpoint()`` those of one: its peak is at most 1.3 / N of the other.

Then Adam descends on all three at once. Look at: noise turns into the landscape that was wished for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import sdeadjoint as sa
from examples.output import COLOURS, figure, main, table
from examples.tiny_pipeline import add_lora, landscape, unet, vae
from sdeadjoint.memory import PeakMemory

SEED = 0
SCALE = 3.0  # of the guidance
FRACTION = 1.3
STEPS, ITERATIONS, RATES = 4, 18, (0.32, 0.32, 0.032)  # of the descent; rates of KINDS
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "DDIM": lambda: diffusers.DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "DPM-Solver++ 2M": lambda: diffusers.DPMSolverMultistepScheduler(**SD),
}
TIMED = ("DPM-Solver++ 2M", 5)
CASES = (("DDIM", 5), TIMED, ("DPM-Solver++ 2M", 10), ("DPM-Solver++ 2M", 25))
KINDS = ("latents", "prompt", "LoRA")


class Pipeline:
    """What a Stable Diffusion pipeline holds, and the three kinds of tensors to differentiate with respect to."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.unet, self.vae = unet(), vae()
        self.lora = add_lora(self.unet)
        self.latents = torch.randn(1, 4, 16, 16, requires_grad=True)
        self.prompt = torch.randn(1, 8, 32, requires_grad=True)  # what a text encoder would return
        self.negative = torch.zeros(1, 8, 32)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    def image(self, scheduler: Any, steps: int) -> Tensor:
        """By the adapter; the gradient in the memory of one step."""
        guidance = sa.Guidance(SCALE, {"encoder_hidden_states": self.negative})
        adapter = sa.adapters.from_diffusers(self.unet, scheduler, guidance=guidance)
        cond = {"encoder_hidden_states": self.prompt}
        return self.decode(adapter.sample(self.latents, steps=steps, cond=cond, adjoint=sa.Checkpoint()))

    def plain_image(self, scheduler: Any, steps: int) -> Tensor:
        """By the loop of diffusers' own pipelines, with all activations kept."""
        x, embeddings = self.latents, torch.cat([self.negative, self.prompt])
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), t)
            negative, positive = self.unet(both, t, encoder_hidden_states=embeddings).sample.chunk(2)
            x = scheduler.step(negative + SCALE * (positive - negative), t, x).prev_sample
        return self.decode(x)


@dataclass(frozen=True)
class Case:
    """One scheduler and number of steps; ``errors`` in the order of ``KINDS``, peaks in bytes, plain before ours."""

    scheduler: str
    steps: int
    errors: tuple[float, ...]
    plain_peak: int
    peak: int
    seconds: tuple[float, float] | None

    @property
    def fraction(self) -> float:
        return self.peak / self.plain_peak


@dataclass(frozen=True)
class Result:
    """``put_back``: the loss in the end, but with one of ``KINDS`` as it was in the beginning."""

    cases: tuple[Case, ...]
    losses: tuple[float, ...]
    put_back: tuple[float, ...]


def measure(pipeline: Pipeline, name: str, steps: int) -> Case:
    leaves, target = [pipeline.latents, pipeline.prompt, *pipeline.lora], landscape()

    def gradients(image: Callable[[Any, int], Tensor]) -> tuple[Tensor, ...]:
        loss = (image(SCHEDULERS[name](), steps) - target).square().mean()
        latents, prompt, *lora = torch.autograd.grad(loss, leaves)
        return latents, prompt, torch.cat([each.flatten() for each in lora])

    def measured(image: Callable[[Any, int], Tensor]) -> tuple[tuple[Tensor, ...], int]:
        with PeakMemory() as memory:
            found = gradients(image)
        return found, memory.peak

    def seconds(image: Callable[[Any, int], Tensor]) -> float:
        start = time.perf_counter()
        gradients(image)
        return time.perf_counter() - start

    (want, plain_peak), (got, peak) = measured(pipeline.plain_image), measured(pipeline.image)
    errors = tuple(float((g - w).norm() / w.norm()) for g, w in zip(got, want, strict=True))
    times = (seconds(pipeline.plain_image), seconds(pipeline.image)) if (name, steps) == TIMED else None
    return Case(name, steps, errors, plain_peak, peak, times)


def descend(pipeline: Pipeline) -> tuple[tuple[float, ...], tuple[float, ...], list[Tensor]]:
    """The losses on the way, those with one kind put back in the end, and all images."""
    scheduler, target, initial = SCHEDULERS["DPM-Solver++ 2M"](), landscape(), Pipeline()
    kinds: list[list[Tensor]] = [[pipeline.latents], [pipeline.prompt], [*pipeline.lora]]
    optimizer = torch.optim.Adam([{"params": kind, "lr": lr} for kind, lr in zip(kinds, RATES, strict=True)])
    losses, images, put_back = [], [], []
    for n in range(ITERATIONS + 1):
        images.append(pipeline.image(scheduler, STEPS))
        loss = (images[-1] - target).square().mean()
        losses.append(loss.item())
        if n < ITERATIONS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name in ("latents", "prompt", "unet"):
        mixed = copy.copy(pipeline)
        setattr(mixed, name, getattr(initial, name))
        put_back.append((mixed.image(scheduler, STEPS) - target).square().mean().item())
    return tuple(losses), tuple(put_back), [image.detach() for image in images]


def draw(path: Path, result: Result, images: list[Tensor]) -> None:
    with figure(path, 10.0, 5.2) as made:
        shown = (("before", images[0]), ("after 10 steps", images[10]), (f"after {ITERATIONS}", images[-1]))
        for k, (title, image) in enumerate((*shown, ("the image wished for", landscape()))):
            axis = made.add_axes((0.03 + 0.245 * k, 0.5, 0.22, 0.42))
            axis.imshow((image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_title(title, fontsize=10)
            axis.set_axis_off()
        curve, bars = made.add_axes((0.07, 0.1, 0.36, 0.31)), made.add_axes((0.55, 0.1, 0.43, 0.31))
        curve.plot(result.losses, color=COLOURS[0], linewidth=2)
        curve.set(xlabel="gradient steps", ylabel="loss of the image", ylim=(0, None))
        cases = [case for case in result.cases if case.scheduler != "DDIM"]
        for k, case in enumerate(cases):
            pair = zip(
                (case.plain_peak, case.peak), COLOURS[1::-1], ("plain backpropagation", "Checkpoint()"), strict=True
            )
            for side, (peak, colour, label) in zip((-0.2, 0.2), pair, strict=True):
                bars.bar(k + side, peak / 1e6, 0.38, color=colour, label=label if k == 0 else None)
                bars.text(k + side, peak / 1e6, f"{peak / 1e6:.1f}", ha="center", va="bottom", fontsize=8)
        names = [f"{case.steps} steps" for case in cases]
        bars.set(xticks=range(len(cases)), xticklabels=names, ylabel="peak memory, MB")
        bars.legend(frameon=False, loc="upper left")


def run(out: Path) -> Result:
    pipeline = Pipeline()
    pipeline.image(SCHEDULERS["DDIM"](), 2)  # what is done once is not timed
    cases = tuple(measure(pipeline, *case) for case in CASES)
    losses, put_back, images = descend(pipeline)
    result = Result(cases, losses, put_back)
    rows = (
        (
            f"{case.scheduler}, {case.steps} steps",
            *(f"{error:.1e}" for error in case.errors),
            *(f"{peak / 1e6:.1f}" for peak in (case.plain_peak, case.peak)),
            f"{case.fraction:.3f} <= {FRACTION / case.steps:.3f}",
            *(f"{seconds:.2f}" for seconds in case.seconds or ()),
        )
        for case in cases
    )
    columns = ["relative difference of", *(f"{kind} gradient" for kind in KINDS)]
    columns += ["MB plain", "MB ours", "fraction", "s plain", "s ours"]
    table("Checkpoint() against plain backpropagation through diffusers' own loop", columns, rows)
    descent = [("before", losses[0]), (f"after {ITERATIONS} steps", losses[-1])]
    descent += [(f"... with the first {kind}", loss) for kind, loss in zip(KINDS, put_back, strict=True)]
    table("Descent on the image's loss", ("", "loss"), ((name, f"{loss:.3f}") for name, loss in descent))
    draw(out / "diffusers_pipeline.png", result, images)
    return result


if __name__ == "__main__":
    main(run, __doc__)

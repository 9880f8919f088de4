"""Measure and draw the two pictures of the README: ``python -m tests.benchmarks.readme_pictures --out docs``.

``memory.png``: the peak memory of one gradient through 50 steps of DPM-Solver++(2M), by three methods, on the small
pipeline of ``examples/diffusers_pipeline.py`` (UNet with cross attention, guidance, VAE, LoRA), and how far each
gradient is from the one of plain backpropagation through diffusers' own loop.

``which_gradient.png``: cosine and relative error of the gradient in x_T against the gradient of the DDIM sampler that
ran, by the number of steps, on the mixture of ``sdeadjoint compare``; medians over 64 starting points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sdeadjoint as sa
from examples.diffusers_pipeline import SCALE, SCHEDULERS, Pipeline
from examples.output import COLOURS, figure, main
from examples.tiny_pipeline import landscape
from sdeadjoint.comparison import scene
from sdeadjoint.memory import PeakMemory

STEPS = 50
SCHEDULER = "DPM-Solver++ 2M"
GRIDS = (10, 14, 20, 28, 40, 56, 80)
SAMPLES = 64
METHODS = (
    sa.comparison.Method("Checkpoint(), exact", sa.Checkpoint()),
    sa.comparison.Method("ContinuousAdjoint(Heun())", sa.ContinuousAdjoint(sa.Heun())),
    sa.comparison.Method('AdjointDPM, "midpoint"', sa.adjoint_dpm("midpoint")),
    sa.comparison.Method("AdjointDEIS-1", sa.adjoint_deis(1)),
    sa.comparison.Method("AdjointDEIS-2M", sa.adjoint_deis(2)),
)
FLOOR = 1e-6  # where errors of round-off are drawn


class Bar(NamedTuple):
    """``error``: of the gradients in latents, prompt and LoRA weights, as one vector; None for the reference."""

    name: str
    peak: int
    error: float | None


def bars() -> list[Bar]:
    pipeline, target = Pipeline(), landscape()
    leaves = [pipeline.latents, pipeline.prompt, *pipeline.lora]

    def by(adjoint: sa.Adjoint | None) -> Tensor:
        if adjoint is None:
            return pipeline.plain_image(SCHEDULERS[SCHEDULER](), STEPS)
        guidance = sa.Guidance(SCALE, {"encoder_hidden_states": pipeline.negative})
        adapter = sa.adapters.from_diffusers(pipeline.unet, SCHEDULERS[SCHEDULER](), guidance=guidance)
        cond = {"encoder_hidden_states": pipeline.prompt}
        return pipeline.decode(adapter.sample(pipeline.latents, steps=STEPS, cond=cond, adjoint=adjoint))

    def measured(name: str, adjoint: sa.Adjoint | None) -> tuple[str, int, Tensor]:
        with PeakMemory() as memory:
            loss = (by(adjoint) - target).square().mean()
            found = torch.cat([each.flatten() for each in torch.autograd.grad(loss, leaves)])
            del loss
        return name, memory.peak, found

    (plain, most, want), *others = (
        measured("plain backpropagation", None),
        measured("sdeadjoint, Checkpoint()", sa.Checkpoint()),
        measured("continuous adjoint (AdjointDEIS-1)", sa.adjoint_deis(1)),
    )
    compared = [Bar(name, peak, float((got - want).norm() / want.norm())) for name, peak, got in others]
    return [Bar(plain, most, None), *compared]


def draw_memory(path: Path, made: list[Bar]) -> None:
    with figure(path, 8.0, 2.1) as drawn:
        axis = drawn.add_axes((0.29, 0.2, 0.47, 0.64))
        for k, bar in enumerate(made):
            axis.barh(-k, bar.peak / 1e6, 0.62, color=("0.6", COLOURS[0], COLOURS[1])[k])
            axis.text(bar.peak / 1e6, -k, f"  {bar.peak / 1e6:.1f} MB", va="center")
            error = 0.0 if bar.error is None else bar.error
            told = "the reference" if bar.error is None else f"{error:.0e}" if error < 0.01 else f"{error:.2g}"
            axis.text(1.2, -k, told, va="center", ha="center", transform=axis.get_yaxis_transform())
        axis.set_xlim(0, 1.2 * max(bar.peak for bar in made) / 1e6)
        axis.set_yticks([-k for k in range(len(made))], [bar.name for bar in made])
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("peak memory besides the weights, MB")
        axis.set_title(f"One gradient through {STEPS} steps of a diffusers pipeline", loc="left", fontsize=9.5)
        axis.text(1.2, 1.06, "its relative error", ha="center", fontsize=9.5, transform=axis.transAxes)


def comparison() -> sa.comparison.Comparison:
    problem = scene.mixture(samples=SAMPLES)
    return sa.comparison.compare(
        problem.denoiser,
        problem.x_T,
        loss=problem.loss,
        frame=problem.frame,
        grids=[scene.grid(steps) for steps in GRIDS],
        solver=sa.Euler(),
        methods=METHODS,
        truth_steps=max(GRIDS),
        repeats=1,
    )


def draw_gradients(path: Path, found: sa.comparison.Comparison) -> None:
    with figure(path, 8.0, 3.0) as drawn:
        cosine, error = drawn.add_axes((0.07, 0.16, 0.27, 0.7)), drawn.add_axes((0.43, 0.16, 0.27, 0.7))
        for k, method in enumerate(found.methods):
            rows = [found.at(method, steps) for steps in found.steps]
            own: list[Any] = [gradient.own for row in rows if (gradient := row.gradient("x_T")) is not None]
            style: Any = {"color": COLOURS[k], "marker": "os^Dv"[k], "markersize": 4, "linewidth": 1.4, "label": method}
            style["zorder"] = 3 if k == 0 else 2
            cosine.plot(found.steps, [each.median_cosine for each in own], **style)
            error.plot(found.steps, [max(each.median_error, FLOOR) for each in own], **style)
        for axis in (cosine, error):
            axis.set_xscale("log")
            axis.set_xticks([10, 20, 40, 80], ["10", "20", "40", "80"])
            axis.minorticks_off()
            axis.set_xlabel("steps of the sampler")
            axis.grid(color="0.92")
        cosine.axhline(0, color="0.6", linewidth=0.8)
        cosine.set_ylim(top=1.06)
        cosine.set_title("cosine: 1 is the right direction", loc="left", fontsize=9.5)
        error.set_yscale("log")
        error.axhline(1, color="0.6", linewidth=0.8)
        error.text(12, FLOOR * 2, "round-off", color="0.4")
        error.set_title("relative error", loc="left", fontsize=9.5)
        drawn.legend(*error.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(0.715, 0.53), frameon=False)


def run(out: Path) -> None:
    made = bars()
    draw_memory(out / "memory.png", made)
    for bar in made:
        print(f"{bar.name}: {bar.peak / 1e6:.1f} MB, relative error {bar.error}", flush=True)
    found = comparison()
    draw_gradients(out / "which_gradient.png", found)
    print(found)


if __name__ == "__main__":
    main(run, __doc__)

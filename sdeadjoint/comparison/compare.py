"""The gradients of all methods compared, on one call and several grids."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..gradient_check.call import Call, Gradients, Loss
from ..noise import Noise
from ..solvers import Solver
from .methods import Method, default_methods
from .result import Comparison, Measurement
from .trial import Answer, Trial, agreements
from .truth import Solution, Truth, true_gradients

Watch = Callable[[str], None]
"""Told what is being done, before it is."""


def compare(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    loss: Loss,
    frame: Frame,
    grids: Tensor | Sequence[Tensor],
    solver: Solver,
    methods: Sequence[Method] | None = None,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    solution: Solution | None = None,
    truth_steps: int = 400,
    repeats: int = 3,
    watch: Watch | None = None,
) -> Comparison:
    """Every method's gradient of ``loss(sample(denoiser, x_T, ...))`` on every grid: cost, and errors of two kinds.

    Against the gradient of the sampler that ran (float64 plain autograd with the method's own solver), and against
    that of the exact solution: ``solution`` or the problem's closed form if there is one, else the same equation and
    path with ``truth_steps`` steps or more, the finest grid's cut into equal parts, by a solver of higher order.

    Args:
        denoiser, x_T, frame, solver, noise, cond: as for ``sample``. Gradients are taken of every tensor that requires
            one, and of the noise if it is a ``BrownianPath``, which must be refinable for there to be a truth.
        loss: from the sample to one number, a sum over the batch if samples are to be told apart.
        grids: one grid, or several with different numbers of steps and the same ends.
        methods: ``Method(name, adjoint, solver=None)``; all of the package's by default.
        solution: the exact ``x_0`` as a function of ``x_T``, differentiable.
        truth_steps: see above; the same with half as many tells how well the truth is known.
        repeats: timings per method, interleaved; their median is given.
        watch: called with a line of text before each measurement.

    A method that refuses has a row with its sentence; one that refuses the gradient of x_T or of the noise alone is
    measured without. Nothing of the caller's is changed. Memory is counted in a run of its own, never a timed one.
    Cost: per method and grid ``repeats + 3`` gradients, and for each grid one by plain autograd in float64, which must
    fit into memory: for large networks compare on a small batch.
    Errors: those of ``sample`` for arguments that do not fit; ``ValueError`` if nothing requires a gradient.
    """
    calls = [
        Call(denoiser, x_T, loss, frame, grid, solver, noise, {} if cond is None else cond)
        for grid in sorted([grids] if isinstance(grids, Tensor) else grids, key=len)
    ]
    _check(calls, truth_steps, repeats)
    picked = tuple(methods) if methods is not None else default_methods(solver, _budget(calls[-1]))
    _check_methods(picked)
    tell = watch or (lambda line: None)
    tell("the true gradient")
    finest = calls[-1].copied(torch.float64)
    wanted = tuple(finest.leaves())
    if not wanted and not isinstance(noise, Noise):
        raise ValueError("x_T: nothing requires a gradient; call requires_grad_() on what is to be differentiated")
    truth = true_gradients(finest, wanted, solution, truth_steps)
    known = truth if isinstance(truth, Truth) else None
    rows = [row for call in calls for row in _rows(call, picked, known, repeats, tell)]
    source = truth.source if isinstance(truth, Truth) else f"not known: {truth}"
    uncertainty = None if known is None else known.uncertainty
    return Comparison(_settings(calls[0], repeats), source, uncertainty, tuple(rows))


def _rows(call: Call, methods: Sequence[Method], truth: Truth | None, repeats: int, tell: Watch) -> list[Measurement]:
    """Try all methods on one grid."""
    references: dict[str, Gradients] = {repr(call.solver): Trial(methods[0], call).own_reference()}
    steps = call.recursion.steps
    rows: list[Measurement] = []
    trials: list[tuple[int, Trial]] = []
    for method in methods:
        tell(f"{steps} steps: {method.name}")
        trial = Trial.create(method, call)
        answer = trial.answer()
        row = Measurement(method.name, method.family, steps, repr(trial.call.solver), answer.refused)
        if answer.gradients is not None:
            key = repr(trial.call.solver)
            if key not in references:
                references[key] = trial.own_reference()
            trial = replace(trial, without=answer.without)
            row = _measured(row, trial, answer, references[key], truth)
            trials.append((len(rows), trial))
        rows.append(row)
    tell(f"{steps} steps: timing")
    times: dict[int, list[float]] = {k: [] for k, _ in trials}
    for _ in range(repeats):
        for k, trial in trials:
            times[k].append(trial.seconds())
    return [replace(row, seconds=statistics.median(times[k])) if k in times else row for k, row in enumerate(rows)]


def _measured(row: Measurement, trial: Trial, answer: Answer, own: Gradients, truth: Truth | None) -> Measurement:
    assert answer.gradients is not None
    return replace(
        row,
        forward_calls=answer.counts.forward,
        backward_calls=answer.counts.backward,
        products=answer.counts.products,
        peak_bytes=trial.peak_bytes(),
        round_trip=answer.round_trip,
        gradients=agreements(answer.gradients, own, None if truth is None else truth.gradients),
        warnings=answer.warnings,
    )


def _budget(call: Call) -> str:
    """Half of the memory of the whole graph on the finest grid: a budget that leaves something to recompute."""
    graph = call.copied().probe().graph_bytes(call.recursion.steps)
    return f"{-(-graph // 2048)}kiB"


def _check(calls: Sequence[Call], truth_steps: int, repeats: int) -> None:
    for name, value in (("truth_steps", truth_steps), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}; pass an integer >= 1")
    if not calls:
        raise ValueError("grids: got none; pass a grid, or several")
    times = [call.recursion.equation.times for call in calls]
    if len({len(grid) for grid in times}) < len(times) or len({(grid[0], grid[-1]) for grid in times}) > 1:
        raise ValueError(
            f"grids: got {[len(grid) - 1 for grid in times]} steps from {[grid[0] for grid in times]} to "
            f"{[grid[-1] for grid in times]}; pass grids with different numbers of steps and the same ends"
        )


def _check_methods(methods: Sequence[Method]) -> None:
    if not methods or not all(isinstance(method, Method) for method in methods):
        raise TypeError(f"methods: got {methods!r}; pass Method(name, adjoint), one at least")
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        raise ValueError(f"methods: got the names {names}; give each method a name of its own")


def _settings(call: Call, repeats: int) -> dict[str, Any]:
    """List all that the numbers depend on."""
    packages = {name: version(name) for name in ("sdeadjoint", "torch", "torchsde")}
    return {
        "denoiser": repr(call.denoiser),
        "frame": repr(call.frame),
        "solver": repr(call.solver),
        "noise": repr(call.noise),
        "shape": list(call.x_T.shape),
        "dtype": str(call.x_T.dtype).removeprefix("torch."),
        "device": str(call.x_T.device),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "versions": {"python": platform.python_version(), **packages},
    }

"""The gradients of all methods compared, on one call and several grids."""

from __future__ import annotations

import platform
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..gradient_check.call import Call, Gradients, Loss
from ..noise import Noise
from ..solvers import Solver
from ..workers import check_executor, shared
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
    executor: Executor | None = None,
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
        watch: called with a line of text before each measurement (with an executor: after it).
        executor: any ``concurrent.futures.Executor``, whose workers try the methods. Times and memory are measured
            here, afterwards; all but the times is the same bit for bit with any executor and none. See
            ``convergence.measure``.

    A method that refuses has a row with its sentence; one that refuses the gradient of x_T or of the noise alone is
    measured without. Nothing of the caller's is changed. Memory is counted in a run of its own, never a timed one.
    Cost: per method and grid ``repeats + 3`` gradients, and for each grid one by plain autograd in float64, which must
    fit into memory: for large networks compare on a small batch.
    Errors: those of ``sample`` for arguments that do not fit; ``ValueError`` if nothing requires a gradient.
    """
    check_executor(executor)
    calls = [
        Call(denoiser, x_T, loss, frame, grid, solver, noise, {} if cond is None else cond)
        for grid in sorted([grids] if isinstance(grids, Tensor) else grids, key=len)
    ]
    _check(calls, truth_steps, repeats)
    picked = tuple(methods) if methods is not None else default_methods(solver, _budget(calls[-1]))
    _check_methods(picked)
    if not calls[-1].leaves() and not isinstance(noise, Noise):
        raise ValueError("x_T: nothing requires a gradient; call requires_grad_() on what is to be differentiated")
    subject = _Subject(tuple(calls), picked, solution, truth_steps)
    found = _findings(subject, executor, watch or (lambda line: None))
    rows = _timed(subject, _rows(subject, found), repeats, watch or (lambda line: None))
    truth = found[_Job("truth")]
    if not isinstance(truth, Truth):
        return Comparison(_settings(calls[0], repeats), f"not known: {truth}", None, rows)
    return Comparison(_settings(calls[0], repeats), truth.source, truth.uncertainty, rows)


@dataclass(frozen=True, eq=False)
class _Subject:
    """All that is compared."""

    calls: tuple[Call, ...]
    methods: tuple[Method, ...]
    solution: Solution | None
    truth_steps: int

    def trial(self, grid: int, method: int) -> Trial:
        """One method on one grid; method -1 stands for the call's own solver."""
        call = self.calls[grid]
        return Trial(self.methods[0], call) if method < 0 else Trial.create(self.methods[method], call)

    def sent(self) -> _Subject:
        """The same on copies, which have no history and can be sent to workers."""
        return replace(self, calls=tuple(call.copied() for call in self.calls))


class _Job(NamedTuple):
    """A part of the comparison: the ``"truth"``, or the ``"trial"`` or ``"reference"`` of a method on a grid."""

    what: str
    grid: int = -1
    method: int = -1

    def text(self, subject: _Subject) -> str:
        if self.what == "truth":
            return "the true gradient"
        steps = subject.calls[self.grid].recursion.steps
        return f"{steps} steps: {'plain autograd' if self.what == 'reference' else subject.methods[self.method].name}"


_TURNS = threading.Lock()


def _work(subject: _Subject, job: _Job) -> tuple[_Job, Any]:
    """Do a part. Threads of one process take turns: warnings and random generators belong to the process."""
    with _TURNS:
        if job.what == "truth":
            finest = subject.calls[-1].copied(torch.float64)
            return job, true_gradients(finest, tuple(finest.leaves()), subject.solution, subject.truth_steps)
        trial = subject.trial(job.grid, job.method)
        return job, trial.own_reference() if job.what == "reference" else trial.answer()


def _findings(subject: _Subject, executor: Executor | None, tell: Watch) -> dict[_Job, Any]:
    """Do all parts: by the executor if there is one, each with the same numbers."""
    found: dict[_Job, Any] = {}

    def do(jobs: Sequence[_Job]) -> None:
        if executor is None:
            for job in jobs:
                tell(job.text(subject))
                found.update([_work(subject, job)])
            return
        with closing(shared(_work, subject.sent(), jobs, executor)) as results:
            for job, result in results:
                tell(job.text(subject))
                found[job] = result

    methods, grids = range(len(subject.methods)), range(len(subject.calls))
    do([_Job("truth")])
    do([job for k in grids for job in (_Job("reference", k), *(_Job("trial", k, m) for m in methods))])
    do([_Job("reference", *own) for own in dict.fromkeys(_own_references(subject, found))])
    return found


def _own_references(subject: _Subject, found: Mapping[_Job, Any]) -> Iterator[tuple[int, int]]:
    """Where references are still missing: one for each grid and solver that a method brought."""
    for job, answer in found.items():
        if job.what == "trial" and answer.gradients is not None:
            own = _reference_of(subject, job)
            if own.method >= 0:
                yield own.grid, own.method


def _reference_of(subject: _Subject, job: _Job) -> _Job:
    """The part that has the reference of a trial: the first method with the same solver stands for all."""
    solver = subject.trial(job.grid, job.method).call.solver
    if solver == subject.calls[job.grid].solver:
        return _Job("reference", job.grid)
    firsts = (m for m, method in enumerate(subject.methods) if method.solver == solver)
    return _Job("reference", job.grid, next(firsts))


def _rows(subject: _Subject, found: Mapping[_Job, Any]) -> list[tuple[Measurement, Trial | None]]:
    """A row for each method on each grid, with its trial if it is to be timed."""
    truth = found[_Job("truth")]
    true = truth.gradients if isinstance(truth, Truth) else None
    rows: list[tuple[Measurement, Trial | None]] = []
    for k, call in enumerate(subject.calls):
        for m, method in enumerate(subject.methods):
            trial, answer = subject.trial(k, m), found[_Job("trial", k, m)]
            steps, solver = call.recursion.steps, repr(trial.call.solver)
            refused, budget = answer.refused, method.budget_bytes
            row = Measurement(method.name, method.family, steps, solver, refused, budget_bytes=budget)
            if answer.gradients is None:
                rows.append((row, None))
                continue
            own = found[_reference_of(subject, _Job("trial", k, m))]
            rows.append((_measured(row, answer, own, true), replace(trial, without=answer.without)))
    return rows


def _measured(row: Measurement, answer: Answer, own: Gradients, true: Gradients | None) -> Measurement:
    assert answer.gradients is not None
    return replace(
        row,
        forward_calls=answer.counts.forward,
        backward_calls=answer.counts.backward,
        products=answer.counts.products,
        round_trip=answer.round_trip,
        gradients=agreements(answer.gradients, own, true),
        warnings=answer.warnings,
    )


def _timed(
    subject: _Subject, rows: Sequence[tuple[Measurement, Trial | None]], repeats: int, tell: Watch
) -> tuple[Measurement, ...]:
    """Time each grid's methods in turn, here and one after another, when all else is done, and count their memory.

    A thread of an executor may hold a few numbers in a cache that another one does not, so memory is counted here too.
    """
    timed: list[Measurement] = []
    for call in subject.calls:
        steps = call.recursion.steps
        tell(f"{steps} steps: time and memory")
        own = [(row, trial) for row, trial in rows if row.steps == steps]
        times: dict[str, list[float]] = {row.method: [] for row, _ in own}
        for _ in range(repeats):
            for row, trial in own:
                if trial is not None:
                    times[row.method].append(trial.seconds())
        timed += [
            row
            if trial is None
            else replace(row, seconds=statistics.median(times[row.method]), peak_bytes=trial.peak_bytes())
            for row, trial in own
        ]
    return tuple(timed)


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


def _problem(call: Call) -> str:
    """The network, its schedule and the member of the family, in a line."""
    network, frame = call.denoiser.network, call.frame
    name = getattr(network, "__name__", type(network).__name__)
    return f"{name} on {frame.schedule!r}, eta = {frame.eta:g}, {frame.kind} kind"


def _settings(call: Call, repeats: int) -> dict[str, Any]:
    """List all that the numbers depend on."""
    packages = {name: version(name) for name in ("sdeadjoint", "torch", "torchsde")}
    return {
        "problem": _problem(call),
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

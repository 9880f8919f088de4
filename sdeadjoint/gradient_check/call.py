"""A call of ``sample`` with a loss, as a value: its tensors by name, copies of it, its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import nests
from ..adjoints import Adjoint, Direct
from ..adjoints.replay.graphs import dependencies
from ..adjoints.replay.leaves import distinct
from ..arguments import check_state, check_types
from ..conditioning import Scheduled
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion, check_diffusion
from ..diffusion.frames import Frame
from ..memory import PeakMemory
from ..noise import Noise
from ..recursion import Carry, Recursion
from ..sample import sample
from ..solvers import Solver

Loss = Callable[[Tensor], Tensor]
"""``loss(x_0)``: a tensor with one number."""

Gradients = dict[str, Tensor | None]
"""By the name of a tensor; None where the loss does not depend on it."""


class Probe(NamedTuple):
    """One step: bytes its graph keeps, peak bytes while it was made, and leaves it read that nobody declared."""

    kept: int
    peak: int
    undeclared: list[Tensor]

    def graph_bytes(self, steps: int) -> int:
        """Estimate for the graph of all steps."""
        return steps * self.kept + self.peak - self.kept


@dataclass(frozen=True, eq=False)
class Call:
    """``loss(sample(denoiser, x_T, frame=..., ...))``, everything but the adjoint."""

    denoiser: Denoiser
    x_T: Tensor
    loss: Loss
    frame: Frame
    grid: Tensor | Sequence[float]
    solver: Solver
    noise: Noise | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_state("x_T", self.x_T)
        check_types(("solver", self.solver, Solver, "a solver such as Heun()"))
        check_diffusion(self.denoiser, self.frame, self.cond)
        if not callable(self.loss):
            raise TypeError(f"loss: got {type(self.loss).__name__}; pass a function from the sample to one number")

    @property
    def recursion(self) -> Recursion:
        """The recursion that ``sample`` solves."""
        equation = Diffusion.create(self.denoiser, self.frame, self.grid, self.cond).starting_at(self.x_T)
        return Recursion.create(equation, self.solver, self.noise, self.x_T)

    def leaves(self) -> dict[str, Tensor]:
        """Return every tensor of the call that requires a gradient, once, under the first name it has.

        Names: ``x_T``, ``cond.style[0]``, ``noise.increments``, ``noise.levy_areas``, ``guidance.scale``, and those of
        the denoiser's parameters, ``network.layer.weight``.
        """
        found: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in self._named():
            if tensor.requires_grad:
                found.setdefault(id(tensor), (name, tensor))
        return dict(found.values())

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield "x_T", self.x_T
        yield from _paths(self.cond, "cond")
        bound = self.recursion.noise
        names = {id(tensor): name for name, tensor in (self.noise.tensors if self.noise is not None else {}).items()}
        for i, tensor in enumerate(() if bound is None else bound.tensors):
            yield f"noise.{names[id(tensor)]}" if id(tensor) in names else f"noise[{i}]", tensor
        if self.denoiser.guidance is not None:
            yield from _paths(self.denoiser.guidance.tensors, "guidance")
        yield from self.denoiser.named_parameters()

    def copied(self, dtype: torch.dtype | None = None) -> Call:
        """Return the call on copies of all that holds tensors, floating ones cast to ``dtype`` if it is given.

        Copies share no memory, no ``.grad`` and no history with the originals; a tensor given twice is still one. A
        function as network is not copied, nor are the tensors that it closes over.
        """
        schedules = (self.frame.schedule, self.denoiser.schedule)
        memo: dict[int, Any] = {id(schedule): schedule for schedule in schedules}

        def twin(tensor: Tensor) -> Tensor:
            return memo.setdefault(id(tensor), _twin(tensor, dtype))

        x_T, cond = twin(self.x_T), nests.map_tensors(twin, self.cond)
        if (guidance := self.denoiser.guidance) is not None:
            memo[id(guidance)] = replace(guidance, **nests.map_tensors(twin, guidance.tensors))
        try:
            denoiser = copy.deepcopy(self.denoiser, memo)
            noise = self.noise
            if noise is not None:
                named = noise.tensors
                noise = noise.on({k: twin(v) for k, v in named.items()}) if named else copy.deepcopy(noise, memo)
        except (RuntimeError, TypeError) as error:
            raise TypeError(
                "denoiser, noise: gradients are compared on copies, and copy.deepcopy failed "
                f"({type(error).__name__}: {error}); pass a network and noise that it can copy"
            ) from error
        if dtype is not None:
            denoiser.to(dtype)
            denoiser.time_dtype = None if denoiser.time_dtype is None else dtype
            denoiser.network_dtype = None
        return replace(self, denoiser=denoiser, x_T=x_T, cond=cond, noise=noise)

    def gradients(self, adjoint: Adjoint, wanted: Mapping[str, Tensor]) -> tuple[float, Gradients]:
        """Return the loss and its gradients under an adjoint; no ``.grad`` and no generator is changed."""
        with generators_kept(self.x_T.device):
            loss = self.evaluate(adjoint)
            if not loss.requires_grad:
                raise RuntimeError(f"{adjoint!r}: the loss does not depend on any of {', '.join(wanted)}")
            grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return float(loss.detach()), dict(zip(wanted, grads, strict=True))

    def evaluate(self, adjoint: Adjoint) -> Tensor:
        """The loss, a tensor with one number."""
        x = sample(
            self.denoiser,
            self.x_T,
            frame=self.frame,
            grid=self.grid,
            solver=self.solver,
            noise=self.noise,
            cond=self.cond,
            adjoint=adjoint,
        )
        loss = self.loss(x)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
            got = f"{loss.dtype} {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss: returned {got}; it must return one real number, such as loss(x).sum()")
        return loss.sum()

    def value(self) -> float:
        """Return the loss alone, without a graph; none of the call's own tensors may require a gradient."""
        with generators_kept(self.x_T.device), torch.no_grad():
            return float(self.evaluate(Direct()))

    def probe(self) -> Probe:
        """Make one step with its graph; to be asked of a copy."""
        known = [tensor for _, tensor in self._named()]
        recursion = self.recursion
        increment = recursion.increment(0)  # a path's own memory is not an activation
        with generators_kept(self.x_T.device), torch.enable_grad(), PeakMemory() as memory:
            y = recursion.equation.enter(self.x_T)
            out = recursion.step(0, recursion.start(y), increment)
            found = dependencies(nests.tensors(out)).leaves_but(known)
        late = self._late_leaves(nests.map_tensors(Tensor.detach, out), known)
        return Probe(memory.live, memory.peak, distinct([*found, *late]))

    def _late_leaves(self, carry: Carry, known: list[Tensor]) -> Iterator[Tensor]:
        """Find leaves that the network reads after the first step only: it may read some at some times."""
        recursion = self.recursion
        for n in range(1, recursion.steps):
            with generators_kept(self.x_T.device), torch.enable_grad():
                out = recursion.step(n, carry, recursion.increment(n))
            yield from dependencies(nests.tensors(out)).leaves_but(known)
            carry = nests.map_tensors(Tensor.detach, out)


def generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """Put torch's global generators back afterwards: the CPU's and the device's."""
    return torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type)


def _paths(nest: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nest with the way that leads to each."""
    if isinstance(nest, Tensor):
        yield name, nest
    elif isinstance(nest, Scheduled):
        yield from _paths(nest.values, name)
    elif isinstance(nest, Mapping):
        for key, value in nest.items():
            yield from _paths(value, f"{name}.{key}")
    elif isinstance(nest, list | tuple):
        for i, value in enumerate(nest):
            yield from _paths(value, f"{name}[{i}]")


def _twin(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    copied = tensor.detach().to(target, copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)

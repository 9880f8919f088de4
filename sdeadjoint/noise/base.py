"""What the sampler asks of its noise: Brownian increments of a step, keyed by the step's integer index.

A noise object (:class:`Noise`) is created without knowing the problem. ``bind`` shows it the noise clock of
one grid and the state of one solve, and the result (:class:`BoundNoise`) answers ``increment(n)`` for step
``n``, any number of times, in any order, with the same numbers. Steps are named by index and never by time: a
time recomputed in the backward pass that is off by one unit in the last place would shift an increment by
about ``sqrt(2 delta/h)`` of its size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C import _functorch


class Increment(NamedTuple):
    """The noise of one step of length ``h = nu[n+1] - nu[n]`` on the noise clock, each of the state's shape.

    - ``dB = B(nu[n+1]) - B(nu[n])``, of law N(0, h).
    - ``H = (1/h) * integral over the step of (B(r) - B(nu[n]) - ((r - nu[n])/h) dB) dr``, the space-time Levy
      area, of law N(0, h/12) and independent of ``dB``; ``None`` where it was not asked for. (Foster, Lyons,
      Oberhauser, "An optimal polynomial approximation of Brownian motion", 2020, definition 3.5; torchsde
      returns ``U = h (dB/2 + H)``.)
    """

    dB: Tensor
    H: Tensor | None


class BoundNoise(ABC):
    """Noise bound to the steps of one grid and to the shape, dtype and device of one state. The contract:

    1. ``increment(n)`` depends on ``n`` only, bitwise: not on earlier calls, their order, or a global generator.
    2. It is in the dtype and on the device of ``like``, and no in-place edit of it changes a later answer,
       unless it is itself one of ``tensors``.
    3. A step over which the clock stands still, or that ends at ``+inf``, injects no noise: its increment is 0.
    4. ``tensors`` lists every tensor whose gradient or in-place change matters to the answers, and ``pull_back``
       takes gradients of the answers to them.
    5. ``push_forward`` takes tangents of ``tensors`` to those of the answers. ``is_linear`` says that both are the same
       whatever the values of ``tensors``; noise that does not say so has second derivatives, which ``bend`` gives.
    """

    is_linear: ClassVar[bool] = False

    @abstractmethod
    def increment(self, n: int) -> Increment:
        """The noise of step ``n``, from node ``n`` to node ``n + 1``; ``IndexError`` unless ``0 <= n < steps``."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the noise is made of, a caller's leaves, in a fixed order; empty for a seed."""

    def pull_back(self, n: int, grads: Sequence[Tensor | None], totals: list[Tensor | None]) -> None:
        """Add the gradients through step n's noise to ``totals``, which has a place for each of ``tensors``.

        ``grads`` are ``dL/d(dB_n)`` and, where there are Levy areas, ``dL/dH_n``. Nothing is added for tensors that do
        not require a gradient. This is plain autograd through ``increment(n)``; noise whose step n reads a slot of a
        tensor adds to that slot instead (``add_to_slots``), at the cost of one step and not of all.
        """
        for k, grad in enumerate(self._pulled(n, grads)):
            if grad is not None:
                total = totals[k]
                totals[k] = grad.clone() if total is None else total.add_(grad)

    def push_forward(self, n: int, tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The tangents of step n's ``dB`` and, where there are Levy areas, ``H`` from those of ``tensors``.

        This is the derivative of ``pull_back`` in the gradients that it is given, in which it is linear.
        """
        parts = [part for part in self.increment(n) if part is not None]
        with torch.enable_grad():
            us = [torch.zeros_like(part).requires_grad_() for part in parts]
            pulled = self._pulled(n, us, create_graph=True)
        return _derivatives(pulled, us, tangents)

    def bend(self, n: int, grads: Sequence[Tensor | None], tangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The derivative, in ``tensors``, of the product of ``push_forward(n, tangents)`` with ``grads``."""
        with torch.enable_grad():
            pulled = self._pulled(n, grads, create_graph=True)
        return _derivatives(pulled, self.tensors, tangents)

    def _pulled(
        self, n: int, grads: Sequence[Tensor | None], *, create_graph: bool = False
    ) -> Sequence[Tensor | None]:
        """The gradients in ``tensors`` by autograd."""
        with torch.enable_grad():
            increment = self.increment(n)
        parts = (part for part in increment if part is not None)
        pairs = [
            (part, grad.to(part))
            for part, grad in zip(parts, grads, strict=False)
            if grad is not None and part.requires_grad
        ]
        wanted = [tensor for tensor in self.tensors if tensor.requires_grad]
        if not (pairs and wanted):
            return [None] * len(self.tensors)
        outputs, seeds = zip(*pairs, strict=True)
        # Retained: the noise may have computed something for all of its steps at once.
        found = iter(
            torch.autograd.grad(
                outputs, wanted, seeds, allow_unused=True, retain_graph=True, create_graph=create_graph
            )
        )
        return [next(found) if tensor.requires_grad else None for tensor in self.tensors]


def _derivatives(
    outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], seeds: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The derivatives in the inputs that require them; outputs without a graph or a seed are constants."""
    pairs = [
        (output, seed)
        for output, seed in zip(outputs, seeds, strict=True)
        if output is not None and seed is not None and output.requires_grad
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not (pairs and wanted):
        return [None] * len(inputs)
    ends, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ends, wanted, given, allow_unused=True, retain_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def add_to_slots(
    tensors: Sequence[Tensor],
    n: int,
    grads: Sequence[Tensor | None],
    totals: list[Tensor | None],
    *,
    moves: bool = True,
) -> None:
    """``pull_back`` where ``dB_n`` is ``tensors[0][n]`` and ``H_n`` is ``tensors[1][n]``, cast and shifted.

    ``moves``: whether step n injects noise; the gradient is zero otherwise.
    """
    for k, (tensor, grad) in enumerate(zip(tensors, grads, strict=False)):
        if tensor.requires_grad and grad is not None:
            total = totals[k]
            if total is None:
                # Batches of cotangents (is_grads_batched) make a batch of totals.
                batched = _functorch.is_functorch_wrapped_tensor(grad) or _functorch.is_legacy_batchedtensor(grad)
                zeros = grad.to(tensor).new_zeros(tensor.shape) if batched else torch.zeros_like(tensor)
                total = totals[k] = zeros
            if moves:
                total[n] += grad.to(total)


def push_slots(
    tangents: Sequence[Tensor | None], n: int, like: torch.dtype, device: torch.device, *, moves: bool
) -> list[Tensor | None]:
    """``push_forward`` where ``add_to_slots`` is ``pull_back``."""
    return [None if tangent is None else slot(tangent, n, moves, like, device) for tangent in tangents]


class Noise(ABC):
    """A source of Brownian increments that does not know the problem yet.

    To add one, write ``bind`` and the ``BoundNoise`` it returns, and for noise that is made of a caller's tensors
    ``tensors`` and ``on``: one file, which ``sdeadjoint.testing.check_noise`` checks.
    """

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The caller's tensors that the noise is made of, by the names of its arguments; none for a seed."""
        return {}

    def on(self, tensors: Mapping[str, Tensor]) -> Noise:
        """The same noise made of other tensors, which have the names of ``self.tensors``."""
        if self.tensors:
            raise NotImplementedError(f"{type(self).__name__} has tensors and must say what it is on other ones")
        return self

    @abstractmethod
    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        """Noise for the steps of ``clock`` and for states such as ``like``.

        ``clock`` is the noise clock at the grid's nodes: float64, on the CPU, of shape (steps + 1,),
        nondecreasing. A constant one (``eta = 0``) gives zero increments. Its last value may be ``+inf``:
        that step goes to ``sigma = 0`` and injects no noise. ``levy`` asks for the space-time Levy areas too.
        ``ValueError`` or ``TypeError`` if any of it does not fit.
        """


class HasNoiseClock(Protocol):
    """Anything that maps a grid of times to the clock on which its noise is Brownian motion: a ``Frame``."""

    def noise_clock(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Draws:
    """The flat vector of standard normals that one path draws at each node of its tree."""

    size: int
    dtype: torch.dtype
    device: str

    @classmethod
    def holding(cls, numel: int, dtype: torch.dtype, device: str) -> Draws:
        """Room for ``numel`` numbers, rounded up to a multiple of 16.

        On the CPU ``torch.randn`` fills such vectors in blocks of 16, so a longer draw begins with the
        numbers of a shorter one. A sample then does not depend on how many samples follow it in the batch.
        """
        return cls(size=max(16, -(-numel // 16) * 16), dtype=dtype, device=device)


def checked_clock(clock: Tensor) -> tuple[float, ...]:
    """The noise clock as Python floats, or an error that says what is wrong with it."""
    if not isinstance(clock, Tensor) or clock.dtype != torch.float64:
        got = clock.dtype if isinstance(clock, Tensor) else type(clock).__name__
        raise TypeError(f"clock must be a float64 tensor, but is {got}; times are never rounded to a narrower type")
    if clock.dim() != 1 or len(clock) < 2:
        raise ValueError(
            f"clock must have shape (steps + 1,) with at least one step, but has shape {tuple(clock.shape)}"
        )
    if clock.requires_grad:
        raise ValueError(
            "clock requires a gradient, but a replayed path is not differentiable in time; pass clock.detach()"
        )
    nodes = tuple(clock.tolist())
    if any(math.isnan(node) for node in nodes):
        raise ValueError("clock has NaN entries; compute it from times inside the schedule's domain")
    for n, (nu0, nu1) in enumerate(pairwise(nodes)):
        if nu1 < nu0:
            raise ValueError(
                f"clock must not decrease, but goes from {nu0!r} to {nu1!r} in step {n}; "
                "pass a grid of decreasing times"
            )
    if math.isinf(nodes[0]) or any(math.isinf(node) for node in nodes[:-1]):
        raise ValueError("clock must be finite, but for a last value of +inf; start and stop inside the schedule")
    return nodes


def checked_like(like: Tensor) -> None:
    """Refuse states that cannot carry noise."""
    if not isinstance(like, Tensor) or not like.is_floating_point():
        got = like.dtype if isinstance(like, Tensor) else type(like).__name__
        raise TypeError(f"like must be a real floating-point tensor such as x_T, but is {got}")


def checked_step(n: int, steps: int) -> None:
    """Refuse a step that the grid does not have (negative indices too: they would hide an off-by-one)."""
    if not 0 <= n < steps:
        raise IndexError(f"step {n} is out of range: the noise is bound to a grid of {steps} steps, 0 to {steps - 1}")


def advances(nu0: float, nu1: float) -> bool:
    """Whether a step injects noise: the clock moves, and not to ``+inf``, where the step projects onto x_0."""
    return nu0 < nu1 < math.inf


def moving(nodes: Sequence[float]) -> tuple[bool, ...]:
    """Whether each step injects noise."""
    return tuple(advances(nu0, nu1) for nu0, nu1 in pairwise(nodes))


def slot(tensor: Tensor, n: int, moves: bool, like: torch.dtype, device: torch.device) -> Tensor:
    """Step n's slot of a caller's tensor, for a state; times zero in a step without noise, as is its gradient."""
    part = tensor[n].to(dtype=like, device=device)
    return part if moves else 0.0 * part

"""Brownian paths from a seed: drawn on demand, replayed in any order, bound to a grid when used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Integral
from threading import Lock
from typing import Protocol, final

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from .. import nests
from .ahead import DrawnAhead
from .base import (
    BoundNoise,
    Draws,
    HasNoiseClock,
    Increment,
    Noise,
    advances,
    checked_clock,
    checked_like,
    checked_step,
)
from .bridge import ROOT, Normals, close
from .buffers import Buffers, Pair
from .normal import scales
from .refinable import LinePath, check_range
from .tree import Fork, Tree

# Pairs of tensors that a path keeps: the nodes beside the way to the last step, and what came before. A sweep over up
# to 2^8 steps cuts each node once. Over more steps the nodes nearest to the root, which are few, are cut again.
CAPACITY = 10


@final
@dataclass(frozen=True)
class BrownianPath(Noise):
    """Brownian motion that a seed determines, on the noise clock of whatever frame and grid it is bound to.

    ``dB_n ~ N(0, h)`` with ``h = nu[n+1] - nu[n]``, and ``H_n ~ N(0, h/12)``, all independent between steps,
    entries and samples. The numbers are those of ``torchsde.BrownianInterval`` (Kidger, Foster, Li, Lyons, "Efficient
    and accurate gradients for neural SDEs", 2021, section 4), bit by bit.

    Args:
        seed: one integer in [0, 2^63): one path for the whole state. On the CPU sample i of a batch does not
            depend on how many samples follow it. A list with one integer per sample: each sample has a path
            of its own, the same whatever its batch mates; cost grows with the length of the list.
        refinable: False: a path per (seed, grid); on another grid, even a nested one, no equal path is promised.
            True: a path per seed, the same on every grid, so that coarse and fine grids can be compared path
            by path; 10 to 20 times slower. The path lives on the noise clock: frames with another ``eta`` or
            kind see other increments of it, and positive and negative clocks (data and noise kind) see
            independent halves; a clock may cross 0. Two nodes on one side of 0 that are closer than 2^-16 of the
            clock's value, or 2^-80, are refused.
        dtype, device: where the numbers are drawn, float64 (or float32) on the CPU by default; they are then
            cast to the state's. A path does not depend on the state's dtype or device, but a seed means
            unrelated numbers in another dtype or on another device of drawing. Draw on the GPU only when the
            transfer costs more than portability.

    The object has no state: equal seeds are equal paths, and copies and pickles are the same path. No global
    generator is read or written. Increments do not depend on whether Levy areas are asked for.

    Cost per query, in either direction. Drawn are 1.5 vectors of normals of the state's size, or two where Levy areas
    are asked for; ``refinable`` 36, and fewer where steps are so short that several begin between two powers of
    two: less is not possible with the same numbers. With all arithmetic, over the time of a draw by ``torch.randn`` in
    float64: 2.6, with areas 3 to 4, ``refinable`` 60 to 70; in float32, where a draw takes a fifth of the time: 4, 5,
    and 60 to 120 (``python -m tests.benchmarks.noise_queries``). Small states: about 0.25 ms, ``refinable`` 3 ms.
    Memory of a solve: about 20 state-sized tensors of ``dtype`` (``refinable``: 85), whatever the number of steps. For
    states on an accelerator a thread draws the next two steps on the host while the network runs.

    Errors: ``TypeError`` or ``ValueError`` for seeds, clocks and states that do not fit, each with its
    sentence.

    When not to use it: for gradients with respect to the noise pass ``FixedNoise(path.increments(frame, grid,
    like))``. torchsde's node seeds have 32 bits, so among 100 000 nodes of one path two are likely to share
    their normals: harmless for sampling, unsuited to anything that needs cryptographic or large-scale
    statistical independence.
    """

    seed: int | Sequence[int]
    refinable: bool = False
    dtype: torch.dtype = field(default=torch.float64, kw_only=True)
    device: str | torch.device = field(default="cpu", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _checked_seeds(self.seed))
        object.__setattr__(self, "device", str(torch.device(self.device)))
        if self.dtype not in (torch.float64, torch.float32):
            raise ValueError(
                f"dtype must be torch.float64 or torch.float32, but is {self.dtype}; "
                "increments are cast to the state's dtype"
            )

    def __repr__(self) -> str:
        seed, name = nests.told(self.seed), type(self).__name__
        return f"{name}(seed={seed}, refinable={self.refinable}, dtype={self.dtype}, device={self.device!r})"

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        """See :meth:`Noise.bind`. Draws nothing yet."""
        nodes = checked_clock(clock)
        checked_like(like)
        numel = like.numel() if isinstance(self.seed, int) else math.prod(like.shape[1:])
        draws = Draws.holding(numel, self.dtype, str(self.device))
        seeds = self._seeds(like)
        if self.refinable:
            self._check_layout(like)
        normals = Normals(seeds, Buffers(len(seeds), draws))
        path: SeededPath
        if self.refinable:
            check_range(nodes)
            path = LinePath(normals, nodes, areas=levy)
        else:
            _check_scale(nodes, self.dtype)
            path = _GridPath(normals, nodes, areas=levy)
        bound = _BoundPath(nodes, path, numel, levy, like.shape, like.dtype, like.device)
        if like.device.type == "cpu" or torch.device(self.device).type != "cpu":
            return bound
        host = replace(bound, device=torch.device("cpu"))
        return DrawnAhead(host.increment, len(nodes) - 1, like.device)

    def increments(self, frame: HasNoiseClock, grid: Tensor | Sequence[float], like: Tensor) -> Tensor:
        """Every step's ``dB`` as a solve sees it: (steps, *like.shape), in the dtype and on the device of ``like``."""
        bound = self.bind(_noise_clock(frame, grid), like, levy=False)
        return torch.stack([bound.increment(n).dB for n in range(len(grid) - 1)])

    def levy_areas(self, frame: HasNoiseClock, grid: Tensor | Sequence[float], like: Tensor) -> Tensor:
        """Every step's space-time Levy area ``H``, laid out as :meth:`increments`."""
        bound = self.bind(_noise_clock(frame, grid), like, levy=True)
        areas = [bound.increment(n).H for n in range(len(grid) - 1)]
        return torch.stack([H for H in areas if H is not None])

    def normals(self, frame: HasNoiseClock, grid: Tensor | Sequence[float], like: Tensor) -> Tensor:
        """The increments of every step over their standard deviations, for ``NormalNoise``: laid out like them.

        Zero in steps that inject no noise.
        """
        return _over_scales(self.increments(frame, grid, like), _noise_clock(frame, grid), 1.0)

    def levy_normals(self, frame: HasNoiseClock, grid: Tensor | Sequence[float], like: Tensor) -> Tensor:
        """The Levy areas of every step over their standard deviations: see :meth:`normals`."""
        return _over_scales(self.levy_areas(frame, grid, like), _noise_clock(frame, grid), 1 / 12)

    def _seeds(self, like: Tensor) -> Sequence[int]:
        if isinstance(self.seed, int):
            return [self.seed]
        if like.dim() == 0 or len(self.seed) != len(like):
            raise ValueError(
                f"seed lists {len(self.seed)} paths, but the state has shape {tuple(like.shape)}; pass one seed per "
                "sample of its first dimension, or one integer"
            )
        return self.seed

    def _check_layout(self, like: Tensor) -> None:
        if isinstance(self.seed, int) and torch.device(self.device).type != "cpu" and like.dim() > 0 and len(like) > 1:
            raise ValueError(
                f"seed={self.seed} with refinable=True and a batch of {len(like)} would depend on the "
                f"batch's size when drawn on {self.device}; pass a list of {len(like)} seeds, or draw on device='cpu'"
            )


class SeededPath(Protocol):
    """Paths of flat draws, one for each seed, bound to a grid. Not for two threads at once."""

    def step(self, n: int) -> Pair:
        """The pair over step ``n``, over which the clock advances. Not to be edited, nor read after another step."""


@dataclass(frozen=True)
class _Grid:
    """A tree over the steps of a clock: cut at the steps' own indices, in the middle.

    A node's normals follow from its place in the tree, so a tree that is always cut in the same places is the
    same path, whichever branch is grown first; and its depth is log2(steps). Nodes at which the clock stands still are
    passed over.
    """

    nodes: tuple[float, ...]

    def leaf(self, n: int) -> int:
        """The number of the node that is step ``n``."""
        number, (lo, middle, hi) = ROOT, self._cut(0, len(self.nodes) - 1)
        while middle < hi:
            is_right = n >= middle
            number = 2 * number + is_right
            lo, middle, hi = self._cut(middle, hi) if is_right else self._cut(lo, middle)
        return number

    def fork(self, number: int) -> Fork:
        """Where the node with this number is cut."""
        lo, middle, hi = self._cut(0, len(self.nodes) - 1)
        for bit in f"{number:b}"[1:]:
            lo, middle, hi = self._cut(middle, hi) if bit == "1" else self._cut(lo, middle)
        parts = self._cut(lo, middle), self._cut(middle, hi)
        is_last = all(middle == hi for _, middle, hi in parts)
        return Fork(self.nodes[lo], self.nodes[middle], self.nodes[hi], is_last)

    def _cut(self, lo: int, hi: int) -> tuple[int, int, int]:
        """Where steps ``lo`` to ``hi`` are cut, with the ends that the clock moves away from; a leaf at its end."""
        nodes = self.nodes
        while hi - lo > 1:
            middle = (lo + hi) // 2
            if nodes[lo] < nodes[middle] < nodes[hi]:
                return lo, middle, hi
            lo, hi = (middle, hi) if nodes[lo] == nodes[middle] else (lo, middle)
        return lo, hi, hi


class _GridPath:
    """Paths over a grid, one for each seed."""

    def __init__(self, normals: Normals, clock: tuple[float, ...], *, areas: bool) -> None:
        nodes = clock[:-1] if math.isinf(clock[-1]) else clock
        self._grid, self._areas = _Grid(nodes), areas
        self._buffers = normals.buffers
        self._tree = Tree(normals, nodes[-1] - nodes[0], self._grid.fork)
        # Few steps have few neighbours; what more there is would not be asked for again.
        self._capacity = min(CAPACITY, len(nodes).bit_length() + 2)
        self._area: Tensor | None = None

    def step(self, n: int) -> Pair:
        number, nodes = self._grid.leaf(n), self._grid.nodes
        self._tree.use([number], self._capacity)
        pair = self._tree.pair(number, areas=self._areas)
        if not self._areas:
            return pair
        self._buffers.give([self._area])
        self._area = self._buffers.take()
        closed = Pair(pair.W, self._area)
        for rows, columns in self._buffers.blocks():
            close(pair.block(rows, columns), nodes[n + 1] - nodes[n], closed.block(rows, columns).H)
        return closed


@final
@dataclass(frozen=True, eq=False)
class _BoundPath(BoundNoise):
    nodes: tuple[float, ...]
    path: SeededPath
    numel: int  # numbers used of each path's flat draw
    levy: bool
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    lock: Lock = field(default_factory=Lock)  # the path writes on its own memory

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return ()

    def increment(self, n: int) -> Increment:
        checked_step(n, len(self.nodes) - 1)
        if not advances(self.nodes[n], self.nodes[n + 1]):
            zeros = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
            return Increment(zeros, torch.zeros_like(zeros) if self.levy else None)
        with self.lock, _unbatched():
            W, H = self.path.step(n)
            return Increment(self._laid_out(W), self._laid_out(H) if self.levy else None)

    def _laid_out(self, rows: Tensor) -> Tensor:
        # A copy always: the path goes on to use its own.
        return rows[:, : self.numel].to(dtype=self.dtype, device=self.device, copy=True).reshape(self.shape)


@contextmanager
def _unbatched() -> Iterator[None]:
    """Out of ``torch.func``'s transforms and of ``is_grads_batched=True``: PyTorch refuses to draw in a batch.

    All of a batch see one path, which its seed determines.
    """
    torch._C._vmapmode_increment_nesting()
    levels = torch._C._vmapmode_decrement_nesting()
    for _ in range(levels):
        torch._C._vmapmode_decrement_nesting()
    try:
        with temporarily_clear_interpreter_stack() if peek_interpreter_stack() else nullcontext():
            yield
    finally:
        for _ in range(levels):
            torch._C._vmapmode_increment_nesting()


def _noise_clock(frame: HasNoiseClock, grid: Tensor | Sequence[float]) -> Tensor:
    # On the CPU, as a solve does: another device's exp may differ in the last bit, and that would be another grid.
    return frame.noise_clock(torch.as_tensor(grid, dtype=torch.float64, device="cpu"))


def _over_scales(values: Tensor, clock: Tensor, variance: float) -> Tensor:
    """Each step's values over the root of ``variance`` times its length; zeros stay zeros."""
    factors = [1 / (math.sqrt(variance) * scale) if scale > 0 else 0.0 for scale in scales(clock.tolist())]
    return torch.stack([factor * value for factor, value in zip(factors, values, strict=True)])


def _checked_seeds(seed: object) -> int | tuple[int, ...]:
    if not isinstance(seed, Sequence) or isinstance(seed, str | bytes):
        return _checked_seed(seed)
    if not seed:
        raise ValueError("seed is an empty list; pass one integer, or a list with one integer per sample")
    return tuple(_checked_seed(one) for one in seed)


def _checked_seed(seed: object) -> int:
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(
            f"seed must be an integer or a list of integers, but got {seed!r} of type {type(seed).__name__}"
        )
    number = int(seed)
    if not 0 <= number < 2**63:
        raise ValueError(f"seed must be in [0, 2^63), but is {seed}; pass abs(seed) or hash it to 63 bits")
    return number


def _check_scale(nodes: tuple[float, ...], dtype: torch.dtype) -> None:
    """Refuse lengths whose cube (torchsde's bridge) or whose power 3/2 (its area U, in ``dtype``) is out of range."""
    limit = 1e100 if dtype == torch.float64 else 1e25
    lengths = [nu1 - nu0 for nu0, nu1 in pairwise(nodes) if advances(nu0, nu1)]
    if lengths and not (1 / limit < min(lengths) and sum(lengths) < limit):
        raise ValueError(
            f"clock has steps from {min(lengths)!r} to {max(lengths)!r}, but they must be between {1 / limit} and "
            f"{limit} for draws in {dtype}; lower eta (in the data kind the noise clock is the signal-to-noise ratio "
            "to the power eta) or shorten the grid"
        )

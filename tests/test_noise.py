"""Noise: the law of what is drawn, that it replays, what it does not depend on, and what is refused.

Statistical tests use fixed seeds, so they pass or fail for good; with fresh seeds each would fail one time in 10^4.
"""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
import torchsde
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdeadjoint.noise import BrownianPath, FixedNoise, buffers
from sdeadjoint.noise.base import Draws
from sdeadjoint.noise.bridge import Normals
from sdeadjoint.noise.buffers import Buffers
from sdeadjoint.noise.refinable import DEPTH, LinePath, Piece, locate

F64 = torch.float64
EPS = torch.finfo(F64).eps
ALARM = 1e-4

POSITIVE = [0.3, 0.7, 0.9, 1.0, 1.3, 1.3001, 5.0, 17.0]  # several cells, edges of cells, two nodes close together
NEGATIVE = [-17.0, -5.0, -4.0, -0.9, 0.0]
ACROSS = [-5.0, -0.9, -0.3, 0.300001, 1.0, 4.0]  # ends that nearly mirror each other
AT_ZERO = [-2.0, -1e-30, 1e-30, 1.0]  # both sides end inside of the first leaf
ORIGIN = [0.0, 1e-20, 5e-20, 2e-19, 1e-18]  # the cell at the bottom and its neighbours
LEAVES = [1 + (k + 0.4) * 2.0**-DEPTH for k in range(5)]  # every step ends inside two neighbouring leaves
FIRST = [1.0, 1 + 0.4 * 2.0**-DEPTH, 1.5, 2.0]  # inside the first leaf of a cell, and at the cell's own middle
both_modes = pytest.mark.parametrize("refinable", [False, True], ids=["default", "refinable"])


def tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=F64)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=F64)


@dataclass(frozen=True)
class Clock:
    """A stand-in for a frame: the grid is lambda, the clock ``e^(2 eta lambda)``."""

    eta: float = 1.0

    def noise_clock(self, t: Tensor) -> Tensor:
        return torch.exp(2 * self.eta * t)


def drawn(noise: BrownianPath | FixedNoise, nodes: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """All increments and Levy areas, each (steps, *like.shape)."""
    bound = noise.bind(tensor(nodes), like, levy=True)
    both = [bound.increment(n) for n in range(len(nodes) - 1)]
    return torch.stack([dB for dB, _ in both]), torch.stack([H for _, H in both if H is not None])


def clocks(ties: bool = False) -> st.SearchStrategy[list[float]]:
    """Positive clocks over 14 decades whose steps span leaves of the refinable lattice (or are zero)."""
    logs = st.lists(st.integers(-1600, 1600), min_size=2, max_size=9, unique=not ties).map(sorted)
    return logs.map(lambda exponents: [math.exp(k / 100) for k in exponents])


def joined(nodes: Sequence[float], dB: Tensor, H: Tensor) -> Piece:
    """Chen's relation along a grid, from the definition: H is the integral of B less its chord."""
    area, B = torch.zeros_like(dB[0]), torch.zeros_like(dB[0])
    for (a, b), W, Hn in zip(pairwise(nodes), dB, H, strict=True):
        area = area + (b - a) * (B + W / 2 + Hn)
        B = B + W
    h = nodes[-1] - nodes[0]
    return Piece(h, B, area / h - B / 2)


# ---------------------------------------------------------------------------------------------------- the law


@both_modes
@pytest.mark.parametrize(
    "nodes",
    [POSITIVE, NEGATIVE, ORIGIN, LEAVES, FIRST, ACROSS, AT_ZERO],
    ids=["positive", "negative", "origin", "leaves", "first", "across", "at zero"],
)
def test_increments_and_areas_are_independent_normals(nodes: list[float], refinable: bool) -> None:
    count = 20_000
    dB, H = drawn(BrownianPath(3, refinable), nodes, zeros(count))
    h = tensor(nodes).diff()[:, None]
    unit = torch.cat([dB / h.sqrt(), H / (h / 12).sqrt()]).numpy()  # (2 steps, count): standard normals by the claim
    p_values = [stats.kstest(row, "norm").pvalue for row in unit]
    assert min(p_values) > ALARM / len(unit)
    pairs = len(unit) * (len(unit) + 1) / 2
    z = np.abs(unit @ unit.T / count - np.eye(len(unit))) * math.sqrt(count)
    z[np.diag_indices(len(unit))] /= math.sqrt(2)  # the variance of a squared normal
    assert z.max() < stats.norm.isf(ALARM / (2 * pairs))


@both_modes
def test_seeds_are_independent(refinable: bool) -> None:
    seeds = range(200) if refinable else range(1000)
    dB, H = drawn(BrownianPath(seeds, refinable), [0.9, 1.7, 4.0], zeros(len(seeds)))
    h = tensor([0.8, 2.3])[:, None]
    unit = torch.cat([dB / h.sqrt(), H / (h / 12).sqrt()])
    assert min(stats.kstest(row, "norm").pvalue for row in unit.numpy()) > ALARM / len(unit)
    serial = (unit[:, 1:] * unit[:, :-1]).mean(1).abs() * math.sqrt(len(seeds))
    assert serial.max() < stats.norm.isf(ALARM / (2 * len(unit)))


@pytest.mark.parametrize("start", [0.7, -2.9, -0.9])
def test_levy_area_is_the_integral_of_the_path(start: float) -> None:
    # Trapezoids over N pieces miss an integral of Brownian motion by sqrt(h/12)/N, rms, after division by h. Areas
    # that are off by a hundredth of their size are seen.
    steps, count = 64, 200
    coarse = [start, start + 2.2]
    fine = torch.linspace(coarse[0], coarse[1], steps + 1, dtype=F64).tolist()
    path = BrownianPath(1, refinable=True)
    W, H = (out[0] for out in drawn(path, coarse, zeros(count)))
    dB, _ = drawn(path, fine, zeros(count))
    B = torch.cat([zeros(1, count), dB.cumsum(0)])
    integral = ((B[1:] + B[:-1]) / 2).mean(0) - B[-1] / 2
    torch.testing.assert_close(B[-1], W, rtol=0, atol=1e-12)
    missed = (integral - H) * steps / math.sqrt(2.2 / 12)
    assert missed.square().sum() < stats.chi2.isf(ALARM, count)


# ------------------------------------------------------------------------------------------------------ replay


@both_modes
@given(nodes=clocks(ties=True), data=st.data(), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_replays_bitwise_in_any_order(refinable: bool, nodes: list[float], data: st.DataObject, seed: int) -> None:
    path = BrownianPath(seed, refinable)
    steps, like, clock = len(nodes) - 1, zeros(3), tensor(nodes)
    first = path.bind(clock, like, levy=True)
    forward = [first.increment(n) for n in range(steps)]
    orders = [range(steps)[::-1], data.draw(st.lists(st.integers(0, steps - 1), max_size=2 * steps))]
    for order in orders:
        for bound in (first, path.bind(clock, like, levy=True)):
            for n in order:
                again = bound.increment(n)
                assert torch.equal(again.dB, forward[n].dB)
                assert torch.equal(again.H, forward[n].H)


@both_modes
def test_long_grids_replay_in_reverse(refinable: bool) -> None:
    # Steps one after the other are as many levels deep in a tree that is not balanced: a RecursionError from 1000 on.
    steps, stride, every = 3 * sys.getrecursionlimit(), 211, 211 if refinable else 1
    clock = torch.exp(2 * torch.linspace(-8, 8, steps + 1, dtype=F64))
    path = BrownianPath(0, refinable)
    there, back = (path.bind(clock, zeros(1), levy=False) for _ in range(2))
    ahead = [there.increment(n).dB for n in range(0, steps, stride)]
    behind = {n: back.increment(n).dB for n in range(0, steps, every)[::-1]}
    assert torch.equal(torch.stack(ahead), torch.stack([behind[n] for n in range(0, steps, stride)]))


@both_modes
def test_copies_are_the_same_path(refinable: bool) -> None:
    for path in (BrownianPath(7, refinable), BrownianPath([2**63 - 1, 0], refinable, dtype=torch.float32)):
        expected = path.increments(Clock(), tensor([-1, 0, 1]), zeros(2, 3))
        copies = [copy.deepcopy(path), pickle.loads(pickle.dumps(path)), eval(repr(path))]
        for other in copies:
            assert other == path
            assert torch.equal(other.increments(Clock(), tensor([-1, 0, 1]), zeros(2, 3)), expected)


@both_modes
def test_editing_an_answer_does_not_change_the_path(refinable: bool) -> None:
    for nodes in ([1.0, 2.0], [1.0, 1.5, 2.0]):  # one step: the root of the tree itself
        bound = BrownianPath(0, refinable).bind(tensor(nodes), zeros(16), levy=True)
        before = bound.increment(0)
        kept = before.dB.clone(), before.H.clone()
        before.dB.zero_()
        before.H.zero_()
        assert torch.equal(bound.increment(0).dB, kept[0])
        assert torch.equal(bound.increment(0).H, kept[1])


@both_modes
def test_tensors_held_do_not_grow_with_the_steps(refinable: bool) -> None:
    size = 1040  # like no other tensor around

    def held(steps: int) -> int:
        bound = BrownianPath(0, refinable).bind(
            torch.exp(torch.linspace(-6, 6, steps + 1, dtype=F64)), zeros(size), True
        )
        for n in range(steps):
            bound.increment(n)
        return alive()

    def alive() -> int:
        return sum(1 for item in gc.get_objects() if type(item) is Tensor and item.numel() == size)

    gc.disable()  # nothing waits for the collector to come round: it counts objects, not bytes
    try:
        few, many, rest = held(130), held(300), alive()  # one more in 34 steps would show
    finally:
        gc.enable()
    assert many <= few + 4
    assert many <= (88 if refinable else 25)  # four of them are no larger than a block
    assert rest == 0


# -------------------------------------------------------------------------------------------------------- the cost


class Work(TorchDispatchMode):
    """Counts the normals that are drawn and the numbers that are written, over ``size``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._drawn = self._written = 0

    @property
    def draws(self) -> float:
        return self._drawn / self._size

    @property
    def passes(self) -> float:
        """Draws not among them."""
        return self._written / self._size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"normal_", "randn"}:
            self._drawn += out.numel()
        elif isinstance(out, Tensor) and not (func.is_view or name in {"empty", "_unsafe_view", "alias"}):
            self._written += out.numel()
        return out


def work(path: BrownianPath, nodes: Sequence[float], like: Tensor, *, levy: bool, reverse: bool = False) -> Work:
    steps = len(nodes) - 1
    with Work(like.numel()) as counted:
        bound = path.bind(tensor(nodes), like, levy)
        for n in range(steps)[::-1] if reverse else range(steps):
            bound.increment(n)
    return counted


SIZES = [((64,), 1), ((3, 64), [5, 6, 7]), ((1, 2 * 65536 + 160), [1])]
sizes = pytest.mark.parametrize(("shape", "seed"), SIZES, ids=["one seed", "seeds", "blocks"])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("levy", [False, True], ids=["increments", "areas"])
@sizes
def test_what_a_query_draws(shape: tuple[int, ...], seed: int | list[int], levy: bool, reverse: bool) -> None:
    """A tree of 16 steps has 15 nodes above its leaves, of two normals each: 8 of them need one, without areas."""
    nodes = torch.linspace(0, 3, 17, dtype=F64).exp().tolist()
    done = work(BrownianPath(seed), nodes, zeros(*shape), levy=levy, reverse=reverse)
    assert done.draws == (2 * 16 if levy else 2 * 16 - 8)  # with the two of the root
    # 9 of each node's increments and 10 of its areas, 4 of an answer's area, 1 for each tensor returned, 2 of the root.
    assert done.passes == (15 * 19 + 16 * 6 + 2 if levy else 15 * 9 + 7 * 10 + 16 + 2)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@sizes
def test_what_a_refinable_query_draws(shape: tuple[int, ...], seed: int | list[int], reverse: bool) -> None:
    """To a node alone in its cell lead the cell's root, DEPTH cuts and that of the leaf, of 2 draws each."""
    steps = 3  # nodes share nothing: one cell more adds what each of these does
    ends = [0.3 * 2**n for n in range(steps + 1)]
    done = work(BrownianPath(seed, refinable=True), ends, zeros(*shape), levy=True, reverse=reverse)
    assert done.draws == (steps + 1) * 2 * (DEPTH + 2)
    # Of a cut in halves 13 passes; of each of the DEPTH pieces beside the way at most 7, to join them, on either side.
    assert done.passes <= (steps + 1) * (13 * DEPTH + 7 * DEPTH + 60)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_refinable_steps_in_one_cell_share_the_cuts_above_them(reverse: bool) -> None:
    steps = 32
    nodes = torch.linspace(1.001, 1.999, steps + 1, dtype=F64).tolist()
    done = work(BrownianPath(1, refinable=True), nodes, zeros(64), levy=True, reverse=reverse)
    levels = math.log2(steps)  # above which all nodes are shared: as many again as there are steps
    assert done.draws <= 2 * (steps + 1) * (DEPTH - levels + 2) + 2 * steps


@both_modes
def test_the_same_numbers_as_torchsde(refinable: bool) -> None:
    """The reference is torchsde itself, on the steps of a grid and on parts of a cell."""
    size, seed = 48, 7
    if refinable:
        entropy = seed | 2 * (0 + 64 + 2) << 64  # the cell [1, 2)
        lattice = torchsde.BrownianInterval(
            0.0, 2.0**DEPTH, (size,), F64, "cpu", entropy, tol=1.0, halfway_tree=True,
            levy_area_approximation="space-time",
        )  # fmt: skip
        places, unit = [0, 5, 4096, 4097, 50_001, 2**DEPTH], 2.0**-DEPTH
        nodes = [1 + unit * place for place in places]
    else:
        nodes, unit = [0.5, 0.6, 1.7, 3.0, 3.25], 1.0
        places = nodes
        lattice = torchsde.BrownianInterval(
            nodes[0], nodes[-1], (size,), F64, "cpu", seed, dt=9.0, levy_area_approximation="space-time"
        )
        for a, b in ((0, 2), (0, 1), (2, 3)):
            lattice(nodes[a], nodes[b])  # cut where a grid is
    for n, (a, b) in enumerate(pairwise(places)):
        W, U = lattice(float(a), float(b), return_U=True)
        H = U / (b - a) - W / 2
        got = BrownianPath(seed, refinable).bind(tensor(nodes), zeros(size), levy=True).increment(n)
        assert torch.equal(got.dB, math.sqrt(unit) * W)
        assert torch.equal(got.H, math.sqrt(unit) * H)


@both_modes
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_blocks_are_the_whole(refinable: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers do not depend on the size of the blocks that they are computed in, nor on how rows share them."""
    nodes, seen = [0.3, 1.1, 1.2, 4.0], list[tuple[Tensor, Tensor]]()
    for block in (16, 48, 160, 2**16):
        monkeypatch.setattr(buffers, "BLOCK", block)
        seen.append(drawn(BrownianPath([3, 1, 2], refinable, dtype=dtype), nodes, zeros(3, 7, 11)))
    for got in seen:
        assert all(map(torch.equal, got, seen[-1]))


@both_modes
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_transforms_and_modes_leave_the_path_as_it_was(refinable: bool) -> None:
    """What is computed inside of a transform or a mode is asked for outside, and the other way round."""
    nodes = torch.linspace(1, 9, 14, dtype=F64).tolist()
    bound, fresh = (BrownianPath(3, refinable).bind(tensor(nodes), zeros(5), levy=True) for _ in range(2))
    want = [fresh.increment(n) for n in range(13)]

    def total(x: Tensor, n: int) -> Tensor:
        dB, H = bound.increment(n)
        return (x * (dB + H)).sum()

    ones = torch.ones(5, dtype=F64)
    for n in (3, 4, 0, 7, 12, 11, 5):
        exact = want[n].dB + want[n].H
        assert torch.equal(torch.func.grad(total)(ones, n), exact)
        rows = torch.stack([ones] * 2)
        several = torch.func.vmap(lambda x, n=n: torch.func.grad(total)(x, n), randomness="same")(rows)
        assert torch.equal(several, torch.stack([exact] * 2))
        assert torch.equal(torch.func.jvp(lambda x, n=n: total(x, n), (ones,), (ones,))[1], exact.sum())
        with torch.inference_mode():
            inside = bound.increment((n + 6) % 13)
        assert all(map(torch.equal, inside, want[(n + 6) % 13]))
        assert all(map(torch.equal, bound.increment(n), want[n]))


# ------------------------------------------------------------------------------- what a path does not depend on


@both_modes
@pytest.mark.parametrize("event", [(), (5,), (4, 4), (3, 11)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_batch_composition(refinable: bool, event: tuple[int, ...], dtype: torch.dtype) -> None:
    nodes = [0.4, 1.1, 3.0]
    one, seven = (drawn(BrownianPath(5, refinable, dtype=dtype), nodes, zeros(n, *event)) for n in (1, 7))
    listed = drawn(BrownianPath([9, 5, 2, 4], refinable, dtype=dtype), nodes, zeros(4, *event))  # in no order
    alone = drawn(BrownianPath([5], refinable, dtype=dtype), nodes, zeros(1, *event))
    for i in range(2):
        assert torch.equal(seven[i][:, :1], one[i])
        assert torch.equal(alone[i], one[i])
        assert torch.equal(listed[i][:, 1:2], one[i])
        assert not torch.equal(listed[i][:, :1], one[i])


@both_modes
@pytest.mark.parametrize("seed", [5, [5, 6]])
def test_dtype_of_the_state_and_torch_defaults(refinable: bool, seed: int | list[int]) -> None:
    path, nodes = BrownianPath(seed, refinable), [0.4, 1.1, 3.0]
    exact = drawn(path, nodes, zeros(2, 5))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = drawn(path, nodes, zeros(2, 5).to(dtype))
        assert torch.equal(cast[0], exact[0].to(dtype))
        assert torch.equal(cast[1], exact[1].to(dtype))
    clock, like = tensor(nodes), zeros(2, 5)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"), torch.inference_mode():
            other = path.bind(clock, like, levy=True).increment(1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(other.dB, exact[0][1])


@both_modes
def test_increments_do_not_depend_on_the_levy_area(refinable: bool) -> None:
    with_area, without = (BrownianPath(5, refinable).bind(tensor(POSITIVE), zeros(3), levy) for levy in (True, False))
    for n in range(len(POSITIVE) - 1):
        assert torch.equal(with_area.increment(n).dB, without.increment(n).dB)
        assert without.increment(n).H is None


@both_modes
def test_global_generators_are_neither_read_nor_written(refinable: bool) -> None:
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        answers.append(drawn(BrownianPath(5, refinable), POSITIVE, zeros(3))[0])
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert torch.equal(*answers)


def test_seeds_modes_and_signs_are_unrelated() -> None:
    like, up, down = zeros(64), [1.0, 1.5], [-1.5, -1.0]
    bits = [0, 1, 2**32, 2**33, 2**40, 2**62]
    paths = [(BrownianPath(seed, mode), nodes) for seed in bits for mode in (False, True) for nodes in (up, down)]
    first = torch.stack([drawn(path, nodes, like)[0][0] for path, nodes in paths if path.refinable or nodes is up])
    correlations = torch.corrcoef(first).fill_diagonal_(0)
    pairs = len(first) * (len(first) - 1) / 2
    assert correlations.abs().max() * math.sqrt(64) < stats.norm.isf(ALARM / (2 * pairs))


def test_no_two_cells_of_a_refinable_path_are_one() -> None:
    # Whole cells on both sides of 0, each scaled to the length 1: one that repeats another is equal to it.
    up, count = [2.0**k for k in range(-4, 5)], 64
    down = [-nu for nu in reversed(up)]
    unit = []
    for nodes in (up, down):
        dB, H = drawn(BrownianPath(0, refinable=True), nodes, zeros(count))
        h = tensor(nodes).diff()[:, None]
        unit += [dB / h.sqrt(), H / (h / 12).sqrt()]
    correlations = torch.corrcoef(torch.cat(unit)).fill_diagonal_(0)
    pairs = len(correlations) * (len(correlations) - 1) / 2
    assert correlations.abs().max() * math.sqrt(count) < stats.norm.isf(ALARM / (2 * pairs))


# ---------------------------------------------------------------------------------------------------- refinable


@given(a=clocks(), b=clocks(), sides=st.sampled_from(["positive", "negative", "both"]))
@settings(max_examples=20, deadline=None)  # up to 30 steps each
def test_refinable_is_one_path_on_all_grids(a: list[float], b: list[float], sides: str) -> None:
    signs = {"positive": (1, 1), "negative": (-1, -1), "both": (1, -1)}[sides]
    a, b = (sorted(signs[n % 2] * nu for n, nu in enumerate(nodes)) for nodes in (a, b))
    union = sorted({*a, *b})
    path, like = BrownianPath(11, refinable=True), zeros(4)
    dB, H = drawn(path, union, like)
    for nodes in (a, b):
        for n, (coarse_dB, coarse_H) in enumerate(zip(*drawn(path, nodes, like), strict=True)):
            i, j = union.index(nodes[n]), union.index(nodes[n + 1])
            whole = joined(union[i : j + 1], dB[i:j], H[i:j])
            atol = 256 * EPS * math.sqrt(whole.h)  # some dozens of roundings of numbers of this size
            torch.testing.assert_close(coarse_dB, whole.W, rtol=0, atol=atol)
            torch.testing.assert_close(coarse_H, whole.H, rtol=0, atol=atol)


def test_a_path_across_zero_has_the_increments_of_its_two_sides() -> None:
    path, like = BrownianPath(7, refinable=True), zeros(3)
    whole = drawn(path, [-2.0, -0.7, 0.0, 0.4, 3.0], like)
    for nodes, steps in (([-2.0, -0.7, 0.0], slice(0, 2)), ([0.0, 0.4, 3.0], slice(2, 4))):
        for got, want in zip(drawn(path, nodes, like), whole, strict=True):
            assert torch.equal(got, want[steps])


def test_one_ulp_changes_a_refinable_increment_continuously() -> None:
    # Inside a leaf of length w the path's slopes are about 1/sqrt(w); fresh Brownian detail is sqrt(delta) = 2e-8.
    path, like, nu = BrownianPath(0, refinable=True), zeros(200), 2.7
    above = math.nextafter(nu, 3)
    delta, leaf = above - nu, 2.0 ** (1 - DEPTH)
    here, there = (drawn(path, nodes, like)[0] for nodes in ([1.3, nu], [1.3, above]))
    assert 0 < (there - here).abs().max() < 100 * delta / math.sqrt(leaf)


LEAF = 2.0**-DEPTH


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("unit", "start"), [(LEAF, 1.25), (8 * LEAF, 10.0), (2.0**-64 * LEAF, 0.0), (2.0**-64 * LEAF, 2.0**-66)]
)
def test_steps_shorter_than_a_refinable_path_resolves_are_refused(sign: int, unit: float, start: float) -> None:
    def increments(*places: float) -> Tensor:
        return drawn(BrownianPath(0, refinable=True), sorted(sign * (start + x * unit) for x in places), zeros(4000))[0]

    for places in ((0.2, 0.7), (0.0, 0.2, 0.7), (0.7, 0.9, 40.0)):
        with pytest.raises(ValueError, match=r"shorter than a refinable path resolves.*pass refinable=False"):
            increments(*places)
    # The shortest that it takes have the law of Brownian motion: 5 standard deviations of 4000 draws.
    for places in ((0.0, 0.2, 1.1, 2.7, 3.0, 4.0, 4.5, 5.1), (0.4, 1.2, 2.0)):
        lengths = tensor(sorted(sign * x for x in places)).diff() * unit
        normal = increments(*places) / lengths.sqrt()[:, None]
        covariance = normal @ normal.T / 4000
        assert (covariance - torch.eye(len(normal), dtype=F64)).abs().max() < 5 * math.sqrt(2 / 4000)


@given(m=st.floats(0, 2.0**100))
def test_cells_hold_their_numbers_exactly(m: float) -> None:
    k, x = locate(m)
    assert 0 <= x < 2**DEPTH
    start = 0.0 if k == -65 else 2.0**k
    assert start + x * 2.0 ** (max(k, -64) - DEPTH) == m


# ------------------------------------------------------------------------------------- steps that inject nothing


@both_modes
@pytest.mark.parametrize("nodes", [[1.0, 1.0, 1.0], [0.0, 0.0], [-1.0, -1.0], [2.0, math.inf]])
def test_clocks_that_stand_still_give_zeros(nodes: list[float], refinable: bool) -> None:
    dB, H = drawn(BrownianPath(0, refinable), nodes, zeros(2))
    assert not dB.any()
    assert not H.any()


@both_modes
def test_ties_and_an_infinite_end_leave_the_other_steps_alone(refinable: bool) -> None:
    dB, H = drawn(BrownianPath(0, refinable), [1.0, 1.0, 2.0, 2.0, 2.0, 3.0, math.inf], zeros(400))
    assert [bool(row.any()) for row in dB] == [False, True, False, False, True, False]
    assert [bool(row.any()) for row in H] == [False, True, False, False, True, False]
    assert torch.isfinite(dB).all()


# ---------------------------------------------------------------------------------------------------- FixedNoise


def test_fixed_noise_from_a_path_is_that_path() -> None:
    path, grid, like = BrownianPath([0, 1]), tensor([-1, 0.5, 2]), torch.zeros(2, 3)
    fixed = FixedNoise(path.increments(Clock(), grid, like), path.levy_areas(Clock(), [-1, 0.5, 2], like))
    nodes = Clock().noise_clock(grid).tolist()
    assert fixed.increments.shape == fixed.levy_areas.shape == (2, 2, 3)
    for ours, theirs in zip(drawn(fixed, nodes, like), drawn(path, nodes, like), strict=True):
        assert torch.equal(ours, theirs)
    assert path.bind(tensor(nodes), like, levy=True).tensors == ()


def test_gradients_reach_fixed_noise_through_the_cast() -> None:
    dB, H = (torch.randn(3, 2, dtype=F64, requires_grad=True) for _ in range(2))
    noise = FixedNoise(dB, H)
    bound = noise.bind(tensor([1, 2, 3, 4]), torch.zeros(2), levy=True)
    assert bound.tensors == (dB, H)
    assert noise.bind(tensor([1, 2, 3, 4]), torch.zeros(2), levy=False).tensors == (dB,)
    one = bound.increment(1)
    assert one.dB.dtype == one.H.dtype == torch.float32
    (2 * one.dB + 3 * one.H).sum().backward()
    assert torch.equal(dB.grad, tensor([[0, 0], [2, 2], [0, 0]]))
    assert torch.equal(H.grad, tensor([[0, 0], [3, 3], [0, 0]]))
    assert repr(noise).startswith("FixedNoise(increments=<torch.float64 tensor of shape (3, 2)>, levy_areas=")


def test_fixed_noise_where_none_is_injected_must_be_zero() -> None:
    noise = FixedNoise(tensor([[1.0], [0.0]]))
    assert noise.bind(tensor([1, 2, math.inf]), zeros(1), False).increment(1).dB == 0
    areas = FixedNoise(zeros(2, 1), tensor([[1.0], [0.0]]))
    for nodes, words in (([1, 1, 1], "eta = 0"), ([1, 1, 2], r"steps \[0\]")):
        with pytest.raises(ValueError, match=words):
            noise.bind(tensor(nodes), zeros(1), False)
        with pytest.raises(ValueError, match=f"levy_areas must be .*{words}"):
            areas.bind(tensor(nodes), zeros(1), True)
        assert not areas.bind(tensor(nodes), zeros(1), False).increment(0).dB.any()  # nobody asks for areas
    assert not FixedNoise(zeros(2, 1)).bind(tensor([1, 1, 1]), zeros(1), False).increment(0).dB.any()


# --------------------------------------------------------------------------------------------------------- errors

UP = tensor([1.0, 2.0, 3.0])
ANY = [BrownianPath(0), BrownianPath(0, refinable=True), FixedNoise(zeros(2, 3))]


@pytest.mark.parametrize("noise", ANY, ids=["default", "refinable", "fixed"])
@pytest.mark.parametrize(
    ("clock", "error", "words"),
    [
        (tensor([[1.0, 2.0, 3.0]]), ValueError, "shape"),
        (tensor([1.0]), ValueError, "at least one step"),
        (tensor([1.0, math.nan, 3.0]), ValueError, "NaN"),
        (tensor([1.0, 3.0, 2.0]), ValueError, "must not decrease.* step 1"),
        (tensor([-3.0, -1.0, -2.0]), ValueError, "must not decrease.* step 1"),
        (tensor([-math.inf, 1.0, 2.0]), ValueError, "finite"),
        (tensor([1.0, math.inf, math.inf]), ValueError, "finite"),
        (tensor([math.inf, math.inf, math.inf]), ValueError, "finite"),
        (UP.float(), TypeError, "float64"),
        (UP.clone().requires_grad_(), ValueError, "detach"),
    ],
)
def test_clocks_refused(noise: BrownianPath | FixedNoise, clock: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        noise.bind(clock, zeros(3), levy=False)


@pytest.mark.parametrize("noise", ANY, ids=["default", "refinable", "fixed"])
def test_steps_and_states_refused(noise: BrownianPath | FixedNoise) -> None:
    bound = noise.bind(UP, zeros(3), levy=False)
    for n in (-1, 2):
        with pytest.raises(IndexError, match="2 steps, 0 to 1"):
            bound.increment(n)
    for dtype in (torch.int64, torch.complex128):
        with pytest.raises(TypeError, match="like"):
            noise.bind(UP, zeros(3).to(dtype), levy=False)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: BrownianPath(True), TypeError, "seed"),
        (lambda: BrownianPath(1.0), TypeError, "seed"),
        (lambda: BrownianPath("7"), TypeError, "seed"),
        (lambda: BrownianPath([1, None]), TypeError, "seed"),
        (lambda: BrownianPath([]), ValueError, "empty"),
        (lambda: BrownianPath(-1), ValueError, "seed"),
        (lambda: BrownianPath([0, 2**63]), ValueError, "seed"),
        (lambda: BrownianPath(0, dtype=torch.bfloat16), ValueError, "dtype"),
        (lambda: BrownianPath([0, 1]).bind(UP, zeros(3), False), ValueError, "2 paths.*one seed per sample"),
        (lambda: BrownianPath([0]).bind(UP, zeros(), False), ValueError, "one seed per sample"),
        (lambda: BrownianPath(0, True, device="cuda").bind(UP, zeros(3), False), ValueError, "list of 3 seeds"),
        (lambda: BrownianPath(0, True).bind(tensor([0, 1e-101]), zeros(1), False), ValueError, "shorter than"),
        (lambda: BrownianPath(0, True).bind(tensor([1, 1e40]), zeros(1), False), ValueError, "eta"),
        (lambda: BrownianPath(0, True).bind(tensor([-1e40, -1]), zeros(1), False), ValueError, "eta"),
        (lambda: BrownianPath(0).bind(tensor([1, 1e101]), zeros(1), False), ValueError, "eta"),
        (lambda: BrownianPath(0).bind(tensor([0, 1e-101]), zeros(1), False), ValueError, "eta"),
        (lambda: BrownianPath(0, dtype=torch.float32).bind(tensor([1, 1e26]), zeros(1), False), ValueError, "eta"),
        (lambda: FixedNoise([1.0]), TypeError, "increments"),
        (lambda: FixedNoise(torch.zeros(2, dtype=torch.int64)), TypeError, "increments"),
        (lambda: FixedNoise(zeros()), ValueError, "increments"),
        (lambda: FixedNoise(zeros(2, 3), zeros(2, 4)), ValueError, "levy_areas"),
        (lambda: FixedNoise(zeros(2, 4)).bind(UP, zeros(3), False), ValueError, r"\(2, 4\).*2 steps.*\(3,\).*\(2, 3\)"),
        (lambda: FixedNoise(zeros(2, 3)).bind(UP, zeros(3), True), ValueError, "levy_areas="),
    ],
)
def test_errors_say_what_to_do(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_the_levy_area_is_the_mean_of_the_path_above_its_chord() -> None:
    """``H = U / h - dB / 2`` with ``U = int (B - B_0) dr``: that of torchsde, in its bits, on a single step."""
    start, h, shape = 0.5, 2.5, (4, 4)
    clock = torch.tensor([start, start + h], dtype=torch.float64)
    got = BrownianPath(seed=3).bind(clock, torch.zeros(shape, dtype=torch.float64), levy=True).increment(0)
    path = torchsde.BrownianInterval(
        start, start + h, (16,), torch.float64, "cpu", 3, dt=h, levy_area_approximation="space-time"
    )
    W, U = path(start, start + h, return_U=True)
    assert torch.equal(got.dB, W.reshape(shape))
    assert torch.equal(got.H, (U / h - W / 2).reshape(shape))


@pytest.mark.parametrize("ends", [(0.3, 0.4), (0.1, 5.0), (0.0, 2.0**-70), (1e-30, 1e30)])
def test_pieces_of_cells_fill_the_step(ends: tuple[float, float]) -> None:
    """The scale of a cell is that of its numbers: lengths add up to the step's, and variances with them."""
    normals = Normals([0], Buffers(1, Draws.holding(1, torch.float64, "cpu")))
    piece = LinePath(normals, ends, areas=True)._over(*ends, is_mirrored=False)
    assert piece.h == pytest.approx(ends[1] - ends[0], rel=1e-12)

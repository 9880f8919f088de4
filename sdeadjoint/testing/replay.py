"""The promises of bound noise, one check per item: its numbers, their replay, steps without noise, nested grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..noise import BoundNoise, Increment, Noise
from ..noise.paths import Paths
from .contract import Case, ViolationError, require
from .surroundings import global_generators, reseed


@dataclass(frozen=True)
class Binding(Case):
    """Noise bound to a clock and a state, and the order in which steps are asked for.

    Args:
        clock: the noise clock's nodes.
        order: of the questions.
        shape, dtype: of the state.
        levy: whether space-time Levy areas are asked for.
    """

    clock: tuple[float, ...]
    order: tuple[int, ...] = (0,)
    shape: tuple[int, ...] = (2,)
    dtype: torch.dtype = torch.float64
    levy: bool = True

    def bind(self, noise: Noise, dtype: torch.dtype | None = None) -> BoundNoise:
        like = torch.zeros(self.shape, dtype=dtype or self.dtype, device="cpu")
        return noise.bind(torch.tensor(self.clock, dtype=torch.float64, device="cpu"), like, self.levy)

    @property
    def steps(self) -> int:
        return len(self.clock) - 1

    def code(self, name: str) -> str:
        clock = f"torch.tensor({list(self.clock)}, dtype=torch.float64)"
        like = f"torch.zeros({self.shape}, dtype={self.dtype})"
        made = "" if name == "noise" else f"noise = {name}(0)\n"
        return (
            f"import torch\n{made}bound = noise.bind({clock}, {like}, {self.levy})\n"
            f"print([bound.increment(n) for n in {list(self.order)}])"
        )


@st.composite
def bindings(
    draw: st.DrawFn,
    *,
    still: bool = False,
    dtypes: Sequence[torch.dtype] = (torch.float64,),
    shapes: Sequence[tuple[int, ...]] = ((2,), (), (3, 2), (1,), (0, 2)),
    least: int = 1,
) -> Binding:
    """Positive or negative clocks over some decades, or across zero, of ``least`` steps or more.

    With ``still``, some steps stand still or go to infinity.
    """
    sizes = draw(st.lists(st.sampled_from([1.0, 0.01, 3.0, 0.3, 20.0]), min_size=least, max_size=least + 6))
    nodes = [draw(st.sampled_from([1.0, 0.0, 0.001]))]
    for size in sizes:
        nodes.append(nodes[-1] + size)
    if still:
        nodes = [nodes[0], *sorted([*nodes[1:], draw(st.sampled_from(nodes))])]
    side = draw(st.sampled_from(["positive", "negative", "both"]))
    clock = tuple(-node for node in reversed(nodes)) if side == "negative" else tuple(nodes)
    if side == "both":
        clock = tuple(node - (nodes[0] + nodes[-1]) / 3 for node in nodes)
    if still and clock[-1] > 0 and draw(st.booleans()):
        clock = (*clock, torch.inf)
    order = draw(st.lists(st.integers(0, len(clock) - 2), min_size=1, max_size=12))
    shape = draw(st.sampled_from(list(shapes)))
    return Binding(clock, tuple(order), shape, draw(st.sampled_from(list(dtypes))), draw(st.booleans()))


def _bits(increment: Increment) -> tuple[Tensor, ...]:
    """The numbers, as tensors of their own."""
    return tuple(part.detach().clone() for part in increment if part is not None)


def _same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def check_kind(noise: Noise, case: Binding) -> None:
    bound = case.bind(noise)
    for n in range(case.steps):
        increment = bound.increment(n)
        require(isinstance(increment, Increment), f"increment({n}) is {type(increment).__name__}, not an Increment")
        asked = "was asked for" if case.levy else "was not asked for"
        require((increment.H is not None) == case.levy, f"increment({n}).H is {increment.H}, and {asked}")
        for name, part in zip(("dB", "H"), increment, strict=True):
            if part is None:
                continue
            got, want = (part.dtype, tuple(part.shape), str(part.device)), (case.dtype, case.shape, "cpu")
            require(got == want, f"increment({n}).{name} is {got}; like is {want}")
            require(bool(part.isfinite().all()), f"increment({n}).{name} is {part}, which is not finite")


def check_replay(noise: Noise, case: Binding) -> None:
    first = case.bind(noise)
    forward = [_bits(first.increment(n)) for n in range(case.steps)]
    for bound, which in ((first, "the same object"), (case.bind(noise), "noise bound again")):
        for k, n in enumerate(case.order):
            again = _bits(bound.increment(n))
            if not _same(again, forward[n]):
                raise ViolationError(
                    f"increment({n}) is {_shown(forward[n])} in the order of the steps, and {_shown(again)} of {which} "
                    f"in the order {list(case.order[: k + 1])}"
                )


def check_edits(noise: Noise, case: Binding) -> None:
    bound = case.bind(noise)
    kept = [_bits(bound.increment(n)) for n in range(case.steps)]
    own = {tensor.untyped_storage().data_ptr() for tensor in bound.tensors}
    for n in range(case.steps):
        for part in bound.increment(n):
            if part is not None and part.untyped_storage().data_ptr() not in own:
                part.detach().fill_(7.0)
        for m in range(case.steps):
            now = _bits(bound.increment(m))
            if not _same(now, kept[m]):
                raise ViolationError(f"after increment({n}) was changed in place, increment({m}) is {_shown(now)}")


def check_index(noise: Noise, case: Binding) -> None:
    bound = case.bind(noise)
    for n in (-1, case.steps, case.steps + 5):
        try:
            got = bound.increment(n)
        except IndexError:
            continue
        require(False, f"increment({n}) of {case.steps} steps is {got}; it is an IndexError")


def check_still(noise: Noise, case: Binding) -> None:
    bound = case.bind(noise)
    for n in range(case.steps):
        nu0, nu1 = case.clock[n : n + 2]
        if nu0 == nu1 or nu1 == torch.inf:
            got = _bits(bound.increment(n))
            require(not any(part.any() for part in got), f"increment({n}) over [{nu0}, {nu1}] is {_shown(got)}, not 0")
        else:
            got = _bits(bound.increment(n))
            require(bool(got[0].any()) or got[0].numel() == 0, f"increment({n}) over [{nu0}, {nu1}] is 0")


def check_cast(noise: Noise, case: Binding) -> None:
    narrow, wide = case.bind(noise), case.bind(noise, torch.float64)
    for n in range(case.steps):
        for name, a, b in zip(("dB", "H"), _bits(narrow.increment(n)), _bits(wide.increment(n)), strict=False):
            eps = torch.finfo(case.dtype).eps  # casts may come before sums or after
            near = torch.allclose(a.double(), b, rtol=4 * eps, atol=8 * eps * float(b.abs().max()) if b.numel() else 0)
            require(
                near,
                f"increment({n}).{name} is {a.tolist()} in {case.dtype}, and {b.tolist()} in float64: "
                "draw in one dtype and cast",
            )


def check_generators(noise: Noise, case: Binding) -> None:
    def answers() -> list[tuple[Tensor, ...]]:
        bound = case.bind(noise)
        return [_bits(bound.increment(n)) for n in range(case.steps)]

    with global_generators() as moved:
        kept = answers()
        require(not moved(), f"drawing changed the global generator of {moved()}")
        reseed()
        for n, (a, b) in enumerate(zip(kept, answers(), strict=True)):
            require(
                _same(a, b), f"increment({n}) is {_shown(a)}, and {_shown(b)} after the global generators were seeded"
            )


def check_nested(noise: Noise, case: Binding) -> None:
    """On a clock with some of the nodes, each step is what Chen's relation makes of its parts on the whole clock."""
    kept = sorted({0, *case.order, case.steps})
    clock = torch.tensor(case.clock, dtype=torch.float64, device="cpu")
    like = torch.zeros(case.shape, dtype=torch.float64, device="cpu")
    fine, coarse = (noise.bind(nodes, like, True) for nodes in (clock, clock[kept]))
    parts = [_bits(fine.increment(n)) for n in range(case.steps)]
    dB, H = (torch.stack([part[k] for part in parts]) for k in (0, 1))
    for n, (i, j) in enumerate(pairwise(kept)):
        whole = Paths(clock[i : j + 1], dB[i:j], H[i:j]).coarsened(j - i)
        for name, a, b in zip(("dB", "H"), _bits(coarse.increment(n)), (whole.dB[0], whole.H[0]), strict=True):
            off = float((a - b).abs().max()) if a.numel() else 0.0
            require(
                off <= 1e-9 * math.sqrt(case.clock[j] - case.clock[i]),
                f"{name} over [{case.clock[i]}, {case.clock[j]}] is {a.tolist()} on the clock "
                f"{[case.clock[k] for k in kept]}, and its parts on the finer one make {b.tolist()}",
            )


def _shown(bits: Sequence[Tensor]) -> str:
    return " and ".join(f"{name} = {part.tolist()}" for name, part in zip(("dB", "H"), bits, strict=False))

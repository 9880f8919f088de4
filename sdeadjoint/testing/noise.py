"""``check_noise``: is this Brownian motion that can be replayed?"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from hypothesis import strategies as st

from ..noise import Noise
from . import laws, replay
from .contract import Item, Subject, hold

Make = Callable[[int], Noise]
"""``make(seed)``: the noise of a seed."""


def check_noise(
    noise: Noise | Make,
    *,
    refinable: bool = False,
    alarm: float = 1e-6,
    only: str | None = None,
    skip: Collection[str] = (),
) -> None:
    """Hold noise against the contract of ``BoundNoise``; None, or ``ContractError`` with the smallest counterexample.

    Items: ``"kind"`` (types, shapes, H where it is asked for), ``"replay"`` (bitwise, in any order), ``"edits"`` of
    answers change nothing, ``"index"`` (IndexError), ``"standing still"`` (none over steps of no length or to +inf),
    ``"cast"`` (narrow dtypes round one path), ``"generators"`` (global ones are neither read nor changed), ``"law"``
    (increments N(0, h), areas N(0, h/12), all independent between steps, entries and, given ``make``, seeds) and, with
    ``refinable``, ``"nested grids"``.

    Args:
        noise: the noise, or ``make(seed)``, a function that gives the noise of a seed.
        refinable: the path depends on the seed alone, so that nested grids see the same one.
        alarm: the probability with which right noise fails the item ``"law"``, all its tests together (Bonferroni),
            over the choice of seeds. The seeds are fixed, so right noise passes for good or not at all.
        only: check this item alone.
        skip: items left out.

    Power of the item ``"law"`` at the default alarm, over ten seeds: a correlation of 0.05 between a step's increment
    and area is found in ten of ten, a variance that is 3 % off on every step in nine, one that is 2 % off in one.
    The steps are 13 of 2^14 entries, and 24 of 2^11 for noise that repeats itself; what comes back later is not seen.
    Cost: these draws of increments and areas, twice given ``make``, and some hundred small queries.
    Not for ``FixedNoise``, which is the caller's tensors and fits one grid only.
    Errors: ``TypeError`` for something else, ``ValueError`` for unknown items.
    """
    make: Make | None = None
    if not isinstance(noise, Noise):
        if not callable(noise) or not isinstance(noise(0), Noise):
            raise TypeError(f"noise: got {noise!r}; pass Noise such as BrownianPath(seed=0), or a function make(seed)")
        make, noise = noise, noise(0)
    options = f", refinable={refinable}" * refinable + f", alarm={alarm!r}" * (alarm != 1e-6)
    subject = Subject("check_noise", "noise" if make is None else "make", noise if make is None else make, options)
    hold(subject, tuple(_items(noise, make, refinable, alarm)), only, skip)


def _items(noise: Noise, make: Make | None, refinable: bool, alarm: float) -> list[Item]:
    def on(check: Callable[[Noise, Any], None]) -> Callable[[object, Any], None]:
        return lambda _, case: check(noise, case)

    any_dtype = replay.bindings(dtypes=(torch.float64, torch.float32, torch.bfloat16))
    narrow = replay.bindings(dtypes=(torch.float32, torch.bfloat16))
    still, plain = replay.bindings(still=True), replay.bindings()
    standing = "a step over which the clock stands still, or that ends at inf, injects no noise"
    law = f"increments N(0, h), areas N(0, h/12), all independent (false alarms: {alarm:g})"
    parted = replay.bindings(shapes=((2,), (3, 2)), least=3)
    samples = st.sampled_from(laws.SAMPLES)

    def check_law(_: object, case: Any) -> None:
        laws.check(noise, make, case, alarm / len(laws.SAMPLES))

    items = [
        Item("kind", "increments are like the state, with H where it is asked for", any_dtype, on(replay.check_kind)),
        Item("replay", "increment(n) depends on n alone, bitwise", plain, on(replay.check_replay)),
        Item("edits", "no in-place edit of an answer changes a later one", plain, on(replay.check_edits), 10),
        Item("index", "a step that the grid does not have is an IndexError", plain, on(replay.check_index), 5),
        Item("standing still", standing, still, on(replay.check_still)),
        Item("cast", "the path does not depend on the state's dtype", narrow, on(replay.check_cast), 10),
        Item("generators", "no global generator is read or changed", plain, on(replay.check_generators), 5),
        Item("law", law, samples, check_law, len(laws.SAMPLES)),
    ]
    nested = Item("nested grids", "nested grids see the same path", parted, on(replay.check_nested), 20)
    return [*items, nested] if refinable else items

"""Hypothesis strategies for noise schedules and their times."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from ..schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLinear


def schedules() -> st.SearchStrategy[Schedule]:
    """Every kind of schedule, with singular and regular ends."""
    return st.one_of(
        st.just(VPLinear()),
        st.just(RectifiedFlow()),
        st.builds(
            lambda low, more: VPLinear(low, low + more),
            st.one_of(st.just(0.0), st.floats(1e-3, 5.0)),
            st.one_of(st.floats(0.5, 50.0), st.just(1e4)),
        ),
        st.builds(VPCosine, st.one_of(st.just(0.008), st.just(0.0), st.floats(1e-4, 1.0))),
        st.builds(VE, st.floats(1e-4, 0.1), st.floats(1.0, 1e3)),
        tables(),
    )


@st.composite
def tables(draw: st.DrawFn) -> Tabulated:
    """``Tabulated`` schedules: DDPM's betas or random increments of the angle; ends regular or singular."""
    first = draw(st.sampled_from([0.01, 0.0, 1e-4]))  # sigma(0), as an angle
    last = draw(st.sampled_from([0.05, 0.0, 1e-4]))  # alpha(T-1), as an angle
    if draw(st.booleans()):
        total, alphas_cumprod = draw(st.integers(3, 200)), []
        product = 1.0
        for i in range(total):
            # The ends of Ho et al. 2020, scaled so that any number of steps reaches the same noise.
            product *= 1 - min(0.9, 1000 / total * (1e-4 + (0.02 - 1e-4) * i / (total - 1)))
            alphas_cumprod.append(product)
        return Tabulated(alphas_cumprod)
    rises = draw(st.lists(st.floats(0.05, 1.0), min_size=3, max_size=12))
    scale = (math.pi / 2 - first - last) / sum(rises)
    angles = [first + scale * sum(rises[:i]) for i in range(len(rises))]
    return Tabulated([math.cos(angle) ** 2 for angle in angles] + [math.sin(last) ** 2])


def times(schedule: Schedule, *, ends: bool = False) -> st.SearchStrategy[float]:
    """Times with finite ``lam``, crowded towards both ends (to 1e-12 of the range); with ``ends``, those too.

    The range is the domain, or ``[0, 10 t_max]`` where that is infinite.
    """
    low, high = schedule.domain
    if high == math.inf:
        high = 10 * schedule.t_max
    width = high - low
    exponent = st.floats(-12.0, math.log10(0.5))
    inner = st.one_of(
        st.floats(0.01, 0.99).map(lambda u: low + u * width),
        exponent.map(lambda e: low + 10**e * width),
        exponent.map(lambda e: high - 10**e * width),
        st.sampled_from([schedule.t_min, schedule.t_max]),
    )
    return st.one_of(inner, st.sampled_from([low, high])) if ends else inner

"""Hypothesis strategies for everything the library takes.

Ranges are those in which float64 arithmetic has digits to spare, so that a property that holds in exact arithmetic can
be tested to a tolerance that follows from the dtype; they shrink to the simplest case (few steps, eta = 0, Euler).
"""

from __future__ import annotations

import inspect
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import solvers as _solvers
from ..adjoints import Adjoint, Checkpoint, Direct, Hooked
from ..diffusion.frames import KINDS, Frame
from ..diffusion.grids import karras, uniform_logsnr, uniform_time
from ..diffusion.predictions import PREDICTIONS
from ..diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLevel, VPLinear
from ..noise import BrownianPath, FixedNoise, Noise, ShiftedNoise
from ..problems import Mixture
from ..solvers import RK4, AdamsBashforth, Coupled, DPMSolver3, Euler, Heun, ShARK, Solver, Tableau, UniPC
from ..solvers.adams_bashforth import VARIABLES
from ..solvers.dpm_solver_3 import VARIANTS as DPM_SOLVER_3
from .networks import Network


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
        st.builds(VPLevel, st.floats(1e-4, 0.1), st.floats(1.0, 1e3)),
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

    The range is the domain (a table's begins with clean data at -1), or ``[0, 10 t_max]`` where that is infinite.
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


def kinds() -> st.SearchStrategy[str]:
    """The kinds of frame: ``"data"``, ``"noise"``, ``"flow"``."""
    return st.sampled_from(KINDS)


def etas() -> st.SearchStrategy[float]:
    """Noise powers: the ODE, the diffusion SDE, and others up to 2."""
    return st.one_of(st.sampled_from([0.0, 1.0, 0.3, 2.0]), st.floats(0.01, 2.0))


def frames(schedule: Schedule | None = None) -> st.SearchStrategy[Frame]:
    """Frames of every kind and eta, over the given schedule or any."""
    over = schedules() if schedule is None else st.just(schedule)
    return st.builds(Frame, over, eta=etas(), kind=kinds())


@st.composite
def grids(
    draw: st.DrawFn,
    schedule: Schedule,
    *,
    max_steps: int = 40,
    logsnr: tuple[float, float] = (-6.0, 6.0),
    singular: bool = False,
) -> Tensor:
    """Grids of 1 to ``max_steps`` steps: uniform in lambda or time, Karras', or with steps of random sizes.

    Args:
        schedule: whose default ends ``t_max`` and ``t_min`` the grid keeps, but for ``logsnr``.
        max_steps: the largest number of steps.
        logsnr: the range of lambda that the grid's ends are moved into. Within the default one every frame with
            ``eta <= 2`` has clocks and weights between 1e-11 and 1e11.
        singular: let some grids start at alpha = 0 and some end at sigma = 0, where the schedule has such times. Of the
            frames only the data and flow kinds can start there.
    """
    steps = draw(st.integers(1, max_steps))
    t_max, t_min = (_moved_into(schedule, t, logsnr) for t in (schedule.t_max, schedule.t_min))
    make = draw(st.sampled_from([uniform_logsnr, uniform_time, karras, None]))
    if make is not None:
        grid = make(schedule, steps, t_max=t_max, t_min=t_min)
    else:
        sizes = draw(st.lists(st.floats(0.1, 1.0), min_size=steps, max_size=steps))
        places = torch.tensor([0.0, *sizes], dtype=torch.float64, device="cpu").cumsum(0) / sum(sizes)
        lam0, lam1 = schedule.lam(t_max), schedule.lam(t_min)
        grid = schedule.time(lam0 + (lam1 - lam0) * places.clamp(max=1.0))
        grid[0], grid[-1] = t_max, t_min
    if singular:
        low, high = schedule.domain
        if schedule.lam(high).isneginf() and math.isfinite(high) and draw(st.booleans()):
            grid[0] = high
        if schedule.lam(low).isposinf() and draw(st.booleans()):
            grid[-1] = low
    return grid


def _moved_into(schedule: Schedule, t: float, logsnr: tuple[float, float]) -> float:
    lam = float(schedule.lam(t))
    return t if logsnr[0] <= lam <= logsnr[1] else float(schedule.time(min(max(lam, logsnr[0]), logsnr[1])))


def _exported() -> tuple[Solver, ...]:
    exported = (getattr(_solvers, name) for name in _solvers.__all__)
    classes = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Solver)]
    variants = [*map(DPMSolver3, DPM_SOLVER_3), *(UniPC(order) for order in (1, 2, 3)), UniPC(2, "bh1")]
    given = (AdamsBashforth, Coupled, DPMSolver3, UniPC)
    plain = [kind() for kind in classes if not inspect.isabstract(kind) and kind not in given]
    coupled = [Coupled(base) for base in (Euler(), Heun(), RK4(), ShARK())]
    multistep = [AdamsBashforth(order, variable) for variable in VARIABLES for order in (1, 2, 3, 4)]
    multistep += [AdamsBashforth(order, variable, RK4()) for variable in VARIABLES for order in (3, 4)]
    simplest = sorted([*plain, *coupled, *variants], key=lambda solver: (solver.claims.ode, solver.claims.evaluations))
    return (*simplest, *multistep)


SOLVERS: tuple[Solver, ...] = _exported()
"""Every exported solver; ``AdamsBashforth`` in every order and variable, and in those above 2 with a start of its order
too; ``UniPC`` in every order, ``DPMSolver3`` in every variant, and ``Coupled`` around four bases."""


def solvers() -> st.SearchStrategy[Solver]:
    """Every exported solver."""
    return st.sampled_from(SOLVERS)


def predictions() -> st.SearchStrategy[str]:
    """The five prediction kinds."""
    return st.sampled_from(PREDICTIONS)


def seeds() -> st.SearchStrategy[int]:
    """Seeds of ``BrownianPath``."""
    return st.integers(0, 2**63 - 1)


@st.composite
def tableaus(draw: st.DrawFn, *, max_stages: int = 4) -> Tableau:
    """Explicit tableaus of order 1 at least: weights that add up to 1, nodes that are the sums of their rows in [0, 1].

    Stages see the part of the increment that belongs to their node, and no Levy area.
    """
    stages = draw(st.integers(1, max_stages))
    c = (0.0, *(draw(st.integers(0, 4)) / 4 for _ in range(stages - 1)))
    a = []
    for i in range(stages):
        shares = draw(st.lists(st.integers(0, 4), min_size=max(0, i - 1), max_size=max(0, i - 1)))
        row = [c[i] * share / 8 for share in shares]
        a.append((*row, c[i] - sum(row)) if i else ())
    first = [draw(st.integers(-2, 4)) / 4 for _ in range(stages - 1)]
    return Tableau(a=tuple(a), b=(*first, 1.0 - sum(first)), c=c, noise=c)


@st.composite
def mixtures(draw: st.DrawFn, *, event: tuple[int, ...] = (2,), max_components: int = 4) -> Mixture:
    """Gaussian mixtures with moderate means and widths: one to ``max_components`` isotropic components."""
    count = draw(st.integers(1, max_components))
    weights = [draw(st.integers(1, 4)) for _ in range(count)]
    size = count * math.prod(event)
    means = [draw(st.integers(-8, 8)) / 4 for _ in range(size)]
    variances = [draw(st.sampled_from([0.5, 1.0, 0.1])) for _ in range(count)]
    placed = torch.tensor(means, dtype=torch.float64, device="cpu").reshape(count, *event)
    return Mixture([float(w) for w in weights], placed.tolist(), variances)


def networks(shape: tuple[int, ...] = (3,)) -> st.SearchStrategy[Network]:
    """Small smooth float64 networks for samples of this shape, with shared, frozen and unused parameters."""
    return st.builds(Network, st.just(shape), width=st.integers(1, 6), seed=st.integers(0, 2**16))


@st.composite
def noises(draw: st.DrawFn, frame: Frame, grid: Tensor, like: Tensor) -> Noise | None:
    """Noise that fits a solve, with Levy areas: replayed, fixed and shifted; None for eta = 0.

    The tensors of ``FixedNoise`` and ``ShiftedNoise`` require gradients.
    """
    if frame.eta == 0:
        return None
    path = BrownianPath(draw(seeds()), refinable=draw(st.sampled_from([False, False, True])))
    kind = draw(st.sampled_from(["replayed", "fixed", "shifted"]))
    if kind == "replayed":
        return path
    dB, H = path.increments(frame, grid, like), path.levy_areas(frame, grid, like)
    if kind == "shifted":
        return ShiftedNoise(path, (0.1 * dB).requires_grad_(), (0.1 * H).requires_grad_())
    return FixedNoise(dB.requires_grad_(), H.requires_grad_())


def adjoints() -> st.SearchStrategy[Adjoint]:
    """Exact adjoints that take every solver: their gradients are those of ``Direct()``."""
    return st.one_of(
        st.just(Direct()),
        st.just(Checkpoint()),
        st.builds(Checkpoint, st.integers(1, 8)),
        st.builds(Checkpoint, memory=st.sampled_from(["1MiB", "1GiB", 4096])),
        st.just(Hooked(Checkpoint(), _seen)),
        st.just(Hooked(Direct(), _seen)),
    )


def _seen(n: int, t: float, a: Tensor) -> None:
    """A hook that leaves the adjoint as it is."""

"""Time grids: float64 tensors of ``steps + 1`` strictly decreasing times, from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..arguments import is_integer
from .schedules import Schedule, Tabulated
from .schedules.level import Level


def uniform_logsnr(
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    final_zero: bool = False,
) -> Tensor:
    """Times at equal distances in ``lambda = log(alpha / sigma)``, the natural grid of exponential integrators.

    Args:
        schedule: the noise schedule.
        steps: number of steps N >= 1; the grid has N + 1 times.
        t_max, t_min: first and last time; ``schedule.t_max`` and ``schedule.t_min`` unless given. Both need a
            finite lambda: where alpha(t_max) = 0 use ``uniform_time``.
        final_zero: make the last step go to sigma = 0 (the x_0 projection), with the others down to ``t_min``.

    Returns a float64 tensor (N + 1,) on the CPU. Source: Lu et al. (2022a), section 3.3.
    """
    t0, t1 = _ends(schedule, steps, t_max, t_min)
    lam0, lam1 = schedule.lam(t0), schedule.lam(t1)
    if not (torch.isfinite(lam0) and torch.isfinite(lam1)):
        raise ValueError(
            f"uniform_logsnr: lambda is infinite at an end (t_max={t0}: {lam0.item()}, t_min={t1}: {lam1.item()}); "
            "move that end inwards, use uniform_time, or final_zero=True for a last step to sigma = 0"
        )
    return _assemble(schedule, lambda n: schedule.time(lam0 + (lam1 - lam0) * _unit(n)), steps, (t0, t1), final_zero)


def uniform_time(
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    final_zero: bool = False,
) -> Tensor:
    """Equal steps in time: what flow models and plain DDIM use. It may start at alpha = 0 and end at sigma = 0.

    Arguments and result as for ``uniform_logsnr``. Wasteful for VP schedules near sigma = 0, where lambda runs off.
    """
    t0, t1 = _ends(schedule, steps, t_max, t_min)
    return _assemble(schedule, lambda n: t0 + (t1 - t0) * _unit(n), steps, (t0, t1), final_zero)


def karras(
    schedule: Schedule,
    steps: int,
    *,
    t_max: float | None = None,
    t_min: float | None = None,
    rho: float = 7.0,
    final_zero: bool = False,
) -> Tensor:
    """Karras et al. (2022), eq. 5: ``r^(1/rho)`` equally spaced, ``r = sigma / alpha`` the noise-to-signal ratio.

    ``rho`` = 1 is uniform in r; larger rho puts more steps near the data. EDM's own sampler uses rho = 7 with
    ``final_zero=True``. Arguments and result otherwise as for ``uniform_logsnr``; r must be finite at ``t_max``.
    """
    if not rho > 0:
        raise ValueError(f"rho: got {rho}; pass a positive number (EDM uses 7)")
    t0, t1 = _ends(schedule, steps, t_max, t_min)
    lam0, lam1 = schedule.lam(t0), schedule.lam(t1)
    root0, root1 = ((-lam / rho).exp() for lam in (lam0, lam1))
    if not torch.isfinite(root0):
        raise ValueError(f"karras: sigma / alpha is infinite at t_max={t0}; move t_max inwards or use uniform_time")

    def nodes(n: int) -> Tensor:
        lam = -rho * (root0 + (root1 - root0) * _unit(n)).log()
        return schedule.time(lam.clamp(lam0, lam1))  # rho magnifies round-off, which must not leave the schedule

    return _assemble(schedule, nodes, steps, (t0, t1), final_zero)


def timesteps(
    schedule: Schedule, steps: int, *, spacing: str = "leading", offset: int = 0, final_zero: bool = True
) -> Tensor:
    """Whole timesteps of a table: the grid of ``DDPMScheduler`` and ``DDIMScheduler`` of diffusers.

    With T entries in the table, and rounding of halves to the even number:

    ===========  ======================================================  ========================
    spacing      the timesteps, backwards                                T = 1000, 4 steps
    ===========  ======================================================  ========================
    "leading"    ``k floor(T / steps) + offset``, k = 0 .. steps - 1     750, 500, 250, 0
    "trailing"   ``round(T - k T / steps) - 1``, forwards                999, 749, 499, 249
    "linspace"   ``round(k (T - 1) / (steps - 1))``                      999, 666, 333, 0
    ===========  ======================================================  ========================

    Args:
        schedule: a ``Tabulated`` schedule, such as ``Tabulated.ddpm()``: timesteps are the indices of its table.
        steps: the number of network calls of a method with one call a step, at most T.
        spacing: as ``timestep_spacing`` of the scheduler's configuration.
        offset: as ``steps_offset`` there (1 for Stable Diffusion), for "leading" only.
        final_zero: end at clean data, t = -1, so that the last step is the predicted x_0 (``set_alpha_to_one=True``
            there); ``False`` ends at t = 0, the table's first entry (``set_alpha_to_one=False``).

    Returns a float64 tensor (steps + 1,) on the CPU: the timesteps at which the network is called, and the end.
    Not for multistep schedulers, whose timesteps are others: ``from_diffusers(model, scheduler).grid(steps)`` has them.
    Source: Lin et al. (2024), Common Diffusion Noise Schedules and Sample Steps are Flawed, table 2.
    """
    if not isinstance(schedule, Tabulated):
        raise TypeError(
            f"schedule: got {type(schedule).__name__}, which has no table of timesteps; pass Tabulated.ddpm(...), or "
            "use uniform_time"
        )
    last = len(schedule.alphas_cumprod) - 1
    called = _spaced(last + 1, steps, spacing, offset)
    end = schedule.domain[0] if final_zero else 0.0
    if called[0] > last or called[-1] <= end:
        raise ValueError(
            f"offset: got {offset}, so that {steps} steps with spacing={spacing!r} run from {called[0]} to "
            f"{called[-1]} and end at {end:g}, in a table of the timesteps 0 to {last}; pass "
            + ("a smaller one" if called[0] > last else "a larger one, or final_zero=True where it is False")
        )
    return torch.tensor([*called, end], dtype=torch.float64, device="cpu")


def _spaced(total: int, steps: int, spacing: str, offset: int) -> list[int]:
    """The timesteps that a network is called at, decreasing."""
    if not is_integer(steps, least=1) or steps > total:
        raise ValueError(f"steps: got {steps!r}; pass an integer from 1 to {total}, the length of the table")
    if not is_integer(offset, least=0) or (offset and spacing != "leading"):
        raise ValueError(f"offset: got {offset!r}; pass an integer >= 0, and one other than 0 with 'leading' only")
    if spacing == "leading":
        return [n * (total // steps) + offset for n in reversed(range(steps))]
    if spacing == "trailing":
        # numpy's arange, whose rounding this has to share: it counts in steps of -total / steps, not in fractions.
        return [round(each) - 1 for each in np.arange(total, 0, -total / steps)[:steps].tolist()]
    if spacing == "linspace":
        return [round(each) for each in reversed(np.linspace(0, total - 1, steps).tolist())]
    raise ValueError(f"spacing: got {spacing!r}; pass 'leading', 'trailing' or 'linspace'")


def plain_time(schedule: Schedule, steps: int) -> Tensor:
    """Equal steps in time, as DDIM takes them; Karras' steps where time is the noise level itself."""
    return karras(schedule, steps) if isinstance(schedule, Level) else uniform_time(schedule, steps)


def whole_time(schedule: Schedule, steps: int) -> Tensor:
    """Equal steps over all times of a schedule, from pure noise to sigma = 0, as flow models take them.

    Karras' steps where time is the noise level itself.
    """
    if isinstance(schedule, Level):
        return karras_to_zero(schedule, steps)
    low, high = schedule.domain
    return uniform_time(schedule, steps, t_max=high if math.isfinite(high) else None, t_min=low)


def karras_to_zero(schedule: Schedule, steps: int) -> Tensor:
    """EDM's grid: ``karras`` with rho = 7, and a last step to sigma = 0 where the schedule has one."""
    return karras(schedule, steps, final_zero=not torch.isfinite(schedule.log_sigma(schedule.domain[0])))


def coarsen(grid: Tensor | Sequence[float], factor: int) -> Tensor:
    """Every ``factor``-th time of a grid: a nested grid whose times are bitwise those of the fine one.

    ``factor`` must divide the number of steps, so that both ends stay.
    """
    grid = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    steps = grid.shape[0] - 1
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1 or steps % factor:
        raise ValueError(f"factor: got {factor!r}; pass a positive divisor of the grid's {steps} steps")
    return grid[::factor].clone()


def validate_grid(grid: Tensor | Sequence[float], schedule: Schedule) -> Tensor:
    """The grid as a float64 CPU tensor, or a ``ValueError`` that says what is wrong with it.

    A grid is one-dimensional, has at least two times, strictly decreases, is finite and lies in the
    schedule's domain. Sequences of numbers and tensors of any real dtype are accepted (the cast to float64 is exact).
    """
    if isinstance(grid, Tensor) and (grid.is_complex() or grid.dtype == torch.bool):
        raise ValueError(f"grid: got dtype {grid.dtype}; pass real times, float64 for preference")
    if isinstance(grid, Tensor) and grid.requires_grad:
        raise ValueError("grid: requires a gradient, but samplers are not differentiated in time; pass grid.detach()")
    try:
        times = torch.as_tensor(grid, dtype=torch.float64, device="cpu").clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"grid: got {type(grid).__name__}; pass a 1-D float64 tensor or a sequence of numbers ({error})"
        ) from None
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f"grid: got shape {tuple(times.shape)}; pass a 1-D grid of steps + 1 >= 2 times")
    if not torch.isfinite(times).all():
        bad = int((~torch.isfinite(times)).nonzero()[0])
        raise ValueError(f"grid: time {bad} is {times[bad].item()}; pass finite times only")
    rising = (times.diff() >= 0).nonzero()
    if len(rising):
        n, last = int(rising[0]), len(times) - 2
        advice = "pass grid.flip(0) if it runs from data to noise"
        if times[n] == times[n + 1]:
            advice = "pass each time once" if n < last else "leave the last one out: pass grid[:-1]"
        raise ValueError(
            f"grid: must strictly decrease, from noise to data, but grid[{n}]={times[n].item()} is followed by "
            f"grid[{n + 1}]={times[n + 1].item()}; {advice}"
        )
    low, high = schedule.domain
    if times[-1] < low or times[0] > high:
        raise ValueError(
            f"grid: runs from {times[0].item()} to {times[-1].item()}, outside the times [{low}, {high}] "
            f"where {type(schedule).__name__} is defined"
        )
    return times


def _ends(schedule: Schedule, steps: int, t_max: float | None, t_min: float | None) -> tuple[float, float]:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}; pass an integer >= 1")
    t0 = schedule.t_max if t_max is None else float(t_max)
    t1 = schedule.t_min if t_min is None else float(t_min)
    low, high = schedule.domain
    if not low <= t1 < t0 <= high:
        raise ValueError(
            f"t_max, t_min: got {t0}, {t1}; pass {low} <= t_min < t_max <= {high} for {type(schedule).__name__}"
        )
    return t0, t1


def _unit(steps: int) -> Tensor:
    return torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64, device="cpu")


def _assemble(
    schedule: Schedule, nodes: Callable[[int], Tensor], steps: int, ends: tuple[float, float], final_zero: bool
) -> Tensor:
    """Nodes with their ends exactly as asked, closed by the time of sigma = 0 if ``final_zero``."""
    (t0, t1), low = ends, schedule.domain[0]
    if not final_zero:
        grid = nodes(steps)
        grid[0], grid[-1] = t0, t1
        return grid
    if torch.isfinite(schedule.log_sigma(low)):
        raise ValueError(f"final_zero: {schedule!r} never reaches sigma = 0; pass final_zero=False")
    if t1 == low:
        raise ValueError(f"final_zero: t_min={t1} is already the time of sigma = 0; pass a larger t_min")
    if steps == 1:
        return torch.tensor([t0, low], dtype=torch.float64, device="cpu")
    grid = nodes(steps - 1)
    grid[0], grid[-1] = t0, t1
    return torch.cat([grid, grid.new_tensor([low])])

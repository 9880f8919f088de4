"""The step that Flow-GRPO publishes, as an equation: to compare with, and to continue what was trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from ..arguments import is_number
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from ..diffusion.schedules import RectifiedFlow
from ..equation import Equation
from ..solvers import Drift


@dataclass(frozen=True)
class FlowGRPO(Equation):
    """``dx = [v + c^2/(2t) (x + (1 - t) v)] dt + c dw`` with c constant over each step: see ``flow_grpo``.

    Args:
        inner: the network on the grid.
        squares: ``c_n^2`` of each step.
        times, clocks, weights, noise_clock: see ``Equation``; the clock is the time, and the weights are ones.
    """

    inner: Diffusion
    squares: tuple[float, ...]
    times: tuple[float, ...]
    noise_clock: tuple[float, ...]

    @property
    def clocks(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.times

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0,) * len(self.times)

    @property
    def start(self) -> Tensor | None:
        return self.inner.start

    @property
    def module(self) -> Denoiser:
        return self.inner.module

    @property
    def tensors(self) -> dict[str, Any]:
        return self.inner.tensors

    def on(self, tensors: Mapping[str, Any]) -> FlowGRPO:
        return replace(self, inner=self.inner.on(tensors))

    def starting_at(self, x: Tensor) -> FlowGRPO:
        return replace(self, inner=self.inner.starting_at(x))

    def drift(self, n: int) -> Drift:
        square = self.squares[n]

        def drift(s: float, y: Tensor) -> Tensor:
            v = self.inner.predict(n, y, s, "flow_prediction")
            out: Tensor = v + square / (2 * s) * (y + (1 - s) * v)
            return out.to(y.dtype)

        return drift


def flow_grpo(
    denoiser: Denoiser,
    grid: Tensor | Sequence[float],
    *,
    level: float = 0.7,
    cond: Mapping[str, Any] | None = None,
) -> FlowGRPO:
    """Return the equation whose Euler steps are the ones that Flow-GRPO publishes.

        published = sa.probability.flow_grpo(denoiser, grid)
        path = sa.solve(published, x_T, solver=sa.Euler(), noise=sa.BrownianPath(0), trajectory=True)
        log_prob = sa.transition_log_prob(published, path, solver=sa.Euler())

    A step from t to t' = t - h is, with ``c^2 = level^2 t / (1 - t)``,

        x' = x - h [v + c^2/(2t) (x + (1 - t) v)] + c sqrt(h) z

    in every step, the last one too. At t = 1, where c is infinite, the denominator is that of the next time.
    It is the Euler-Maruyama step in x of the member ``eta = level^2 / 2`` of the family: its equation is that of
    ``Frame(RectifiedFlow(), eta=0.245)`` for the published level 0.7. As a step it is not: it takes ``c`` and the
    linear part of the drift to be constant over a step, and adds noise of size ``c sqrt(h)`` to the finished image,
    where the equation has none left. Fine detail drowns in it at few steps; Euler's method in the frame integrates
    both exactly at the same cost (the guide's page on probabilities has the numbers).

    Args:
        denoiser: of a ``RectifiedFlow``.
        grid: steps + 1 falling times, the sigmas of the published code: shifted, and ending at 0.
        level: the published a (``noise_level``).
        cond: as for ``sample``.

    Not for anything but comparison and what was trained with it: take ``Frame(RectifiedFlow(), eta=...)``.
    Errors: ``ValueError`` for another schedule, and for a level that is not positive.
    Source: Liu et al. (2025), Flow-GRPO, eq. 9 and its appendix; sigma at t = 1 as in its program.
    """
    if not is_number(level) or not level > 0:
        raise ValueError(f"level: got {level!r}; pass a positive number, 0.7 as published")
    schedule = getattr(denoiser, "schedule", None)
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"denoiser: its schedule is {schedule!r}; the published step is for RectifiedFlow()")
    inner = Diffusion.create(denoiser, Frame(schedule, kind="flow"), grid, {} if cond is None else cond)
    times = inner.times
    squares = [level**2 * t / (1 - (t if t < 1 else following)) for t, following in pairwise(times)]
    steps = [square * (t - following) for square, (t, following) in zip(squares, pairwise(times), strict=True)]
    return FlowGRPO(inner, tuple(squares), times, tuple(accumulate(steps, initial=0.0)))

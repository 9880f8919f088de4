"""Samplers that have names: a frame, a solver, and the grid that is customary with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .diffusion.frames import Frame
from .diffusion.grids import karras_to_zero, plain_time, uniform_logsnr, whole_time
from .diffusion.schedules import Schedule
from .solvers import SRA1, AdamsBashforth, Coupled, DPMSolver3, DPMSolverPP2M, Euler, Heun, ShARK, Solver, UniPC

Spacing = Callable[[Schedule, int], Tensor]
"""``spacing(schedule, steps)``: a grid."""


class _Pair(NamedTuple):
    frame: Frame
    solver: Solver


class NamedSampler(_Pair):
    """A frame and a solver that have a name together, and the grid that is customary with them.

        sample(denoiser, x_T, sampler=samplers.ddim(schedule), steps=20)        # all of it
        frame, solver = samplers.ddim(schedule)                                 # or its parts, and a grid of your own

    Args:
        frame, solver: see ``sample``.
        spacing: ``spacing(schedule, steps)`` gives the customary grid.
    """

    spacing: Spacing

    def __new__(cls, frame: Frame, solver: Solver, spacing: Spacing = uniform_logsnr) -> NamedSampler:
        pair = super().__new__(cls, frame, solver)
        pair.spacing = spacing
        return pair

    def grid(self, steps: int) -> Tensor:
        """The customary grid of so many steps: float64, decreasing times."""
        return self.spacing(self.frame.schedule, steps)


def ddim(schedule: Schedule) -> NamedSampler:
    """DDIM without noise: ``x' = alpha' x_0 + sigma' eps``. Order 1, ODE. Song et al. (2021a), eq. 12 with sigma_t = 0.

    Euler in the data kind; Euler in the noise kind is the same update, but singular where alpha = 0.
    """
    return NamedSampler(Frame(schedule), Euler(), plain_time)


def dpm_solver_pp_1(schedule: Schedule) -> NamedSampler:
    """DPM-Solver++(1), which is DDIM: ``x' = sigma'/sigma x - alpha' (e^-h - 1) x_0``. Lu et al. (2022b)."""
    return ddim(schedule)


def dpm_solver_pp_2m(schedule: Schedule) -> NamedSampler:
    """DPM-Solver++(2M): order 2 with one call per step, ODE. Lu et al. (2022b), Algorithm 2."""
    return NamedSampler(Frame(schedule), DPMSolverPP2M())


def sde_dpm_solver_pp_1(schedule: Schedule, eta: float = 1.0) -> NamedSampler:
    """SDE-DPM-Solver++(1): ``x' = sigma'/sigma e^-h x + alpha' (1 - e^-2h) x_0 + sigma' sqrt(1 - e^-2h) z``.

    Strong order 1. Lu et al. (2022b). ``eta`` scales the noise power, as in k-diffusion.
    """
    return NamedSampler(Frame(schedule, eta=eta), Euler())


def sde_dpm_solver_pp_2m(schedule: Schedule, eta: float = 1.0) -> NamedSampler:
    """SDE-DPM-Solver++(2M), midpoint form: strong order 1, order 2 as the noise vanishes. Lu et al. (2022b).

    ``eta`` scales the noise power, as in k-diffusion's ``dpmpp_2m_sde``.
    """
    return NamedSampler(Frame(schedule, eta=eta), DPMSolverPP2M())


def deis(schedule: Schedule, order: int = 3, variable: str = "log") -> NamedSampler:
    """DEIS: Adams-Bashforth on the noise prediction with clock ``rho = sigma / alpha``. Zhang and Chen (2023).

    ``variable="log"`` interpolates in ``log rho`` (diffusers' default), ``"clock"`` in rho (rho-AB-DEIS).
    """
    return NamedSampler(Frame(schedule, kind="noise"), AdamsBashforth(order, variable), plain_time)


def dpm_solver_3(schedule: Schedule) -> NamedSampler:
    """DPM-Solver-3 on the noise prediction: order 3, three calls per step, ODE. Lu et al. (2022a), Algorithm 2."""
    return NamedSampler(Frame(schedule, kind="noise"), DPMSolver3())


def uni_pc(schedule: Schedule, order: int = 2) -> NamedSampler:
    """UniPC on the data prediction: order min(order + 1, 3) with one call per step, ODE. Zhao et al. (2023)."""
    return NamedSampler(Frame(schedule), UniPC(order))


def edm_heun(schedule: Schedule) -> NamedSampler:
    """EDM's deterministic sampler: Heun on ``dx/dsigma = (x - x_0) / sigma``. Karras et al. (2022), Algorithm 1.

    Meant for ``VE()`` with ``karras(..., final_zero=True)``; on other schedules it is Heun in ``x / alpha`` against
    ``sigma / alpha``.
    """
    return NamedSampler(Frame(schedule, kind="noise"), Heun(), karras_to_zero)


def flow_euler(schedule: Schedule) -> NamedSampler:
    """Euler on a rectified flow, ``x' = x + (t' - t) v``; order 1. Liu et al. (2023), section 2; it equals DDIM."""
    return NamedSampler(Frame(schedule, kind="flow"), Euler(), whole_time)


def flow_heun(schedule: Schedule) -> NamedSampler:
    """Heun on a rectified flow, ``x' = x + (t' - t) (v + v') / 2``; order 2, two calls per step. Liu et al. (2023)."""
    return NamedSampler(Frame(schedule, kind="flow"), Heun(), whole_time)


def sra1_sde(schedule: Schedule) -> NamedSampler:
    """Roessler's SRA1 on the diffusion SDE in the SNR clock: strong order 1.5, two calls per step. Roessler (2010)."""
    return NamedSampler(Frame(schedule, eta=1.0), SRA1())


def shark_sde(schedule: Schedule) -> NamedSampler:
    """ShARK on the diffusion SDE in the SNR clock: strong order 1.5, two calls per step. Foster et al. (2024)."""
    return NamedSampler(Frame(schedule, eta=1.0), ShARK())


def rex(
    schedule: Schedule,
    base: Solver = Heun(),  # noqa: B008 (frozen)
    zeta: float = 0.999,
    eta: float = 0.0,
    kind: str = "data",
) -> NamedSampler:
    """Rex: the McCallum-Foster coupling of a one-step method in the frame. Blasingame and Liu (2025), arXiv 2502.08834.

    The order of ``base``, ODE and strong (``ShARK()``: 1.5 with eta > 0), at twice its calls per step; steps can be
    undone, which ``Reversible()`` needs. ``eta`` scales the noise power. The data kind is the published one. There, in
    float32 or with eta > 0, the way back over a long range of noise loses digits, which ``kind="flow"`` keeps.
    """
    return NamedSampler(Frame(schedule, eta, kind), Coupled(base, zeta))

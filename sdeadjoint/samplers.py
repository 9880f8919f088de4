"""Samplers that have names, as (frame, solver) pairs."""

from __future__ import annotations

from typing import NamedTuple

from .diffusion.frames import Frame
from .diffusion.schedules import Schedule
from .solvers import SRA1, AdamsBashforth, Coupled, DPMSolverPP2M, Euler, Heun, ShARK, Solver


class Sampler(NamedTuple):
    """``frame, solver = samplers.ddim(schedule)``; ``sample(denoiser, x_T, **sampler._asdict(), grid=grid)``."""

    frame: Frame
    solver: Solver


def ddim(schedule: Schedule) -> Sampler:
    """DDIM without noise: ``x' = alpha' x_0 + sigma' eps``. Order 1, ODE. Song et al. (2021a), eq. 12 with sigma_t = 0.

    Euler in the data kind; Euler in the noise kind is the same update, but singular where alpha = 0.
    """
    return Sampler(Frame(schedule), Euler())


def dpm_solver_pp_1(schedule: Schedule) -> Sampler:
    """DPM-Solver++(1), which is DDIM: ``x' = sigma'/sigma x - alpha' (e^-h - 1) x_0``. Lu et al. (2022b)."""
    return ddim(schedule)


def dpm_solver_pp_2m(schedule: Schedule) -> Sampler:
    """DPM-Solver++(2M): order 2 with one call per step, ODE. Lu et al. (2022b), Algorithm 2."""
    return Sampler(Frame(schedule), DPMSolverPP2M())


def sde_dpm_solver_pp_1(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(1): ``x' = sigma'/sigma e^-h x + alpha' (1 - e^-2h) x_0 + sigma' sqrt(1 - e^-2h) z``.

    Strong order 1. Lu et al. (2022b). ``eta`` scales the noise power, as in k-diffusion.
    """
    return Sampler(Frame(schedule, eta=eta), Euler())


def sde_dpm_solver_pp_2m(schedule: Schedule, eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M), midpoint form: strong order 1, order 2 as the noise vanishes. Lu et al. (2022b).

    ``eta`` scales the noise power, as in k-diffusion's ``dpmpp_2m_sde``.
    """
    return Sampler(Frame(schedule, eta=eta), DPMSolverPP2M())


def deis(schedule: Schedule, order: int = 3, variable: str = "log") -> Sampler:
    """DEIS: Adams-Bashforth on the noise prediction with clock ``rho = sigma / alpha``. Zhang and Chen (2023).

    ``variable="log"`` interpolates in ``log rho`` (diffusers' default), ``"clock"`` in rho (rho-AB-DEIS).
    """
    return Sampler(Frame(schedule, kind="noise"), AdamsBashforth(order, variable))


def edm_heun(schedule: Schedule) -> Sampler:
    """EDM's deterministic sampler: Heun on ``dx/dsigma = (x - x_0) / sigma``. Karras et al. (2022), Algorithm 1.

    Meant for ``VE()`` with ``karras(..., final_zero=True)``; on other schedules it is Heun in ``x / alpha`` against
    ``sigma / alpha``.
    """
    return Sampler(Frame(schedule, kind="noise"), Heun())


def flow_euler(schedule: Schedule) -> Sampler:
    """Euler on a rectified flow, ``x' = x + (t' - t) v``; order 1. Liu et al. (2023), section 2; it equals DDIM."""
    return Sampler(Frame(schedule, kind="flow"), Euler())


def flow_heun(schedule: Schedule) -> Sampler:
    """Heun on a rectified flow, ``x' = x + (t' - t) (v + v') / 2``; order 2, two calls per step. Liu et al. (2023)."""
    return Sampler(Frame(schedule, kind="flow"), Heun())


def sra1_sde(schedule: Schedule) -> Sampler:
    """Roessler's SRA1 on the diffusion SDE in the SNR clock: strong order 1.5, two calls per step. Roessler (2010)."""
    return Sampler(Frame(schedule, eta=1.0), SRA1())


def shark_sde(schedule: Schedule) -> Sampler:
    """ShARK on the diffusion SDE in the SNR clock: strong order 1.5, two calls per step. Foster et al. (2024)."""
    return Sampler(Frame(schedule, eta=1.0), ShARK())


def rex(
    schedule: Schedule,
    base: Solver = Heun(),  # noqa: B008 (frozen)
    zeta: float = 0.999,
    eta: float = 0.0,
    kind: str = "data",
) -> Sampler:
    """Rex: the McCallum-Foster coupling of a one-step method in the frame. Blasingame and Liu (2025), arXiv 2502.08834.

    The order of ``base``, ODE and strong (``ShARK()``: 1.5 with eta > 0), at twice its calls per step; steps can be
    undone, which ``Reversible()`` needs. ``eta`` scales the noise power. The data kind is the published one. There, in
    float32 or with eta > 0, the way back over a long range of noise loses digits, which ``kind="flow"`` keeps.
    """
    return Sampler(Frame(schedule, eta, kind), Coupled(base, zeta))

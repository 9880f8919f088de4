"""What each diffusers scheduler is in this library's terms: a schedule, a (frame, solver) pair and a table of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..diffusion.frames import Frame
from ..diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPLevel
from ..samplers import NamedSampler, ddim, edm_heun, flow_euler, flow_heun, sde_dpm_solver_pp_1
from ..solvers import AdamsBashforth, DPMSolverPP2M, Euler, Solver
from .networks import EDM, Preconditioning, VarianceExploding
from .tables import Nodes, ddim_nodes, ddpm_nodes, heun_nodes, midpoint_nodes, multistep_nodes, sigma_nodes
from .timesteps import Interpolated, Proportional, QuarterLog, Same, Timesteps
from .two_stage import TwoStage


class Reading(NamedTuple):
    """A scheduler: ``prediction`` is what the preconditioned model predicts on the scheduler's states."""

    sampler: NamedSampler
    prediction: str
    preconditioning: Preconditioning | None
    timesteps: Timesteps
    nodes: Nodes


def read(scheduler: Any, eta: float) -> Reading:
    """The reading of a supported scheduler; ``ValueError`` by name for everything that cannot be matched."""
    name = type(scheduler).__name__
    if name not in READERS or not type(scheduler).__module__.startswith("diffusers."):
        raise ValueError(
            f"scheduler: {name} cannot be matched; supported are {', '.join(READERS)}. {INSTEAD.get(name, '')}".strip()
        )
    if eta not in (0, 1) or (eta and name != "DDIMScheduler"):
        raise ValueError(
            f"eta: got {eta} for {name}; DDIMScheduler takes 0 and 1 (between them its noise changes with the step "
            "size and has no diffusion of its own), the other schedulers none"
        )
    return READERS[name](scheduler, eta)


def _ddpm(scheduler: Any, eta: float) -> Reading:
    kind = scheduler.variance_type
    if kind not in ("fixed_small", "fixed_small_log"):
        raise ValueError(
            f"DDPMScheduler(variance_type={kind!r}): only the posterior's variance, 'fixed_small' or 'fixed_small_log' "
            "belongs to a diffusion; pass DDPMScheduler.from_config(scheduler.config, variance_type='fixed_small')"
        )
    schedule = Tabulated(scheduler.alphas_cumprod)
    return Reading(sde_dpm_solver_pp_1(schedule), _predicted(scheduler), None, Same(), ddpm_nodes)


def _ddim(scheduler: Any, eta: float) -> Reading:
    schedule = Tabulated(scheduler.alphas_cumprod)
    sampler = sde_dpm_solver_pp_1(schedule) if eta else ddim(schedule)
    return Reading(sampler, _predicted(scheduler), None, Same(), ddim_nodes)


def _multistep(scheduler: Any, eta: float) -> Reading:
    config, low, high = scheduler.config, *_range(scheduler)
    flow = config.use_flow_sigmas
    schedule: Schedule = RectifiedFlow() if flow else VPLevel(low, high)
    prediction = _predicted(scheduler)
    if (prediction == "flow_prediction") != bool(flow):
        raise ValueError(
            f"DPMSolverMultistepScheduler(prediction_type={prediction!r}, use_flow_sigmas={flow}): a velocity of a "
            "flow goes with the levels of a flow; pass both or neither"
        )
    kind = "data" if config.algorithm_type.endswith("++") else "noise"
    frame = Frame(schedule, eta=1.0 if config.algorithm_type.startswith("sde") else 0.0, kind=kind)
    sampler = NamedSampler(frame, _solver(scheduler))
    return Reading(sampler, prediction, None, _multistep_times(scheduler), multistep_nodes)


def _multistep_times(scheduler: Any) -> Timesteps:
    config = scheduler.config
    if config.use_flow_sigmas:
        return Proportional(float(config.num_train_timesteps), "down")
    if config.use_exponential_sigmas or config.use_beta_sigmas:
        return _interpolated(scheduler, "down")
    # Of the others it rounds all but the cosine schedule's, which it cuts.
    spread = config.use_karras_sigmas or config.use_lu_lambdas
    return _interpolated(scheduler, "down" if spread and config.beta_schedule == "squaredcos_cap_v2" else "nearest")


def _euler(scheduler: Any, eta: float) -> Reading:
    config = scheduler.config
    continuous = config.timestep_type == "continuous" and config.prediction_type == "v_prediction"
    times = QuarterLog() if continuous else _interpolated(scheduler)
    return _exploding(scheduler, ddim, times, sigma_nodes)


def _ancestral(scheduler: Any, eta: float) -> Reading:
    return _exploding(scheduler, sde_dpm_solver_pp_1, _interpolated(scheduler), sigma_nodes)


def _heun(scheduler: Any, eta: float) -> Reading:
    return _exploding(scheduler, edm_heun, _interpolated(scheduler), heun_nodes)


def _sde(scheduler: Any, eta: float) -> Reading:
    # Its midpoints are interpolated in the logarithm whatever its sigmas are.
    return _exploding(scheduler, _two_stage, _interpolated(scheduler, logarithmic=True), midpoint_nodes)


def _two_stage(schedule: Schedule) -> NamedSampler:
    return NamedSampler(Frame(schedule, eta=1.0), TwoStage())


def _exploding(scheduler: Any, sampler: Callable[[Schedule], NamedSampler], times: Timesteps, nodes: Nodes) -> Reading:
    """A variance-preserving model on states ``x_0 + sigma eps``."""
    prediction = _predicted(scheduler)
    return Reading(sampler(VE(*_range(scheduler))), prediction, VarianceExploding(prediction), times, nodes)


def _edm_euler(scheduler: Any, eta: float) -> Reading:
    return _edm(scheduler, lambda schedule: ddim(schedule), sigma_nodes)


def _edm_multistep(scheduler: Any, eta: float) -> Reading:
    noisy = scheduler.config.algorithm_type.startswith("sde")
    eta, solver = 1.0 if noisy else 0.0, _solver(scheduler)
    return _edm(scheduler, lambda schedule: NamedSampler(Frame(schedule, eta), solver), multistep_nodes)


def _edm(scheduler: Any, sampler: Callable[[Schedule], NamedSampler], nodes: Nodes) -> Reading:
    config = scheduler.config
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if config.prediction_type not in signs:
        raise ValueError(
            f"{type(scheduler).__name__}(prediction_type={config.prediction_type!r}): pass one of {tuple(signs)}"
        )
    preconditioning = EDM(config.sigma_data, signs[config.prediction_type])
    return Reading(sampler(VE(config.sigma_min, config.sigma_max)), "sample", preconditioning, QuarterLog(), nodes)


def _flow_euler(scheduler: Any, eta: float) -> Reading:
    config = scheduler.config
    for option in ("invert_sigmas", "stochastic_sampling"):
        if config.get(option):
            raise ValueError(
                f"FlowMatchEulerDiscreteScheduler({option}=True) cannot be matched; pass {option}=False"
                + (", or from_velocity with data_at=1" if option == "invert_sigmas" else "")
            )
    return _flow(scheduler, flow_euler, sigma_nodes)


def _flow_heun(scheduler: Any, eta: float) -> Reading:
    return _flow(scheduler, flow_heun, heun_nodes)


def _flow(scheduler: Any, sampler: Callable[[Schedule], NamedSampler], nodes: Nodes) -> Reading:
    times = Proportional(float(scheduler.config.num_train_timesteps))
    return Reading(sampler(RectifiedFlow()), "flow_prediction", None, times, nodes)


def _solver(scheduler: Any) -> Solver:
    """DPM-Solver of order 1 or 2: its "midpoint" extrapolates in lambda, its "heun" integrates that line exactly."""
    config = scheduler.config
    if config.solver_order == 1:
        return Euler()
    if config.solver_order != 2:
        raise ValueError(
            f"{type(scheduler).__name__}(solver_order={config.solver_order}): pass 1 or 2; order 3 there is not the "
            "exact integral of its interpolation, which samplers.deis and AdamsBashforth(3) are"
        )
    return DPMSolverPP2M() if config.solver_type == "midpoint" else AdamsBashforth(2, "log")


def _predicted(scheduler: Any) -> str:
    """diffusers' names of predictions are this library's."""
    kind = scheduler.config.prediction_type
    return "sample" if kind == "original_sample" else str(kind)


def _range(scheduler: Any) -> tuple[float, float]:
    levels = _levels(scheduler)
    return float(levels.min()), float(levels.max())


def _levels(scheduler: Any) -> np.ndarray:
    """``sigma / alpha`` at the timesteps 0, 1, ..., in float32, as schedulers have it: torch's root is not NumPy's."""
    table = scheduler.alphas_cumprod.cpu()
    levels: np.ndarray = (((1 - table) / table) ** 0.5).numpy()
    return levels


def _interpolated(scheduler: Any, rounding: str = "none", logarithmic: bool = False) -> Interpolated:
    """Linear in the level for timesteps that were chosen first, in its logarithm for levels that were."""
    names = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
    logarithmic = logarithmic or any(scheduler.config.get(name) for name in names)
    table = np.log(_levels(scheduler)) if logarithmic else _levels(scheduler)
    knots = table.astype(np.float64).tolist()
    # Schedulers give zero terminal SNR a small one, which may lie above the table's values before it.
    for n in range(len(knots) - 2, -1, -1):
        knots[n] = min(knots[n], knots[n + 1] - 1e-12 * max(1.0, abs(knots[n + 1])))
    return Interpolated(tuple(knots), logarithmic, rounding)


READERS: dict[str, Callable[[Any, float], Reading]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": _ddim,
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverSDEScheduler": _sde,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _ancestral,
    "HeunDiscreteScheduler": _heun,
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": _edm_multistep,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
}

_COMPATIBLE = "DPMSolverMultistepScheduler.from_config(scheduler.config) samples the same model."
INSTEAD = dict.fromkeys(
    (
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "SASolverScheduler",
    ),
    _COMPATIBLE,
)

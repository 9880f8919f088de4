"""What each diffusers scheduler is in this library's terms: a schedule, a (frame, solver) pair and a table of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..diffusion.frames import Frame
from ..diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPLevel
from ..samplers import (
    NamedSampler,
    ddim,
    edm_heun,
    flow_euler,
    flow_heun,
    sde_dpm_solver_pp_1,
    sde_dpm_solver_pp_2m,
)
from ..solvers import AdamsBashforth, DPMSolverPP2M, Euler, Solver
from .ancestral import AncestralPair
from .few_steps import Restart, Trajectory
from .multistep import PLMS, ThirdOrder
from .networks import EDM, Boundary, Preconditioning, VarianceExploding
from .singlestep import Singlestep
from .tables import (
    Nodes,
    ancestral_nodes,
    ddim_nodes,
    ddpm_nodes,
    groups_begin,
    heun_nodes,
    kdpm_nodes,
    lcm_nodes,
    lms_nodes,
    lowered_at_end,
    lowered_by_unipc,
    midpoint_nodes,
    plms_nodes,
    sigma_nodes,
    tcd_nodes,
)
from .timesteps import Arctangent, Interpolated, Proportional, QuarterLog, Same, Timesteps
from .two_stage import TwoStage
from .unipc import UniPCSteps


class Reading(NamedTuple):
    """A scheduler: ``prediction`` is what the preconditioned model predicts on the scheduler's states."""

    sampler: NamedSampler
    prediction: str
    preconditioning: Preconditioning | None
    timesteps: Timesteps
    nodes: Nodes
    lowered: Callable[[Any, int], dict[int, int]] | None = None


def read(scheduler: Any, eta: float) -> Reading:
    """The reading of a supported scheduler; ``ValueError`` by name for everything that cannot be matched."""
    name = type(scheduler).__name__
    if name not in READERS or not type(scheduler).__module__.startswith("diffusers."):
        raise ValueError(
            f"scheduler: {name} cannot be matched; supported are {', '.join(READERS)}"
            + (f". In its place: {INSTEAD[name]}" if name in INSTEAD else "")
        )
    if not 0 <= eta <= 1 or (eta and name not in TAKES_ETA) or (eta not in (0, 1) and name != "TCDScheduler"):
        raise ValueError(
            f"eta: got {eta} for {name}; DDIMScheduler takes 0 and 1 (between them its noise changes with the step "
            "size and has no diffusion of its own), TCDScheduler 0 to 1, the other schedulers none"
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
    config, schedule, prediction = scheduler.config, _level_schedule(scheduler), _predicted(scheduler)
    kind = "data" if config.algorithm_type.endswith("++") else "noise"
    frame = Frame(schedule, eta=1.0 if config.algorithm_type.startswith("sde") else 0.0, kind=kind)
    solver, lowered = _solver(scheduler), _lowering(scheduler)
    return Reading(NamedSampler(frame, solver), prediction, None, _multistep_times(scheduler), sigma_nodes, lowered)


def _lowering(scheduler: Any) -> Callable[[Any, int], dict[int, int]] | None:
    return lowered_at_end if scheduler.config.solver_order > 1 else None


def _deis(scheduler: Any, eta: float) -> Reading:
    config = scheduler.config
    if config.solver_order > 3:
        raise ValueError(f"DEISMultistepScheduler(solver_order={config.solver_order}): it has orders 1 to 3")
    solver = Euler() if config.solver_order == 1 else AdamsBashforth(config.solver_order, "log")
    sampler, times = NamedSampler(Frame(_level_schedule(scheduler), kind="noise"), solver), _level_times(scheduler)
    return Reading(sampler, _predicted(scheduler), None, times, sigma_nodes, _lowering(scheduler))


def _singlestep(scheduler: Any, eta: float) -> Reading:
    config, name = scheduler.config, "DPMSolverSinglestepScheduler"
    order, algorithm = config.solver_order, config.algorithm_type
    if algorithm.startswith("sde") and order > 1:
        raise ValueError(
            f"{name}(algorithm_type={algorithm!r}, solver_order={order}): the noise of its half steps is no part of "
            "the noise of the whole step, so there is no path; pass solver_order=1, or "
            "DPMSolverMultistepScheduler.from_config(scheduler.config), which samples the same model with the same "
            "noise in every step"
        )
    schedule = _level_schedule(scheduler)
    kind = "data" if algorithm.endswith("++") else "noise"
    frame = Frame(schedule, eta=1.0 if algorithm.startswith("sde") else 0.0, kind=kind)
    solver = Euler() if order == 1 else Singlestep(order, config.solver_type == "heun")
    times = _level_times(scheduler)
    sampler = NamedSampler(frame, solver)
    return Reading(sampler, _predicted(scheduler), None, times, sigma_nodes, groups_begin if order > 1 else None)


def _unipc(scheduler: Any, eta: float) -> Reading:
    config = scheduler.config
    if scheduler.solver_p is not None:
        raise ValueError("UniPCMultistepScheduler(solver_p=...): another predictor cannot be matched; leave it out")
    frame = Frame(_level_schedule(scheduler), kind="data" if scheduler.predict_x0 else "noise")
    solver = UniPCSteps(config.solver_order, config.solver_type, tuple(scheduler.disable_corrector))
    times = _level_times(scheduler)
    lowered = lowered_by_unipc if config.solver_order > 1 else None
    return Reading(NamedSampler(frame, solver), _predicted(scheduler), None, times, sigma_nodes, lowered)


def _level_schedule(scheduler: Any) -> Schedule:
    """The levels of a flow, or sigma / alpha of a variance-preserving process."""
    flow, prediction = scheduler.config.use_flow_sigmas, _predicted(scheduler)
    if (prediction == "flow_prediction") != bool(flow):
        raise ValueError(
            f"{type(scheduler).__name__}(prediction_type={prediction!r}, use_flow_sigmas={flow}): a velocity of a flow "
            "goes with the levels of a flow; pass both or neither"
        )
    return RectifiedFlow() if flow else VPLevel(*_range(scheduler))


def _level_times(scheduler: Any) -> Timesteps:
    """Whole timesteps; where they are not those of the levels, the grid has them."""
    if scheduler.config.use_flow_sigmas:
        return Proportional(float(scheduler.config.num_train_timesteps), "down")
    return _interpolated(scheduler, "nearest")


def _lms(scheduler: Any, eta: float) -> Reading:
    return _exploding(scheduler, _lms_sampler, _interpolated(scheduler), lms_nodes)


def _lms_sampler(schedule: Schedule) -> NamedSampler:
    return NamedSampler(Frame(schedule, kind="noise"), AdamsBashforth(4, "clock"))


def _kdpm(scheduler: Any, eta: float) -> Reading:
    return _exploding(scheduler, _kdpm_sampler, _interpolated(scheduler, logarithmic=True), kdpm_nodes)


def _kdpm_sampler(schedule: Schedule) -> NamedSampler:
    return NamedSampler(Frame(schedule, kind="noise"), TwoStage())


def _kdpm_ancestral(scheduler: Any, eta: float) -> Reading:
    return _exploding(scheduler, _ancestral_pair, _interpolated(scheduler, logarithmic=True), ancestral_nodes)


def _ancestral_pair(schedule: Schedule) -> NamedSampler:
    return NamedSampler(Frame(schedule, eta=1.0), AncestralPair())


def _plms(scheduler: Any, eta: float) -> Reading:
    if not scheduler.config.skip_prk_steps:
        raise ValueError(
            "PNDMScheduler(skip_prk_steps=False): its Runge-Kutta steps at the start cannot be matched; pass "
            "PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True), as Stable Diffusion does"
        )
    frame = Frame(Tabulated(scheduler.alphas_cumprod), kind="noise")
    prediction = _predicted(scheduler)
    return Reading(NamedSampler(frame, PLMS(prediction == "v_prediction")), prediction, None, Same(), plms_nodes)


def _lcm(scheduler: Any, eta: float) -> Reading:
    config, schedule = scheduler.config, Tabulated(scheduler.alphas_cumprod)
    preconditioning = Boundary(schedule, _predicted(scheduler), 0.5 / config.timestep_scaling)
    return Reading(NamedSampler(Frame(schedule, eta=1.0), Restart()), "sample", preconditioning, Same(), lcm_nodes)


def _flow_lcm(scheduler: Any, eta: float) -> Reading:
    if scheduler.config.get("scale_factors"):
        raise ValueError(
            "FlowMatchLCMScheduler(scale_factors=...): the state changes its shape, which cannot be matched; pass "
            "scale_factors=None"
        )
    _refuse_inverted(scheduler)
    return _flow(scheduler, lambda schedule: NamedSampler(Frame(schedule, eta=1.0), Restart()), sigma_nodes)


def _tcd(scheduler: Any, eta: float) -> Reading:
    schedule = Tabulated(scheduler.alphas_cumprod)
    if eta == 0:
        return Reading(ddim(schedule), _predicted(scheduler), None, Same(), tcd_nodes)
    if scheduler.alphas_cumprod[-1] == 0:
        raise ValueError("TCDScheduler(rescale_betas_zero_snr=True): with eta above 0 it divides by zero; pass eta=0")
    frame = Frame(schedule, eta=1.0)
    clocks = tuple(frame.clock(torch.arange(len(scheduler.alphas_cumprod), dtype=torch.float64)).tolist())
    return Reading(NamedSampler(frame, Trajectory(eta, clocks)), _predicted(scheduler), None, Same(), tcd_nodes)


def _cogvideox(scheduler: Any, eta: float) -> Reading:
    if not scheduler.config.set_alpha_to_one:
        raise ValueError(
            "CogVideoXDPMScheduler(set_alpha_to_one=False): its last step has order 1 and ends in noise, which cannot "
            "be matched; pass set_alpha_to_one=True"
        )
    sampler = sde_dpm_solver_pp_2m(Tabulated(scheduler.alphas_cumprod))
    return Reading(sampler, _predicted(scheduler), None, Same(), ddim_nodes)


def _cosine(scheduler: Any, eta: float) -> Reading:
    solver = _solver(scheduler)
    reading = _edm(scheduler, lambda schedule: NamedSampler(Frame(schedule, 1.0), solver), sigma_nodes)
    return reading._replace(timesteps=Arctangent(), lowered=_lowering(scheduler))


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
    noisy, solver = scheduler.config.algorithm_type.startswith("sde"), _solver(scheduler)
    power = 1.0 if noisy else 0.0
    reading = _edm(scheduler, lambda schedule: NamedSampler(Frame(schedule, power), solver), sigma_nodes)
    return reading._replace(lowered=_lowering(scheduler))


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
    _refuse_inverted(scheduler)
    return _flow(scheduler, flow_euler, sigma_nodes)


def _refuse_inverted(scheduler: Any) -> None:
    for option in ("invert_sigmas", "stochastic_sampling"):
        if scheduler.config.get(option):
            raise ValueError(
                f"{type(scheduler).__name__}({option}=True) cannot be matched; pass {option}=False"
                + (", or from_velocity with data_at=1" if option == "invert_sigmas" else "")
            )


def _flow_heun(scheduler: Any, eta: float) -> Reading:
    return _flow(scheduler, flow_heun, heun_nodes)


def _flow(scheduler: Any, sampler: Callable[[Schedule], NamedSampler], nodes: Nodes) -> Reading:
    times = Proportional(float(scheduler.config.num_train_timesteps))
    return Reading(sampler(RectifiedFlow()), "flow_prediction", None, times, nodes)


def _solver(scheduler: Any) -> Solver:
    """DPM-Solver of order 1 to 3: its "midpoint" extrapolates in lambda, its "heun" integrates that line exactly."""
    config, name = scheduler.config, type(scheduler).__name__
    order, heun = config.solver_order, config.solver_type == "heun"
    if order == 1:
        return Euler()
    if order == 2:
        return AdamsBashforth(2, "log") if heun else DPMSolverPP2M()
    algorithm = str(config.get("algorithm_type", "sde-dpmsolver++"))
    noisy = algorithm.startswith("sde")
    if order != 3 or (noisy and (name != "DPMSolverMultistepScheduler" or algorithm != "sde-dpmsolver++")):
        orders = "1 or 2" if noisy else "1, 2 or 3"
        raise ValueError(f"{name}(solver_order={order}): it has no such method for {algorithm}; pass {orders}")
    return ThirdOrder(heun, flipped=noisy)


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
    "DEISMultistepScheduler": _deis,
    "DPMSolverSinglestepScheduler": _singlestep,
    "UniPCMultistepScheduler": _unipc,
    "LMSDiscreteScheduler": _lms,
    "KDPM2DiscreteScheduler": _kdpm,
    "KDPM2AncestralDiscreteScheduler": _kdpm_ancestral,
    "PNDMScheduler": _plms,
    "LCMScheduler": _lcm,
    "FlowMatchLCMScheduler": _flow_lcm,
    "TCDScheduler": _tcd,
    "CogVideoXDDIMScheduler": _ddim,
    "CogVideoXDPMScheduler": _cogvideox,
    "CosineDPMSolverMultistepScheduler": _cosine,
    "DDPMParallelScheduler": _ddpm,
    "DDIMParallelScheduler": _ddim,
}
TAKES_ETA = ("DDIMScheduler", "DDIMParallelScheduler", "TCDScheduler")

_COMPATIBLE = "DPMSolverMultistepScheduler.from_config(scheduler.config) samples the same model"
_TOKENS = "it samples discrete tokens, which have no gradient"
_SECOND_TIME = "its model is given a second time; wrap it with Denoiser and sample it on a grid of your own"

INSTEAD: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": "one step is the model's own output; more noise it afresh, as LCMScheduler's do",
    "ConsistencyDecoderScheduler": "it has two fixed steps of a decoder; call the decoder itself",
    "DDIMInverseScheduler": "sa.encode inverts DDIM's own steps exactly; pass DDIMScheduler",
    "DDPMWuerstchenScheduler": "pass Denoiser(prior, VPCosine()) and samplers.sde_dpm_solver_pp_1",
    "DPMSolverMultistepInverseScheduler": "sa.encode inverts the sampler's own steps; pass DPMSolverMultistepScheduler",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": _SECOND_TIME,
    "HeliosDMDScheduler": "its stages change the state's resolution; sample each stage by a call of its own",
    "HeliosScheduler": "its stages change the state's resolution; sample each stage by a call of its own",
    "IPNDMScheduler": "wrap the model with Denoiser and take samplers.deis, whose weights are those of the grid itself",
    "KarrasVeScheduler": "its churn noises the state before each call; from_edm samples the model without churn",
    "LTXEulerAncestralRFScheduler": "FlowMatchEulerDiscreteScheduler samples the same model",
    "MiniMaxH3Scheduler": "FlowMatchEulerDiscreteScheduler on the model's velocity, with from_velocity(data_at=1)",
    "PiflowScheduler": "its steps run a policy that the model returns; differentiate the policy's own loop",
    "RFD4ProteinaScheduler": "wrap the velocity with from_velocity, and its coordinates in the model",
    "RePaintScheduler": "sample(..., after_step=...) puts known regions back; pass DDPMScheduler (no resampling)",
    "SASolverScheduler": _COMPATIBLE,
    "SCMScheduler": "one step is the model's own output; more of them noise it afresh, at angles for times",
    "ScoreSdeVeScheduler": "pass Denoiser(score, VE(...), prediction='score') and samplers.sde_dpm_solver_pp_1",
    "ScoreSdeVpScheduler": "pass Denoiser(score, VPLinear(...), prediction='score') and samplers.sde_dpm_solver_pp_1",
    "UnCLIPScheduler": "DDPMScheduler with variance_type='fixed_small' samples a model whose variance is not learned",
    "VQDiffusionScheduler": _TOKENS,
}
"""What to do in place of the schedulers that are refused."""

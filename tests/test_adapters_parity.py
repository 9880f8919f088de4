"""Adapters against diffusers' own scheduler loops: samples and gradients, same model, latents, timesteps and normals.

Theirs rounds to float32: tables (``alphas_cumprod``, ``sigmas``) always, the state too in ``step`` of Euler, Euler
ancestral, DPM-Solver and the flow-matching schedulers. Ours is float64 throughout. Each of some ten steps thus
contributes some 1e-7, which the division by a small alpha at the start magnifies: 1e-5 for samples, 1e-4 for gradients.
Where only tables are rounded, widening them to float64 leaves round-off of float64.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

from .scheduler_loop import SHAPE, SmallModel, loop, noise_of, randn

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
]

# More than the highest order, so that each method has steps of its full order; divides 1000, as trailing asks.
STEPS = 5
PREDICTIONS = ("epsilon", "sample", "v_prediction")
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

ODE = "dpmsolver++", "dpmsolver"
SDE = "sde-dpmsolver++", "sde-dpmsolver"


def multistep(algorithm: str, order: int = 2, **options: Any) -> tuple[str, dict[str, Any]]:
    noise_kind = not algorithm.endswith("++")
    ends = {"final_sigmas_type": "sigma_min", "lower_order_final": False} if noise_kind else {}
    return "DPMSolverMultistepScheduler", {"algorithm_type": algorithm, "solver_order": order, **ends, **options}


# Each with epsilon, sample and v predictions, where the scheduler has them.
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": False, "eta": 1.0}),
    *(multistep(algorithm, 1) for algorithm in (*ODE, *SDE)),
    *(multistep(algorithm, 2, solver_type=kind) for algorithm in (*ODE, *SDE) for kind in ("midpoint", "heun")),
    ("EulerDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
    ("EDMEulerScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "sigma_schedule": "exponential"}),
]
NO_SAMPLE = {
    "EulerAncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
}
LEVELS = ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}

# Schedules, spacings, ends and shifts, each with the prediction given or epsilon.
TABLES: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **STABLE}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "eta": 1.0}),
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"clip_sample": False, **ZERO_SNR}),
    ("DDPMScheduler", {"clip_sample": False, **ZERO_SNR}),
    ("DDPMScheduler", {"clip_sample": False, "timestep_spacing": "linspace", "variance_type": "fixed_small_log"}),
    *(("DDPMScheduler", {"clip_sample": False, "beta_schedule": kind}) for kind in ("squaredcos_cap_v2", "sigmoid")),
    ("DDPMScheduler", {"clip_sample": False, "beta_schedule": "laplace"}),
    (
        "DDPMScheduler",
        {"clip_sample": False, "num_train_timesteps": 40, "trained_betas": [0.001 + 0.005 * n for n in range(40)]},
    ),
    ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **STABLE}),
    *(
        (name, {**levels, **STABLE})
        for name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
        for levels in ({}, *LEVELS)
    ),
    *(("DPMSolverSDEScheduler", {**levels, **STABLE}) for levels in (LEVELS[1], LEVELS[2])),
    *(("DPMSolverSDEScheduler", {"timestep_spacing": spacing, **STABLE}) for spacing in ("leading", "trailing")),
    *(multistep("dpmsolver++", **levels) for levels in (*LEVELS, {"use_lu_lambdas": True})),
    multistep("dpmsolver++", timestep_spacing="leading", steps_offset=1, **STABLE),
    multistep("dpmsolver++", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1),
    multistep("sde-dpmsolver++", **ZERO_SNR),
    multistep("dpmsolver++", final_sigmas_type="sigma_min", lower_order_final=False),
    multistep("dpmsolver++", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    multistep("sde-dpmsolver++", use_flow_sigmas=True, flow_shift=1.5, prediction_type="flow_prediction"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **STABLE}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", ZERO_SNR),
    (
        "EulerDiscreteScheduler",
        {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
        },
    ),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing", **STABLE}),
    # Timesteps that are no function of the level.
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("DPMSolverSDEScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "mu": 1.15, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min", "sigma_data": 0.7, "sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistepScheduler", {"solver_type": "heun"}),
]

# Schedulers whose order changes at the end of a short run, few-step samplers of distilled models, and others.
SHORT = {"final_sigmas_type": "sigma_min"}
MORE: list[tuple[str, dict[str, Any]]] = [
    *(multistep(algorithm, 2, lower_order_final=True) for algorithm in ("dpmsolver", "sde-dpmsolver")),
    multistep("dpmsolver++", **SHORT),
    multistep("sde-dpmsolver++", euler_at_final=True, lower_order_final=False, **SHORT),
    ("EDMDPMSolverMultistepScheduler", SHORT),
    *(multistep(algorithm, 3, solver_type=kind) for algorithm in ODE for kind in ("midpoint", "heun")),
    *(multistep("dpmsolver++", 3, lower_order_final=lower, **SHORT) for lower in (True, False)),
    multistep("dpmsolver++", 3, use_karras_sigmas=True, prediction_type="v_prediction", **STABLE),
    *(multistep("sde-dpmsolver++", 3, solver_type=kind) for kind in ("midpoint", "heun")),
    multistep("sde-dpmsolver++", 3, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    *(("DEISMultistepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
    ("DEISMultistepScheduler", {"solver_order": 3, "lower_order_final": False, **STABLE}),
    ("DEISMultistepScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    *(("DEISMultistepScheduler", {**levels, **STABLE}) for levels in LEVELS),
    *(
        (
            "DPMSolverSinglestepScheduler",
            {"solver_order": order, "solver_type": kind, "algorithm_type": algorithm, **SHORT},
        )
        for order in (2, 3)
        for kind in ("midpoint", "heun")
        for algorithm in ODE
    ),
    *(("DPMSolverSinglestepScheduler", {"prediction_type": kind, **STABLE}) for kind in PREDICTIONS),
    *(("DPMSolverSinglestepScheduler", {**levels, **STABLE}) for levels in LEVELS),
    ("DPMSolverSinglestepScheduler", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
    (
        "DPMSolverSinglestepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0, "solver_order": 3},
    ),
    *(
        ("UniPCMultistepScheduler", {"solver_order": order, "solver_type": kind, "predict_x0": data, **SHORT})
        for order in (1, 2, 3, 4)
        for kind in ("bh1", "bh2")
        for data in (True, False)
    ),
    *(("UniPCMultistepScheduler", {"prediction_type": kind, **STABLE}) for kind in PREDICTIONS),
    *(("UniPCMultistepScheduler", {"solver_order": 3, **levels, **STABLE}) for levels in LEVELS),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 3], "solver_order": 3, "timestep_spacing": "leading"}),
    ("UniPCMultistepScheduler", ZERO_SNR),
    ("UniPCMultistepScheduler", {"lower_order_final": False, "solver_order": 3, **SHORT}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}),
    *(("LMSDiscreteScheduler", {"prediction_type": kind, **STABLE}) for kind in PREDICTIONS),
    *(("LMSDiscreteScheduler", levels) for levels in LEVELS),
    ("LMSDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **STABLE}),
    *(
        (name, {**levels, **STABLE})
        for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
        for levels in ({}, {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, *LEVELS)
    ),
    *(
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **STABLE, **options})
        for options in ({}, {"prediction_type": "v_prediction"}, {"set_alpha_to_one": True})
    ),
    *(("LCMScheduler", {"prediction_type": kind, "clip_sample": False}) for kind in PREDICTIONS),
    ("LCMScheduler", {"timestep_scaling": 3.0, "original_inference_steps": 20, "clip_sample": False}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}),
    *(("TCDScheduler", {"prediction_type": kind, "eta": 0.3}) for kind in PREDICTIONS),
    *(("TCDScheduler", {"eta": eta}) for eta in (0.0, 1.0)),
    ("CogVideoXDDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    ("CogVideoXDDIMScheduler", {"clip_sample": False, **ZERO_SNR}),
    *(("CogVideoXDPMScheduler", {"clip_sample": False, "prediction_type": kind}) for kind in PREDICTIONS),
    ("CosineDPMSolverMultistepScheduler", {}),
    ("CosineDPMSolverMultistepScheduler", {"sigma_schedule": "karras", "solver_type": "heun"}),
    # Its last step with a final sigma_min has no length, and diffusers takes the root of how it is rounded.
    ("CosineDPMSolverMultistepScheduler", {"prediction_type": "epsilon"}),
    ("DDIMParallelScheduler", {"clip_sample": False}),
    ("DDPMParallelScheduler", {"clip_sample": False}),
]

CASES = (
    [
        (name, {**options, "prediction_type": prediction})
        for name, options in METHODS
        for prediction in PREDICTIONS
        if not (prediction == "sample" and name in NO_SAMPLE)
    ]
    + TABLES
    + MORE
)


# What makes a method. The rest are levels, and what the network's output means: no part of a solver's step, which is
# all that an adjoint knows. So the default adjoint is taken once for each method, and autograd through the loop beyond.
OF_METHODS = {
    "algorithm_type",
    "disable_corrector",
    "eta",
    "euler_at_final",
    "final_sigmas_type",
    "lower_order_final",
    "predict_x0",
    "solver_order",
    "solver_type",
    "timestep_scaling",
    "use_flow_sigmas",
}


def method(case: tuple[str, dict[str, Any]]) -> str:
    return f"{case[0]} {sorted((key, value) for key, value in case[1].items() if key in OF_METHODS)}"


FIRST = [case for n, case in enumerate(CASES) if method(case) not in map(method, CASES[:n])]


@contextmanager
def short_tables(kind: Any) -> Iterator[None]:
    """Let a scheduler that is made set itself to few steps.

    Some set themselves to a thousand, level by level in Python, which ``build`` would replace at once.
    """
    own = kind.set_timesteps

    def few(self: Any, num_inference_steps: int, *args: Any, **options: Any) -> None:
        own(self, min(num_inference_steps, STEPS), *args, **options)

    kind.set_timesteps = few
    try:
        yield
    finally:
        kind.set_timesteps = own


@cache
def _made(name: str, config: bytes) -> Any:
    kind = getattr(diffusers, name)
    with warnings.catch_warnings(), short_tables(kind):
        warnings.filterwarnings("ignore", message=".*algorithm_type.*deprecated", category=FutureWarning)
        return kind(**pickle.loads(config))


def build(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The scheduler with its timesteps set, the adapter's options, and those of its ``step``."""
    config = dict(options)
    ours = {key: config.pop(key) for key in ("eta", "mu") if key in config}
    scheduler = copy.deepcopy(_made(name, pickle.dumps(config)))
    scheduler.set_timesteps(STEPS, **{key: ours[key] for key in ("mu",) if key in ours})
    return scheduler, ours, {key: ours[key] for key in ("eta",) if key in ours}


MODEL = SmallModel()  # which nothing changes: gradients are returned, and not added to its weights


@cache
def _adapted(name: str, options: bytes) -> tuple[Any, sa.adapters.Adapter, dict[str, Any], dict[str, Any]]:
    scheduler, ours, theirs = build(name, pickle.loads(options))
    return scheduler, sa.adapters.from_diffusers(MODEL, scheduler, **ours), ours, theirs


def adapted(case: tuple[str, dict[str, Any]]) -> tuple[Any, sa.adapters.Adapter, dict[str, Any], dict[str, Any]]:
    """What ``build`` gives, and the adapter, once for the two tests of a case; the scheduler is the caller's own."""
    scheduler, *others = _adapted(case[0], pickle.dumps(case[1]))
    return copy.deepcopy(scheduler), *others  # type: ignore[return-value]


def start(scheduler: Any) -> Tensor:
    return randn(*SHAPE, seed=1) * float(getattr(scheduler, "init_noise_sigma", 1.0))


def case_id(case: tuple[str, dict[str, Any]]) -> str:
    name, options = case
    settings = (f"{key}={value}" for key, value in options.items() if key not in ("clip_sample", "trained_betas"))
    return "-".join([name.replace("Scheduler", ""), *settings])


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_samples_and_gradients_are_those_of_the_loop(case: tuple[str, dict[str, Any]]) -> None:
    scheduler, adapter, _, theirs = adapted(case)
    model, normals, weights = MODEL, randn(2 * STEPS, *SHAPE, seed=2), randn(*SHAPE, seed=3)

    def leaves() -> tuple[Tensor, Tensor, Tensor]:
        return start(scheduler).requires_grad_(), randn(2, 3).requires_grad_(), normals.clone().requires_grad_()

    x_T, style, z = leaves()
    adjoint = sa.Checkpoint() if case in FIRST else sa.Direct()
    noise = noise_of(adapter, STEPS, z)
    got = adapter.sample(x_T, steps=STEPS, cond={"style": style}, noise=noise, adjoint=adjoint)
    inputs = [x_T, style, model.time.weight, model.outward.bias]
    gradients = torch.autograd.grad((weights * got).sum(), [*inputs, z] if adapter.frame.eta else inputs)

    x_T, style, z = leaves()
    want = loop(scheduler, model, x_T, z, cond={"style": style}, **theirs)
    inputs = [x_T, style, model.time.weight, model.outward.bias]
    expected = torch.autograd.grad((weights * want).sum(), [*inputs, z] if adapter.frame.eta else inputs)

    tolerance = rounding_of(adapter)
    assert distance(got, want) <= tolerance
    for gradient, reference in zip(gradients, expected, strict=True):
        assert distance(gradient, reference) <= 10 * tolerance


def rounding_of(adapter: sa.adapters.Adapter) -> float:
    """Return what their rounding may change in a sample: 1e-5, and more in the noise kind from a small alpha.

    There ``x' = alpha' (x / alpha + ...)``: a rounding of size 2^-24 in ``x`` reaches the end as ``1 / alpha`` times
    that, and a step has four of them: in ``x``, in the prediction, in the two coefficients.
    """
    if adapter.frame.kind != "noise":
        return 1e-5
    return max(1e-5, 4 * 2**-24 * float((1 / adapter.frame.schedule.alpha(adapter.grid(STEPS))).sum()))


def test_ddim_with_noise_from_zero_snr() -> None:
    """x_T enters by the first call alone; in their loop by the square root of a rounded 0 too.

    That 0 is ``v - sqrt(v)^2``. It is NaN where the processor's root is too large, and 1e-4 in float32 where it is not.
    A variance that is smaller by 8 ulps of float64 makes it ``sqrt(8 ulps) = 4e-8`` anywhere.
    """
    scheduler, ours, theirs = build("DDIMScheduler", {"clip_sample": False, "eta": 1.0, **ZERO_SNR})
    model, normals = SmallModel(), randn(STEPS, *SHAPE, seed=2)
    adapter = sa.adapters.from_diffusers(model, scheduler, **ours)
    got = adapter.sample(start(scheduler), steps=STEPS, noise=noise_of(adapter, STEPS, normals))
    widen(scheduler)
    variance, shorter = scheduler._get_variance, 1 - 8 * torch.finfo(torch.float64).eps
    scheduler._get_variance = lambda *times: shorter * variance(*times)
    assert distance(got, loop(scheduler, model, start(scheduler), normals, **theirs)) <= 1e-5


EXACT = [
    (name, {**options, "prediction_type": prediction})
    for prediction in PREDICTIONS
    for name, options in (
        ("DDPMScheduler", {"clip_sample": False}),
        ("DDIMScheduler", {"clip_sample": False}),
        ("DDIMScheduler", {"clip_sample": False, "eta": 1.0}),
        ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}),
    )
]


# alpha = 0.001 at its start is the difference of 1 and a float32 level: 1e-4 of rounding, and none in float64.
DEIS_FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
EXACT += [("DEISMultistepScheduler", {"solver_order": order, **DEIS_FLOW}) for order in (1, 2, 3)]


@pytest.mark.parametrize("case", [*EXACT, ("DDPMScheduler", {"clip_sample": False, **ZERO_SNR})], ids=case_id)
def test_without_their_rounding_nothing_is_left(case: tuple[str, dict[str, Any]]) -> None:
    scheduler, ours, theirs = build(*case)
    model, normals = SmallModel(), randn(STEPS, *SHAPE, seed=2)
    normals[-1] = 0  # a last step from a timestep above 0 injects noise of size 1e-10 in theirs, and none in ours
    adapter = sa.adapters.from_diffusers(model, scheduler, **ours)
    widen(scheduler)
    x_T = start(scheduler).requires_grad_()
    got = adapter.sample(x_T, steps=STEPS, noise=noise_of(adapter, STEPS, normals))
    want = loop(scheduler, model, x_T, normals, **theirs)
    assert distance(got, want) <= 1e-12
    gradient, reference = (torch.autograd.grad(x.square().sum(), x_T)[0] for x in (got, want))
    assert distance(gradient, reference) <= 1e-12


def test_what_their_rounding_costs_from_a_high_level() -> None:
    """A first step from sigma = 2e4 to 4 loses four digits of a float32 level, and nothing in float64."""
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    scheduler, _, _ = build("HeunDiscreteScheduler", options)
    model = SmallModel()
    adapter = sa.adapters.from_diffusers(model, scheduler)
    grid, x_T = adapter.grid(STEPS), start(scheduler)
    assert float(grid[0]) > 2e4
    got = adapter.sample(x_T, steps=STEPS)
    assert distance(got, loop(scheduler, model, x_T, ())) <= 1e-2
    scheduler.set_timesteps(STEPS)
    torch.testing.assert_close(scheduler.sigmas[::2].double(), grid[:-1], rtol=1e-6, atol=0)
    scheduler.sigmas = torch.cat([grid[:1], grid[1:-1].repeat_interleave(2), grid[-1:]])
    assert distance(got, loop(scheduler, model, x_T, ())) <= 1e-10


def widen(scheduler: Any) -> None:
    """Float64 tables, of the same values."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "one", "sigmas"):
        if isinstance(getattr(scheduler, name, None), Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_any_number_of_steps(name: str, steps: int) -> None:
    scheduler = getattr(diffusers, name)(**({"clip_sample": False} if name == "DDPMScheduler" else {}))
    model, normals = SmallModel(), randn(steps, *SHAPE, seed=2)
    adapter = sa.adapters.from_diffusers(model, scheduler)
    scheduler.set_timesteps(steps)
    got = adapter.sample(start(scheduler), steps=steps, noise=noise_of(adapter, steps, normals))
    assert distance(got, loop(scheduler, model, start(scheduler), normals)) <= 1e-5


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_the_model_is_given_the_timesteps_of_the_scheduler(case: tuple[str, dict[str, Any]]) -> None:
    scheduler, adapter, ours, _ = adapted(case)
    for steps in (3, 10, 29):
        if "trailing" in case_id(case) and "DDIM" in case[0] and steps != 10:
            continue  # refused: see test_adapters.py
        if steps > case[1].get("original_inference_steps", 50):
            continue  # refused by the scheduler: a distilled model has no more
        same_timesteps(adapter, scheduler, case, steps, ours)


def same_timesteps(
    adapter: sa.adapters.Adapter, scheduler: Any, case: tuple[str, dict[str, Any]], steps: int, ours: dict[str, Any]
) -> None:
    scheduler.set_timesteps(steps, **{key: ours[key] for key in ("mu",) if key in ours})
    want = scheduler.timesteps[::2] if "Heun" in case[0] else scheduler.timesteps
    if case[0] == "PNDMScheduler":
        want = torch.cat([want[:1], want[2:]])  # the second is named twice: its first call ends the first step
    parts = adapter.parts(steps=steps)
    network: Any = parts.denoiser.network
    got = network._timestep(parts.grid[:-1])  # it is given one level per sample of a batch
    # A last step of no length is left out.
    assert len(want) - len(got) in (0, 1)
    if network.timesteps.whole:
        assert torch.equal(got.double(), want.double()[: len(got)])
    else:
        torch.testing.assert_close(got.double(), want.double()[: len(got)], rtol=1e-5, atol=1e-5)

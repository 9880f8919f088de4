"""Models, tensors and modes that a new user brings to an adapter: each works exactly, or fails with one sentence."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.abc import MetaPathFinder
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sdeadjoint as sa
from sdeadjoint.adapters import Adapter, from_denoiser, from_diffusers, from_edm, from_velocity
from sdeadjoint.adapters.schedulers import READERS

from .scheduler_loop import loop

# diffusers makes arrays of its tables in a way that NumPy will change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE, STEPS, HIGH = (2, 2, 4, 4), 4, 12.0
KINDS = ("diffusers", "denoiser", "edm", "velocity")
CASES = [pytest.param(kind, eta, id=f"{kind}-{'SDE' if eta else 'ODE'}") for kind in KINDS for eta in (0, 1)]


class Network(nn.Module):
    """Convolutions with a time, a style and dropout, in float32; the calling conventions are those of subclasses."""

    sigma_min, sigma_max = 0.05, HIGH

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inward, self.outward = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
            self.style, self.dropout = nn.Linear(3, 8), nn.Dropout(0.3)
        self.eval()

    def run(self, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
        h = torch.tanh(self.inward(x) + torch.sin(t).to(x.dtype)[:, None, None, None])
        return self.outward(self.dropout(h) * (1 + self.style(style))[:, :, None, None])


class Diffusers(Network):
    def forward(self, sample: Tensor, timestep: Tensor, style: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (self.run(sample, timestep.expand(len(sample)) / 300, style),)


class Denoising(Network):
    def forward(self, x: Tensor, sigma: Tensor, style: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        given = x / (1 + level**2).sqrt().to(x.dtype)
        return given / (1 + level**2).sqrt().to(x.dtype) + self.run(given, sigma.log() / 4, style)


class Velocity(Network):
    def forward(self, *, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
        return self.run(x, t, style) - x


MODELS: dict[str, Callable[[], nn.Module]] = {
    "diffusers": Diffusers,
    "denoiser": Denoising,
    "edm": Denoising,
    "velocity": Velocity,
}


def adapted(kind: str, model: Any, eta: float = 0) -> Adapter:
    sde = {"sampler": sa.samplers.sde_dpm_solver_pp_2m} if eta else {}
    if kind == "diffusers":
        return from_diffusers(model, diffusers.DDIMScheduler(clip_sample=False), **sde)
    if kind == "denoiser":
        return from_denoiser(model, sigma_min=0.05, sigma_max=HIGH, **sde)
    if kind == "edm":
        return from_edm(model, sigma_min=0.05, sigma_max=HIGH, **sde)
    return from_velocity(model, **sde)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return (randn(*SHAPE) * (HIGH if kind in ("denoiser", "edm") else 1.0)).to(dtype)


def outcome(
    kind: str,
    model: Any,
    eta: float = 0,
    *,
    x_dtype: torch.dtype = torch.float32,
    style_dtype: torch.dtype = torch.float32,
    adjoint: sa.Adjoint = sa.Checkpoint(),  # noqa: B008 (frozen)
    mode: AbstractContextManager[Any] | None = None,
) -> list[Tensor]:
    """The sample, and the gradients of x_T, style and all parameters."""
    x_T, style = start(kind, x_dtype).requires_grad_(), randn(2, 3, seed=1).to(style_dtype).requires_grad_()
    torch.manual_seed(3)
    noise = sa.BrownianPath(seed=0) if eta else None
    with mode or nullcontext():
        x = adapted(kind, model, eta).sample(x_T, steps=STEPS, cond={"style": style}, noise=noise, adjoint=adjoint)
    assert x.dtype == x_dtype
    return [x.detach(), *gradients(x, model, x_T, style)]


def gradients(x: Tensor, model: nn.Module, *leaves: Tensor) -> list[Tensor]:
    leaves = (*leaves, *model.parameters())
    found = torch.autograd.grad((randn(*SHAPE, seed=4) * x.float()).sum(), leaves)
    assert all(gradient.dtype == leaf.dtype for gradient, leaf in zip(found, leaves, strict=True))
    return list(found)


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest relative difference."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True)]
    assert all(b.norm() > 0 for _, b in pairs)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "eta"), CASES)
def test_half_precision(kind: str, eta: int, dtype: torch.dtype, x_dtype: torch.dtype) -> None:
    """Autograd through the same loop adds up parameters' gradients in half precision: one rounding per network call."""
    model = MODELS[kind]().to(dtype)
    ours, plain = (
        outcome(kind, model, eta, x_dtype=x_dtype, style_dtype=dtype, adjoint=adjoint)
        for adjoint in (sa.Checkpoint(), sa.Direct())
    )
    assert torch.equal(ours[0], plain[0])
    assert distance(ours, plain) <= 2 * STEPS * torch.finfo(dtype).eps


def test_half_precision_against_loops_of_others() -> None:
    """A bfloat16 model in diffusers' DDIM and in k-diffusion's Euler, their states in float32.

    States that differ in the last bit of float32 may round to other inputs of the model: one rounding per call.
    """
    model, style = Diffusers().bfloat16(), randn(2, 3, seed=1).bfloat16().requires_grad_()
    scheduler, x_T = diffusers.DDIMScheduler(clip_sample=False), start("diffusers").requires_grad_()
    scheduler.set_timesteps(STEPS)

    def narrow(x: Tensor, t: Tensor, style: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (model(x.bfloat16(), t, style)[0].float(),)

    x = loop(scheduler, narrow, x_T, (), cond={"style": style})
    wanted = [x.detach(), *gradients(x, model, x_T, style)]
    found = outcome("diffusers", model, style_dtype=torch.bfloat16)
    assert distance(found, wanted) <= 2 * STEPS * torch.finfo(torch.bfloat16).eps
    # Without the model's rounding it is another gradient: what is compared is not only float32.
    exact = outcome("diffusers", Diffusers())
    assert distance(found[:3], exact[:3]) > 1e-3

    model, x_T = Denoising().bfloat16(), start("denoiser").requires_grad_()
    x, sigmas = x_T, sa.karras(sa.VE(0.05, HIGH), STEPS, final_zero=True).tolist()
    for s, s1 in pairwise(sigmas):
        x = x + (s1 - s) / s * (x - model(x.bfloat16(), torch.tensor([s, s]), style).float())
    wanted = [x.detach(), *gradients(x, model, x_T, style)]
    adapter = from_denoiser(model, sampler=sa.samplers.ddim)
    x = adapter.sample(x_T, steps=STEPS, cond={"style": style})
    found = [x.detach(), *gradients(x, model, x_T, style)]
    assert distance(found, wanted) <= 2 * STEPS * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("kind", "eta"), CASES)
def test_autocast(kind: str, eta: int) -> None:
    model, half = MODELS[kind](), torch.finfo(torch.bfloat16).eps
    plain = outcome(kind, model, eta)
    cast, direct = (
        outcome(kind, model, eta, mode=torch.autocast("cpu", dtype=torch.bfloat16), adjoint=adjoint)
        for adjoint in (sa.Checkpoint(), sa.Direct())
    )
    assert torch.equal(cast[0], direct[0])
    assert distance(cast, direct) <= 2 * STEPS * half
    assert half / 100 < distance(cast[:1], plain[:1]) < 1


@pytest.mark.parametrize("kind", KINDS)
def test_conditioning_of_another_precision_is_named(kind: str) -> None:
    model = MODELS[kind]().bfloat16()
    with pytest.raises(TypeError, match=r"cond\['style'\]: it is torch.float32, but the model computes in torch.bfloa"):
        outcome(kind, model)
    # Autocast converts it, so that there is nothing to say.
    outcome(kind, model, mode=torch.autocast("cpu", dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_latents_are_refused_with_a_way_out(kind: str) -> None:
    model = MODELS[kind]().half()
    with pytest.raises(
        TypeError, match=r"x_T: got dtype torch.float16; pass .* such as x_T.float\(\) \(float16 cannot"
    ):
        outcome(kind, model, x_dtype=torch.float16, style_dtype=torch.float16)
    outcome(kind, model, style_dtype=torch.float16)


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("kind", "eta"), CASES)
def test_disabled_gradients_are_named(kind: str, eta: int, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    adapter, x_T, style = adapted(kind, MODELS[kind](), eta), start(kind), randn(2, 3)
    noise = sa.BrownianPath(seed=0) if eta else None
    for name in ("x_T", "cond"):
        given = {"x_T": x_T.clone(), "cond": style.clone()}
        given[name].requires_grad_()
        with mode(), pytest.raises(RuntimeError, match=f"{name} requires a gradient, but gradients are globally off"):
            adapter.sample(given["x_T"], steps=2, cond={"style": given["cond"]}, noise=noise)
    with mode():
        sampled = adapter.sample(x_T, steps=2, cond={"style": style}, noise=noise)
    assert torch.equal(sampled, adapter.sample(x_T, steps=2, cond={"style": style}, noise=noise))


@pytest.mark.parametrize(("kind", "eta"), CASES)
def test_dropout_in_training(kind: str, eta: int) -> None:
    model = MODELS[kind]().train()
    ours, plain = (outcome(kind, model, eta, adjoint=adjoint) for adjoint in (sa.Checkpoint(), sa.Direct()))
    assert torch.equal(ours[0], plain[0])
    assert distance(ours, plain) <= 1e-5
    assert distance(ours[:1], outcome(kind, model.eval(), eta)[:1]) > 1e-2


# ---------------------------------------------------------------- models


@pytest.mark.filterwarnings("ignore")  # the compiler's own
# Every model, with noise or without: what is compiled does not see it.
@pytest.mark.parametrize(("kind", "eta"), [case for n, case in enumerate(CASES) if n % 4 in (0, 3)])
def test_compiled(kind: str, eta: int) -> None:
    """A compiler may fuse roundings; a compiled module, a module that compiled itself, a compiled method."""
    torch._dynamo.reset()
    model = MODELS[kind]()
    wanted = outcome(kind, model, eta)
    assert distance(outcome(kind, torch.compile(model, backend="aot_eager"), eta), wanted) <= 1e-5
    model.compile(backend="aot_eager")
    assert distance(outcome(kind, model, eta), wanted) <= 1e-5


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("kind", "eta"), CASES)
def test_gradient_checkpointing_of_the_model_s_own(kind: str, eta: int, reentrant: bool) -> None:
    model = MODELS[kind]()
    wanted, run = outcome(kind, model, eta), model.run
    model.run = partial(checkpoint, run, use_reentrant=reentrant)  # type: ignore[assignment, arg-type]
    if not reentrant:
        assert distance(outcome(kind, model, eta), wanted) <= 1e-6
        return
    with pytest.raises(RuntimeError, match=r"use_reentrant=True, which works with .* pass use_reentrant=False there"):
        outcome(kind, model, eta)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_diffusers(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
    ).train()
    x_T = randn(1, 2, 8, 8).requires_grad_()
    adapter = from_diffusers(model, diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))
    results = []
    for enabled in (False, True):
        if enabled:
            function = partial(checkpoint, use_reentrant=True) if reentrant else None
            model.enable_gradient_checkpointing(function)
        if enabled and reentrant:
            with pytest.raises(RuntimeError, match=r"network: it uses torch.utils.checkpoint with use_reentrant=True"):
                adapter.sample(x_T, steps=3, noise=sa.BrownianPath(seed=0))
            return
        x = adapter.sample(x_T, steps=3, noise=sa.BrownianPath(seed=0))
        results.append(list(torch.autograd.grad(x.square().sum(), [x_T, *model.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_another_device(kind: str) -> None:
    x_T, style, model = start(kind), randn(2, 3), MODELS[kind]()
    adapter = adapted(kind, model)
    with pytest.raises(
        ValueError, match=r"x_T: it is on meta, but the model's parameters are on cpu; pass x_T.to\('cp"
    ):
        adapter.sample(x_T.to("meta"), steps=2, cond={"style": style})
    with pytest.raises(TypeError, match=r"cond\['style'\]: it is on meta, but the model's parameters are on cpu; pass"):
        adapter.sample(x_T, steps=2, cond={"style": style.to("meta")})
    parts: dict[str, Any] = {"frame": adapter.frame, "grid": adapter.grid(2), "solver": adapter.solver}
    with pytest.raises(ValueError, match="x_T: it is on meta, where tensors have no values"):
        sa.sample(adapter.denoiser, x_T.to("meta"), **parts, cond={"style": style})
    model.to("meta")
    with pytest.raises(
        ValueError, match=r"x_T: it is on cpu, but the model's parameters are on meta; pass x_T.to\('me"
    ):
        adapter.sample(x_T, steps=2, cond={"style": style})
    with pytest.raises(
        TypeError, match=r"^x: it is on cpu, but the model's parameters are on meta; pass it .to\('meta"
    ):
        sa.sample(adapter.denoiser, x_T, **parts, cond={"style": style})


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_model_s_own_stay_what_they_are(kind: str) -> None:
    class Broken(MODELS[kind]):  # type: ignore[misc]
        def run(self, x: Tensor, t: Tensor, style: Tensor) -> Tensor:
            raise error

    model = Broken()
    for half in (False, True):
        if half:
            model.bfloat16()  # the style is float32
        for error in (RuntimeError("a size does not match"), torch.OutOfMemoryError("on the device"), KeyError("a")):
            with pytest.raises(type(error)) as raised:
                outcome(kind, model)
            assert raised.value is error
    model.float()
    error = RuntimeError("something else about a dtype")
    with pytest.raises(RuntimeError) as raised:
        outcome(kind, model)
    assert raised.value is error


# ---------------------------------------------------------------- schedulers and extras


class OwnScheduler(diffusers.SchedulerMixin):
    """A user's own."""


def schedulers() -> list[type]:
    """Every scheduler that diffusers has and that can be made without arguments, and one of a user."""
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")]
    found = [getattr(diffusers, name) for name in names]
    required = inspect.Parameter.empty
    plain = [c for c in found if all(p.default is not required for p in inspect.signature(c).parameters.values())]
    assert len(plain) > 30
    return [*plain, OwnScheduler]


@pytest.mark.parametrize("scheduler", schedulers())
def test_every_scheduler_is_supported_or_refused_by_name(scheduler: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clipping; some are deprecated
        # PNDM's default begins with Runge-Kutta steps, which have a refusal of their own.
        made = scheduler(**({"skip_prk_steps": True} if scheduler.__name__ == "PNDMScheduler" else {}))
        if scheduler.__name__ in READERS:
            assert isinstance(from_diffusers(Diffusers(), made), Adapter)
            return
        with pytest.raises(
            ValueError, match=f"^scheduler: {scheduler.__name__} cannot be matched; supported are DDPMSc"
        ):
            from_diffusers(Diffusers(), made)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_survive_a_pickle(kind: str) -> None:
    adapter = adapted(kind, MODELS[kind]())
    again = pickle.loads(pickle.dumps(adapter))
    assert repr(again) == repr(adapter)
    x_T, cond = start(kind), {"style": randn(2, 3, seed=1)}
    assert torch.equal(*(a.sample(x_T, steps=STEPS, cond=cond) for a in (adapter, again)))


@pytest.mark.parametrize("scheduler", [made for made in schedulers() if made.__name__ in READERS])
def test_adapters_of_every_scheduler_survive_a_pickle(scheduler: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = scheduler(**({"skip_prk_steps": True} if scheduler.__name__ == "PNDMScheduler" else {}))
        assert repr(pickle.loads(pickle.dumps(from_diffusers(Diffusers(), made)))) == repr(
            from_diffusers(Diffusers(), made)
        )


def test_a_whole_pipeline_is_refused_with_a_way_out() -> None:
    pipeline = diffusers.DDPMPipeline(unet=diffusers.UNet2DModel(**TINY), scheduler=diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match="model: got the pipeline DDPMPipeline; pass its unet or transformer, and its"):
        from_diffusers(pipeline, pipeline.scheduler)


TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (4,),
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "attention_head_dim": 2,
}

EXTRAS = ("diffusers", "sklearn", "matplotlib", "tqdm", "hypothesis", "safetensors", "rich")


class Missing(MetaPathFinder):
    """Finds that none of the extras is installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither the extras nor the library are imported, and the extras cannot be; afterwards all is as before."""
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in (*EXTRAS, sa.__name__):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] == sa.__name__:
            del sys.modules[name]


PROGRAM = """
import torch
import sdeadjoint as sa

x_T = torch.randn(2, 3, requires_grad=True)
for adapter in (
    sa.adapters.from_denoiser(lambda x, sigma: 0.5 * x, sigma_min=0.1, sigma_max=9.0),
    sa.adapters.from_edm(lambda x, sigma: 0.5 * x),
    sa.adapters.from_velocity(lambda x, t: -x),
):
    adapter.sample(x_T, steps=3).sum().backward()
for name, attempt in {
    "diffusers": lambda: sa.adapters.from_diffusers(lambda x, t: x, None),
    "digits": lambda: sa.problems.Digits(),
    "progress": lambda: adapter.sample(x_T, steps=3, progress=True),
    "testing": lambda: __import__("sdeadjoint.testing"),
}.items():
    try:
        attempt()
    except ImportError as error:
        assert f"sdeadjoint[{name}]" in str(error), error
        print(error)
"""


def test_without_any_extra(without_extras: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(PROGRAM, "without extras", "exec"), names)
    assert names["sa"] is not sa
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(ModuleNotFoundError):
        import tqdm  # noqa: F401

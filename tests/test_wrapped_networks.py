"""Networks inside of what people wrap them in: under every adjoint the gradient of ``Direct``, or a refusal."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import sdeadjoint as sa
from sdeadjoint.adapters import from_diffusers

from . import pipelines
from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, worst

accelerate = pytest.importorskip("accelerate", reason="accelerate comes with the extra for development")
peft = pytest.importorskip("peft", reason="peft comes with the extra for development")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """``DistributedDataParallel`` asks for a process group, be it of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class PassesOn(nn.Module):
    def __init__(self, inside: Callable[..., Any]) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


# Any network.


class Energy(nn.Module):
    """The gradient of a scalar, taken by ``torch.func``: an energy model's score."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        self.network, self.mapped = Mlp(3), mapped

    def forward(self, x: Tensor, t: Tensor, embedding: Any = None) -> Tensor:
        if self.mapped:

            def of_one(x: Tensor, t: Tensor) -> Tensor:
                return self.network(x[None], t[None]).square().sum()

            return torch.func.vmap(torch.func.grad(of_one))(x, t)
        return torch.func.grad(lambda x: self.network(x, t, embedding).square().sum())(x)


def lora(network: Mlp) -> nn.Module:
    config = peft.LoraConfig(target_modules=["inward", "outward"], r=2, init_lora_weights=False)
    return peft.get_peft_model(PassesOn(network), config).double()


def functional(network: Mlp) -> Callable[..., Any]:
    weights = dict(network.named_parameters())
    return lambda x, t, **cond: torch.func.functional_call(network, weights, (x, t), cond)


def normalised(network: Mlp) -> nn.Module:
    parametrizations.spectral_norm(network.inward)  # its power iteration changes buffers in training mode
    return network


def pruned(network: Mlp) -> nn.Module:
    prune.l1_unstructured(network.inward, "weight", 0.3)
    return network


def weight_normed(network: Mlp) -> nn.Module:
    parametrizations.weight_norm(network.outward)
    return network


WRAPPERS: dict[str, Callable[[Mlp], Any]] = {
    "nothing": lambda network: network,
    "args and kwargs": PassesOn,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "static_graph": lambda network: DistributedDataParallel(network, static_graph=True),
    "find_unused_parameters": lambda network: DistributedDataParallel(network, find_unused_parameters=True),
    "peft": lora,
    "accelerate.cpu_offload": lambda network: accelerate.cpu_offload(network, "cpu"),
    "accelerate.cpu_offload, frozen": lambda network: accelerate.cpu_offload(network.requires_grad_(False), "cpu"),
    "activation checkpoints": lambda network: checkpoint_wrapper(network, CheckpointImpl.NO_REENTRANT),
    "functional_call": functional,
    "spectral norm": normalised,
    "weight norm": weight_normed,
    "pruning": pruned,
    "average": AveragedModel,
    "compiled": lambda network: torch.compile(network, backend="aot_eager"),
    "torch.func.grad": lambda network: Energy(mapped=False),
    "torch.func.vmap of grad": lambda network: Energy(mapped=True),
}
ADJOINTS = [
    sa.Checkpoint(),
    sa.Checkpoint(snapshots=2),
    sa.Checkpoint(memory="1MiB"),
    sa.Checkpoint(memory=2000),  # the graph of one step of four
    sa.Reversible(),
    sa.Truncated(last=4),
]
GRID = sa.uniform_logsnr(SCHEDULE, 4, t_min=1e-2)
REFUSED = {
    ("spectral norm", "Reversible"): r"its forward pass changes '_u'.*adjoint=Checkpoint\(\)",
}


def wrapped(name: str) -> Any:
    """With the same weights each time, also those that a wrapper draws."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return WRAPPERS[name](Mlp(3))


def gradients(network: Callable[..., Any], adjoint: sa.Adjoint, grid: Tensor = GRID) -> tuple[Tensor, ...]:
    """The sample, and the gradients of everything that has one."""
    x_T = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()
    style = torch.linspace(0, 1, 16, dtype=DOUBLE).reshape(2, 8).requires_grad_()
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"),
        x_T,
        frame=sa.Frame(SCHEDULE, kind="flow"),
        grid=grid,
        solver=sa.Coupled(sa.Euler()),  # which calls the network twice
        cond={"embedding": {"style": [style]}},
        adjoint=adjoint,
    )
    weights = list(network.parameters()) if isinstance(network, nn.Module) else []
    if not weights:
        weights = [p for cell in getattr(network, "__closure__", None) or () for p in parameters(cell.cell_contents)]
    leaves = [x_T, style, *(weight for weight in weights if weight.requires_grad and not weight.is_meta)]
    return out.detach(), *torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)


@functools.cache
def plain(name: str) -> tuple[Tensor, ...]:
    """The same of ``Direct``, for all adjoints."""
    return gradients(wrapped(name), sa.Direct())


def parameters(value: Any) -> Iterator[Tensor]:
    if isinstance(value, dict):
        yield from value.values()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_under_every_adjoint(name: str, adjoint: sa.Adjoint) -> None:
    expected = REFUSED.get((name, type(adjoint).__name__))
    if expected is not None:
        with pytest.raises(RuntimeError, match=expected):
            gradients(wrapped(name), adjoint)
        return
    got, want = gradients(wrapped(name), adjoint), plain(name)
    assert torch.equal(got[0], want[0])
    assert sum(gradient is not None for gradient in want) >= 2 + ("vmap" not in name)
    # Round-off of double precision, which the way back of Reversible amplifies.
    assert worst(got[1:], want[1:]) <= (1e-9 if isinstance(adjoint, sa.Reversible) else 1e-12)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_truncation_is_the_whole_gradient_of_its_last_step(name: str) -> None:
    def last(adjoint: sa.Adjoint) -> tuple[Tensor | None, ...]:
        network, x_T = wrapped(name), torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)
        call = {"frame": sa.Frame(SCHEDULE), "solver": sa.Heun()}
        style = torch.linspace(0, 1, 16, dtype=DOUBLE).reshape(2, 8).requires_grad_()
        denoiser, cond = sa.Denoiser(network, SCHEDULE, "sample"), {"embedding": {"style": [style]}}
        grid = GRID
        if isinstance(adjoint, sa.Direct):
            still = {"embedding": {"style": [style.detach()]}}
            with torch.no_grad():
                x_T, grid = sa.sample(denoiser, x_T, grid=GRID[:-1], cond=still, **call), GRID[-2:]
        out = sa.sample(denoiser, x_T, grid=grid, cond=cond, adjoint=adjoint, **call)
        weights = [p for p in network.parameters() if p.requires_grad and not p.is_meta] if "func" not in name else []
        if not out.requires_grad:
            return ()
        return torch.autograd.grad(out.square().sum(), [style, *weights], allow_unused=True)

    assert worst(last(sa.Truncated(last=1)), last(sa.Direct())) <= 1e-12


# Models of diffusers, which are called by the names of their arguments.


def flux() -> tuple[nn.Module, Tensor, dict[str, Any], dict[str, Any]]:
    cond = {
        "encoder_hidden_states": pipelines.randn(2, 3, 6),
        "pooled_projections": pipelines.randn(2, 5),
        "txt_ids": torch.zeros(3, 3),
        "img_ids": torch.arange(12.0).reshape(4, 3),
        "guidance": torch.full((2,), 3.5, dtype=DOUBLE),
    }
    return pipelines.flux(None).transformer, pipelines.randn(2, 4, 16), cond, {"timestep": lambda t: t / 1000}


def sd3() -> tuple[nn.Module, Tensor, dict[str, Any], dict[str, Any]]:
    cond = {"encoder_hidden_states": pipelines.randn(2, 3, 6), "pooled_projections": pipelines.randn(2, 5)}
    return pipelines.sd3(None).transformer, pipelines.randn(2, 4, 4, 4), cond, {}


def pixart() -> tuple[nn.Module, Tensor, dict[str, Any], dict[str, Any]]:
    sizes = {"resolution": None, "aspect_ratio": None}
    cond = {"encoder_hidden_states": pipelines.randn(2, 3, 6), "added_cond_kwargs": sizes}
    return pipelines.pixart(None).transformer, pipelines.randn(2, 4, 8, 8), cond, {}


MODELS = {"sd3": sd3, "pixart": pixart, "flux": flux}
AROUND: dict[str, Callable[[nn.Module], Any]] = {
    "args and kwargs": PassesOn,
    "function": lambda model: lambda *args, **kwargs: model(*args, **kwargs),
    "DistributedDataParallel": DistributedDataParallel,
    "peft": lambda model: peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["to_q", "to_v"], r=2, init_lora_weights=False)
    ).double(),
    "peft in DistributedDataParallel": lambda model: DistributedDataParallel(AROUND["peft"](model)),
    "accelerate.cpu_offload": lambda model: accelerate.cpu_offload(model, "cpu"),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_diffusers_through_wrappers(kind: str, around: str) -> None:
    """Against ``Direct`` on a function that says by what names it calls the wrapped model."""
    model, x, cond, options = MODELS[kind]()
    torch.manual_seed(0)
    wrapped = AROUND[around](model)

    def named(hidden_states: Tensor, timestep: Tensor, **cond: Any) -> Any:
        return wrapped(hidden_states=hidden_states, timestep=timestep, return_dict=False, **cond)

    def found(called: Callable[..., Any], adjoint: sa.Adjoint) -> tuple[Tensor | None, ...]:
        x_T = x.clone().requires_grad_()
        prompt = cond["encoder_hidden_states"].clone().requires_grad_()
        adapter = from_diffusers(called, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **options)
        out = adapter.sample(x_T, steps=2, cond=cond | {"encoder_hidden_states": prompt}, adjoint=adjoint)
        weights = [p for p in model.parameters() if p.requires_grad and not p.is_meta]
        return out.detach(), *torch.autograd.grad(out.square().sum(), [x_T, prompt, *weights], allow_unused=True)

    want = found(named, sa.Direct())
    # Adjoints that replay call the network as the forward pass does: one stands for the others, tested above.
    for adjoint in (sa.Direct(), sa.Checkpoint(snapshots=1)):
        assert worst(found(wrapped, adjoint), want) <= 1e-12


@pytest.mark.parametrize("around", AROUND)
def test_wrappers_do_not_hide_that_a_time_is_another(around: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = AROUND[around](flux()[0])
    with pytest.raises(ValueError, match=re.escape("timestep: FluxTransformer2DModel is not given the scheduler's")):
        from_diffusers(wrapped, diffusers.FlowMatchEulerDiscreteScheduler())

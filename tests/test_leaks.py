"""Ways in which a network or a loss can reach around the sampler: each is exact or refused, under every adjoint."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.noise import BoundNoise, Increment, Noise

from .solves import DOUBLE, SCHEDULE, relative, worst

GRID = sa.uniform_logsnr(SCHEDULE, 6, t_min=1e-2)
COUPLED = sa.Coupled(sa.Euler())
ADJOINTS = [
    sa.Checkpoint(),
    sa.Checkpoint(1),
    sa.Checkpoint(memory=600),
    sa.Checkpoint(memory="1MiB"),
    sa.Reversible(),
    sa.ContinuousAdjoint(),
]
EXACT = ADJOINTS[:-1]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x + t[:, None])


def sampled(network: Any, adjoint: sa.Adjoint, x_T: Tensor, **options: Any) -> Tensor:
    options = {"frame": sa.Frame(SCHEDULE), "solver": COUPLED} | options
    return sa.sample(sa.Denoiser(network, SCHEDULE, "sample"), x_T, grid=GRID, adjoint=adjoint, **options)


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_state_that_is_kept_for_a_later_step_is_refused(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    base, kept = Network(), {}

    def network(x: Tensor, t: Tensor) -> Tensor:
        if 0.12 < float(t[0]) < 0.9:
            kept["x"] = x  # nothing is saved for its derivative, so no activation is missed
        return base(x, t) + 0.3 * kept.get("x", torch.zeros(()))

    with pytest.raises(RuntimeError, match=r"a cache kept between calls.*adjoint=Direct\(\)"):
        sampled(network, adjoint, x_T, solver=COUPLED).sum().backward()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_loss_on_tensors_recorded_inside_is_refused(adjoint: sa.Adjoint, auxiliary: bool, x_T: Tensor) -> None:
    base, recorded, head = Network(), [], torch.ones(3, dtype=DOUBLE)

    def network(x: Tensor, t: Tensor) -> Tensor:
        recorded.append(torch.tanh(x * head) if auxiliary else x)
        return base(x, t)

    out = sampled(network, adjoint, x_T)
    with pytest.raises(RuntimeError, match=r"recorded by it, or by a hook|whose graph is gone"):
        recorded[3].square().sum().backward()
    if adjoint == sa.Checkpoint(memory="1MiB"):  # the refused pass went through a graph that was kept
        with pytest.raises(RuntimeError, match="second time"):
            out.sum().backward()
        return
    out.sum().backward()  # the sampler's own gradient is unharmed
    want = torch.autograd.grad(sampled(base, adjoint, x_T).sum(), x_T)[0]
    assert x_T.grad is not None
    assert relative(x_T.grad, want) <= 1e-12


@dataclass(frozen=True, eq=False)
class Scaled(Noise):
    """``dB_n = std[n] z_n sqrt(dnu_n)`` (or ``std`` for all steps): its tensor is no increment."""

    z: Tensor
    std: Tensor
    at_once: bool = False

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        size = clock.diff().sqrt()[:, None, None]
        return BoundScaled(self, size, self.std * self.z * size if self.at_once else None)


@dataclass(frozen=True, eq=False)
class BoundScaled(BoundNoise):
    noise: Scaled
    size: Tensor
    whole: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.noise.std,)

    def increment(self, n: int) -> Increment:
        if self.whole is not None:
            return Increment(self.whole[n], None)
        std = self.noise.std if self.noise.std.ndim < 3 else self.noise.std[n]
        return Increment(std * self.noise.z[n] * self.size[n], None)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("shape", [(6, 2, 3), (6, 1, 1), ()])
@pytest.mark.parametrize("adjoint", EXACT, ids=repr)
def test_noise_of_a_users_own(adjoint: sa.Adjoint, shape: tuple[int, ...], at_once: bool, x_T: Tensor) -> None:
    z = torch.randn(6, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    std = torch.full(shape, 0.8, dtype=DOUBLE, requires_grad=True)
    network, options = Network(), {"frame": sa.Frame(SCHEDULE, 1.0), "noise": Scaled(z, std, at_once)}

    def gradient(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sampled(network, adjoint, x_T, **options).pow(3).sum(), [std, x_T])

    assert worst(gradient(adjoint), gradient(sa.Direct())) <= 1e-9


class Output(OrderedDict):
    """A dictionary with attributes, as text encoders return them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@pytest.mark.parametrize("adjoint", [sa.Direct(), *ADJOINTS], ids=repr)
def test_conditioning_keeps_its_type(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    z = torch.linspace(0, 1, 6, dtype=DOUBLE).reshape(2, 3).requires_grad_()

    def network(x: Tensor, t: Tensor, text: Output) -> Tensor:
        assert type(text) is Output
        return torch.tanh(x + text.hidden)

    for hidden in (z, sa.Scheduled(z.expand(6, 2, 3))):
        out = sampled(network, adjoint, x_T, cond={"text": Output(hidden=hidden)})
        assert bool(torch.autograd.grad(out.sum(), z)[0].all())


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_conditioning_made_in_inference_mode(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    with torch.inference_mode():
        z = torch.linspace(0, 1, 6, dtype=DOUBLE).reshape(2, 3)

    def gradient(adjoint: sa.Adjoint, z: Tensor) -> tuple[Tensor, ...]:
        out = sampled(lambda x, t, z: torch.tanh(x) + z, adjoint, x_T, cond={"z": z})
        return torch.autograd.grad(out.square().sum(), [x_T])

    assert worst(gradient(adjoint, z), gradient(adjoint, z.clone())) == 0


def test_energy_networks_that_count_on_the_grad_mode(x_T: Tensor) -> None:
    weight = torch.linspace(-1, 1, 3, dtype=DOUBLE).requires_grad_()

    def network(x: Tensor, t: Tensor) -> Tensor:
        x = x if x.requires_grad else x.requires_grad_()
        return torch.autograd.grad(torch.tanh(x * weight + t[:, None]).sum(), x, create_graph=True)[0]

    def gradient(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sampled(network, adjoint, x_T).square().sum(), [x_T, weight])

    for adjoint in EXACT:
        assert worst(gradient(adjoint), gradient(sa.Direct())) <= 1e-9


def test_check_gradient_sees_leaves_that_are_read_late(x_T: Tensor) -> None:
    late = torch.linspace(-1, 1, 3, dtype=DOUBLE).requires_grad_()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + (late * x if float(t[0]) < 0.3 else 0 * x)

    check = sa.check_gradient(
        sa.Denoiser(network, SCHEDULE, "sample"),
        x_T,
        loss=lambda x: x.square().sum(),
        frame=sa.Frame(SCHEDULE),
        grid=GRID,
        solver=sa.Euler(),
    )
    assert [row.name for row in check.rows] == ["x_T", "closure[0]"]
    assert check.passed(1e-12)


def test_sentences_for_slips_of_the_hand(x_T: Tensor) -> None:
    with pytest.raises(TypeError, match=r"callback: got int; pass a function callback\(n, t, x\)"):
        sampled(Network(), sa.Direct(), x_T, callback=3)
    with pytest.raises(TypeError, match="trajectory: got 'yes'; pass True or False"):
        sampled(Network(), sa.Direct(), x_T, trajectory="yes")
    with pytest.raises(TypeError, match="cond: got the key 1; pass the names"):
        sampled(Network(), sa.Direct(), x_T, cond={1: x_T})
    with pytest.raises(TypeError, match=r"frame: got NamedSampler; .*the first of a pair such as samplers\.ddim"):
        sampled(Network(), sa.Direct(), x_T, frame=sa.samplers.ddim(SCHEDULE))
    with pytest.raises(TypeError, match="scale: got '7'; pass a number or a tensor"):
        sa.Guidance("7")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"snapshots: got '2GiB'.*memory='2GiB'"):
        sa.Checkpoint("2GiB")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"adjoint: got the class Checkpoint; pass Hooked\(adjoint, hook\)"):
        sa.Hooked(sa.Checkpoint, sa.normalize())  # type: ignore[arg-type]

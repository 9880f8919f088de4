"""States on another device than the CPU, simulated: the same numbers, host and device kept apart, few reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint import equilibria, probability

from .accelerator import Accelerator, FarTensor, far
from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, worst

X_T = torch.linspace(-1.5, 1, 12, dtype=DOUBLE).reshape(3, 4)
STYLE = torch.linspace(0, 1, 24, dtype=DOUBLE).reshape(3, 8)

ADJOINTS = {
    "Direct": sa.Direct(),
    "Checkpoint": sa.Checkpoint(),
    "two snapshots": sa.Checkpoint(2),
    "a budget": sa.Checkpoint(memory="1MiB"),
    "on the host": sa.Checkpoint(states="cpu"),
    "two on the host": sa.Checkpoint(2, states="cpu"),
    "graphs, and states on the host": sa.Checkpoint(memory="1MiB", states="cpu"),
    "Truncated": sa.Truncated(3),
    "Reversible": sa.Reversible(),
    "ContinuousAdjoint": sa.ContinuousAdjoint(sa.Heun()),
    "reconstructed": sa.ContinuousAdjoint(states="reconstructed"),
}

COPIES = {"on the host": 4, "two on the host": 4, "graphs, and states on the host": 4}


def leaf(values: Tensor, *, is_far: bool) -> Tensor:
    return (FarTensor(values.clone()) if is_far else values.clone()).requires_grad_()


def near(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    assert isinstance(tensor, FarTensor)
    return tensor.near


# What is called: each with its leaves, on either device.


def sampled(adjoint: sa.Adjoint, noise: Callable[[Any, Tensor], Any] | None, **options: Any) -> Any:
    """A call of ``sample`` with gradients in x_T, the conditioning, the weights and the noise."""
    reversible = isinstance(adjoint, sa.Reversible)

    def call(is_far: bool, steps: int = 4) -> tuple[Tensor, list[Tensor | None]]:
        network: nn.Module = far(Mlp(4)) if is_far else Mlp(4)
        x_T, style = (leaf(values, is_far=is_far) for values in (X_T, STYLE))
        if isinstance(adjoint, sa.Truncated):
            x_T.requires_grad_(False)
        frame = sa.Frame(SCHEDULE, 1.0 if noise else 0.0, "flow")
        grid = sa.uniform_logsnr(SCHEDULE, steps)
        # Adjoints handle steps, whatever is in them: with stages under the default one, and without under the others.
        solver: sa.Solver = sa.Heun() if adjoint == sa.Checkpoint() else sa.Euler()
        made, leaves = (None, []) if noise is None else noise((frame, grid, is_far), x_T)
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"),
            x_T,
            frame=frame,
            grid=grid,
            solver=sa.Coupled(solver) if reversible else solver,
            noise=made,
            cond={"embedding": {"style": [style]}},
            adjoint=adjoint,
            **options,
        )
        wanted = [tensor for tensor in (x_T, style, *network.parameters(), *leaves) if tensor.requires_grad]
        return out, list(torch.autograd.grad(out.square().sum(), wanted, allow_unused=True))

    return call


def replayed(seed: Any, **options: Any) -> Callable[[Any, Tensor], Any]:
    return lambda where, x_T: (sa.BrownianPath(seed, **options), [])


def owned(kind: Any) -> Callable[[Any, Tensor], Any]:
    """Noise from leaves on the state's device."""

    def make(where: Any, x_T: Tensor) -> Any:
        frame, grid, is_far = where
        values = sa.BrownianPath(0).increments(frame, grid, X_T)
        made = leaf(0.1 * values if kind is not sa.FixedNoise else values, is_far=is_far)
        noise = sa.ShiftedNoise(sa.BrownianPath(0), made) if kind is sa.ShiftedNoise else kind(made)
        return noise, [made]

    return make


NOISES = {
    "none": None,
    "a path": replayed(0),
    "a path for each sample": replayed([3, 1, 4]),
    "refinable": replayed(0, refinable=True),
    "drawn in float32": replayed(0, dtype=torch.float32),
    "FixedNoise": owned(sa.FixedNoise),
    "NormalNoise": owned(sa.NormalNoise),
    "ShiftedNoise": owned(sa.ShiftedNoise),
}


def same(call: Any) -> int:
    """The arithmetic is the CPU's, and so are its numbers to the last bit, but for the order of sums over steps.

    Returns how many tensors were copied to the host.
    """
    with Accelerator() as accelerator:
        other, found = call(True)
    agree(call, other, found)
    return accelerator.copies


def agree(call: Any, other: Tensor, found: list[Tensor | None]) -> None:
    out, grads = call(False)
    assert torch.equal(near(other), out.detach())
    pairs = [(near(g), w) for g, w in zip(found, grads, strict=True) if g is not None and w is not None]
    assert [g is None for g in found] == [w is None for w in grads]
    assert worst([g for g, _ in pairs], [w for _, w in pairs]) <= 1e-13


@functools.cache
def on_the_accelerator(adjoint: str, noise: str, steps: int = 4) -> tuple[Tensor, list[Tensor | None], Accelerator]:
    with Accelerator() as accelerator:
        return *sampled(ADJOINTS[adjoint], NOISES[noise])(True, steps), accelerator


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise(noise: str) -> None:
    other, found, accelerator = on_the_accelerator("Checkpoint", noise)
    agree(sampled(sa.Checkpoint(), NOISES[noise]), other, found)
    assert accelerator.copies == 0


@pytest.mark.parametrize("noise", ["none", "a path", "FixedNoise"])
@pytest.mark.parametrize("adjoint", [name for name in ADJOINTS if name != "Checkpoint"])
def test_every_adjoint(adjoint: str, noise: str) -> None:
    if adjoint == "reconstructed" and noise == "FixedNoise":
        pytest.skip("continuous adjoints that reconstruct states take a path from a seed")
    # Four steps: four states, or the first two and, from those, the second and the fourth.
    other, found, accelerator = on_the_accelerator(adjoint, noise)
    agree(sampled(ADJOINTS[adjoint], NOISES[noise]), other, found)
    assert accelerator.copies == COPIES.get(adjoint, 0)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_reads_do_not_grow_with_the_steps(adjoint: str) -> None:
    counts = []
    for steps in (4, 5):
        *_, accelerator = on_the_accelerator(adjoint, "a path", steps)
        counts.append(accelerator.reads + (0 if adjoint in COPIES else accelerator.copies))
    assert counts[0] == counts[1] <= 12


@pytest.mark.parametrize(
    "options",
    [{"trajectory": True}, {"after_step": lambda n, t, x: 0.9 * x}, {"callback": lambda *given: None}],
    ids=["trajectory", "after_step", "callback"],
)
def test_options(options: dict[str, Any]) -> None:
    assert same(sampled(sa.Checkpoint(), NOISES["a path"], **options)) == 0


def test_a_host_tensor_in_the_loop_is_met() -> None:
    """The simulation refuses what an accelerator refuses."""
    with Accelerator() as accelerator:
        x = torch.ones(3).to("meta")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        assert (x + torch.tensor(1.0)).sum().item() == 6
        assert torch.equal(x.cpu(), torch.ones(3))
        assert (accelerator.reads, accelerator.copies) == (1, 1)


def test_tensors_on_meta_without_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="x_T: it is on meta, where tensors have no values"):
        sa.sample(sa.Denoiser(Mlp(4), SCHEDULE), X_T.to("meta"), frame=sa.Frame(SCHEDULE),
                  grid=sa.uniform_logsnr(SCHEDULE, 3), solver=sa.Euler())  # fmt: skip


def solved(is_far: bool) -> tuple[Tensor, list[Tensor | None]]:
    y0, rate = (leaf(values, is_far=is_far) for values in (X_T, STYLE[0, 1:2]))
    out = sa.solve(
        lambda s, y, rate: torch.sin(rate * y) * s, y0, clock=torch.linspace(0, 1, 7), solver=sa.ShARK(),
        noise=sa.BrownianPath(0), cond={"rate": rate},
    )  # fmt: skip
    return out, list(torch.autograd.grad(out.square().sum(), [y0, rate]))


def guided(is_far: bool) -> tuple[Tensor, list[Tensor | None]]:
    x_T, style = (leaf(values, is_far=is_far) for values in (X_T, STYLE))
    nothing = FarTensor(torch.zeros(3, 8, dtype=DOUBLE)) if is_far else torch.zeros(3, 8, dtype=DOUBLE)
    network = far(Mlp(4)) if is_far else Mlp(4)
    guidance = sa.Guidance(2.0, {"embedding": {"style": [nothing]}})
    frame, solver = sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance), x_T, frame=frame, solver=solver,
        grid=sa.uniform_logsnr(SCHEDULE, 6, final_zero=True), noise=sa.BrownianPath(0),
        cond={"embedding": {"style": [style]}},
    )  # fmt: skip
    return out, list(torch.autograd.grad(out.square().sum(), [x_T, style]))


def balanced(is_far: bool) -> tuple[Tensor, list[Tensor | None]]:
    z0 = FarTensor(X_T.clone()) if is_far else X_T
    shift = leaf(X_T.flip(0), is_far=is_far)
    out = equilibria.solve(lambda z, shift: 0.5 * torch.tanh(z) + shift, z0, cond={"shift": shift}, tol=1e-12)
    return out, list(torch.autograd.grad(out.square().sum(), [shift]))


def likely(is_far: bool) -> tuple[Tensor, list[Tensor | None]]:
    x_0 = leaf(X_T, is_far=is_far)
    network = far(Mlp(4)) if is_far else Mlp(4)
    found = probability.log_likelihood(
        sa.Denoiser(network, SCHEDULE, "sample"), x_0, frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, 5), solver=sa.Heun(),
    )  # fmt: skip
    out = getattr(found, "log_prob", found)
    return out, list(torch.autograd.grad(out.sum(), [x_0]))


@pytest.mark.parametrize("call", [solved, guided, likely], ids=lambda call: call.__name__)
def test_other_doors(call: Any) -> None:
    assert same(call) == 0


def test_second_derivatives_from_states_on_the_host() -> None:
    def product(adjoint: sa.Adjoint, *, is_far: bool) -> Tensor:
        network, x_T = far(Mlp(4)) if is_far else Mlp(4), leaf(X_T, is_far=is_far)
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), solver=sa.Heun(),
            grid=sa.uniform_logsnr(SCHEDULE, 4), adjoint=adjoint,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(out.sin().sum(), x_T, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x_T)[0]

    want = product(sa.Checkpoint(), is_far=False)
    for adjoint in (sa.Checkpoint(states="cpu"), sa.Checkpoint(2, states="cpu")):
        assert torch.equal(product(adjoint, is_far=False), product(replace(adjoint, states="device"), is_far=False))
        with Accelerator():
            found = product(adjoint, is_far=True)
        assert worst([near(found)], [want]) <= 1e-13


def test_where_states_are_stored() -> None:
    with pytest.raises(ValueError, match="states: got 'disk'; pass 'device', or 'cpu' to keep stored states"):
        sa.Checkpoint(states="disk")  # type: ignore[arg-type]


def test_equilibria() -> None:
    """Their iterations read how far they are; the linear algebra of small systems is done where the state lies."""
    want, grads = balanced(False)
    with Accelerator():
        out, found = balanced(True)
    assert torch.equal(near(out), want.detach())
    assert worst([near(found[0])], [grads[0]]) <= 1e-12  # type: ignore[list-item]

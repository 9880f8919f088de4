"""Noise as standard normals, and the call as a module."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE

MIXTURE = sa.problems.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.2)
GRIDS = {
    "regular": sa.uniform_logsnr(SCHEDULE, 6),
    "to sigma = 0": sa.uniform_logsnr(SCHEDULE, 6, final_zero=True),
    "one step": sa.uniform_logsnr(SCHEDULE, 1),
}


def x_T() -> Tensor:
    return torch.linspace(-1.5, 1, 8, dtype=DOUBLE).reshape(4, 2)


@functools.cache
def drawn(name: str, frame: sa.Frame) -> tuple[Tensor, ...]:
    """The normals of a path, those of its areas, its increments and its areas, for all solvers."""
    path, where = sa.BrownianPath(seed=3), (frame, GRIDS[name], x_T())
    return path.normals(*where), path.levy_normals(*where), path.increments(*where), path.levy_areas(*where)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.DPMSolverPP2M(), sa.SRA1(), sa.ShARK()], ids=repr)
@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("name", GRIDS)
def test_normals_of_a_path_give_its_sample_and_scaled_gradients(name: str, kind: str, solver: sa.Solver) -> None:
    grid, frame = GRIDS[name], sa.Frame(SCHEDULE, 0.5, kind)
    denoiser, x = MIXTURE.denoiser(SCHEDULE), x_T()
    normals, areas, dB, H = (draws.clone().requires_grad_() for draws in drawn(name, frame))
    levy = solver.claims.levy != "none"
    common = {"frame": frame, "grid": grid, "solver": solver}
    got = sa.sample(denoiser, x, noise=sa.NormalNoise(normals, areas if levy else None), **common)
    want = sa.sample(denoiser, x, noise=sa.FixedNoise(dB, H if levy else None), **common)
    # Dividing by a root and multiplying by it again is two roundings of each increment.
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    length = frame.noise_clock(grid).diff()
    length = torch.where(length.isfinite(), length, 0.0).reshape(-1, 1, 1)
    pairs = [(normals, dB, length)] + ([(areas, H, length / 12)] if levy else [])
    units, owns = (torch.autograd.grad(y.sum(), [pair[k] for pair in pairs]) for k, y in enumerate((got, want)))
    for a, b, (*_, variance) in zip(units, owns, pairs, strict=True):
        torch.testing.assert_close(a, variance.sqrt() * b, rtol=1e-12, atol=1e-12 * float(a.abs().max()))
        if name == "to sigma = 0":
            assert not a[-1].any(), "the last step injects no noise"
            assert torch.isfinite(a).all()


@pytest.mark.parametrize("adjoint", [sa.Checkpoint(), sa.Checkpoint(snapshots=2), sa.Truncated(2)], ids=repr)
def test_gradients_in_normals_under_other_adjoints(adjoint: sa.Adjoint) -> None:
    network, grid = Mlp(2), GRIDS["to sigma = 0"]
    denoiser, frame = sa.Denoiser(network, SCHEDULE, "sample"), sa.Frame(SCHEDULE, 1.0)
    normals = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()  # float32

    def gradient(adjoint: sa.Adjoint) -> Tensor:
        noise = sa.NormalNoise(normals)
        out = sa.sample(denoiser, x_T(), frame=frame, grid=grid, solver=sa.Euler(), noise=noise, adjoint=adjoint)
        return torch.autograd.grad((out**2).sum(), normals)[0]

    got, want = gradient(adjoint), gradient(sa.Direct())
    assert got.dtype == torch.float32
    part = slice(4, None) if isinstance(adjoint, sa.Truncated) else slice(None)
    torch.testing.assert_close(got[part], want[part], rtol=1e-6, atol=1e-7)  # ulps of float32


@pytest.mark.parametrize(
    ("noise", "error", "message"),
    [
        (lambda: sa.NormalNoise([1.0]), TypeError, "normals must be a real floating-point tensor, but is list"),
        (lambda: sa.NormalNoise(torch.zeros(())), ValueError, "0-dimensional"),
        (lambda: sa.NormalNoise(torch.zeros(2, 1), torch.zeros(3, 1)), ValueError, "levy_normals must have the shape"),
        (lambda: sa.NormalNoise(torch.full((2, 1), math.nan)), ValueError, "normals must be finite"),
    ],
)
def test_bad_normals(noise: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        noise()  # type: ignore[operator]


def test_normals_that_do_not_fit() -> None:
    denoiser, frame, grid = MIXTURE.denoiser(SCHEDULE), sa.Frame(SCHEDULE, 1.0), GRIDS["regular"]
    call = {"frame": frame, "grid": grid}
    with pytest.raises(ValueError, match=r"normals has shape \(5, 4, 2\), but a grid of 6 steps"):
        sa.sample(denoiser, x_T(), solver=sa.Euler(), noise=sa.NormalNoise(torch.zeros(5, 4, 2)), **call)
    with pytest.raises(ValueError, match="this NormalNoise has none"):
        sa.sample(denoiser, x_T(), solver=sa.SRA1(), noise=sa.NormalNoise(torch.zeros(6, 4, 2)), **call)
    assert repr(sa.NormalNoise(torch.zeros(6, 4))) == "NormalNoise(normals=<torch.float32 tensor of shape (6, 4)>)"


# The call as a module.


def test_a_sampler_is_the_call() -> None:
    network, style = Mlp(2), nn.Parameter(torch.linspace(0, 1, 8, dtype=DOUBLE))
    denoiser, named = sa.Denoiser(network, SCHEDULE, "sample"), sa.samplers.sde_dpm_solver_pp_2m(SCHEDULE)
    cond = {"embedding": {"style": [style]}}
    sampler = sa.Sampler(denoiser, sampler=named, steps=5, cond=cond, noise=sa.BrownianPath(seed=0))
    frame, solver = named
    want = sa.sample(
        denoiser, x_T(), frame=frame, solver=solver, grid=named.grid(5), cond=cond, noise=sa.BrownianPath(seed=0)
    )
    assert torch.equal(sampler(x_T()), want)
    assert {id(p) for p in sampler.parameters()} == {id(p) for p in (*network.parameters(), style)}
    sampler(x_T()).sum().backward()
    assert style.grad is not None
    other = {"embedding": {"style": [torch.zeros(8, dtype=DOUBLE)]}}
    replaced = sa.sample(denoiser, x_T(), sampler=named, steps=5, cond=other, noise=sa.BrownianPath(seed=1))
    assert torch.equal(sampler(x_T(), cond=other, noise=sa.BrownianPath(seed=1)), replaced)
    assert len(repr(sampler)) < 600


@pytest.mark.parametrize("schedule", [sa.VPLinear(), sa.RectifiedFlow(), sa.VE(), sa.VPCosine()], ids=repr)
@pytest.mark.parametrize("name", ["ddim", "dpm_solver_pp_2m", "edm_heun", "flow_euler", "flow_heun", "rex"])
def test_every_named_sampler_has_a_grid_of_its_own(name: str, schedule: sa.Schedule) -> None:
    sampler = getattr(sa.samplers, name)(schedule)
    grid = sampler.grid(12)
    x = float(schedule.sigma(grid[0])) * torch.randn(64, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    out = sa.sample(MIXTURE.denoiser(schedule), x, sampler=sampler, steps=12)
    assert len(grid) == 13
    # Most of 64 samples lie within four standard deviations of one of the two means.
    near = torch.stack([(out - torch.tensor([m, 0.0], dtype=DOUBLE)).norm(dim=1) for m in (-1.0, 1.0)]).amin(0)
    assert (near < 4 * math.sqrt(0.2)).double().mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "frame: missing"),
        ({"frame": sa.Frame(SCHEDULE), "steps": 3}, "solver: missing"),
        ({"sampler": sa.samplers.ddim(SCHEDULE)}, "grid: got None"),
        ({"sampler": sa.samplers.ddim(SCHEDULE), "steps": 3, "grid": [1.0, 0.5]}, "grid, steps: got both"),
        ({"sampler": sa.samplers.ddim(SCHEDULE), "solver": sa.Euler(), "steps": 3}, "sampler: it has a frame"),
        ({"sampler": sa.Euler(), "steps": 3}, "sampler: got Euler"),
        ({"sampler": sa.samplers.ddim(SCHEDULE), "steps": 0}, "steps: got 0"),
    ],
)
def test_parts_that_do_not_make_a_call(arguments: dict[str, object], message: str) -> None:
    for call in (lambda: sa.sample(MIXTURE.denoiser(SCHEDULE), x_T(), **arguments),):  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    with pytest.raises((TypeError, ValueError), match=message):
        sa.Sampler(MIXTURE.denoiser(SCHEDULE), **arguments)  # type: ignore[arg-type]


# after_step.


def close(x: Tensor, known: Tensor) -> bool:
    """The known part is there, divided by the weight and multiplied by it again: two roundings."""
    return torch.allclose(x[:, 0], known[:, 0], rtol=1e-15, atol=0)


def inpaint(mask: Tensor, known: Tensor) -> object:
    def after_step(n: int, t: float, x: Tensor) -> Tensor:
        return mask * known + (1 - mask) * x

    return after_step


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("adjoint", [sa.Checkpoint(), sa.Checkpoint(snapshots=2), sa.Truncated(1)], ids=repr)
@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.DPMSolverPP2M(), sa.Coupled(sa.Heun())], ids=repr)
def test_after_step_is_replayed(name: str, adjoint: sa.Adjoint, solver: sa.Solver) -> None:
    network, mask = Mlp(2), torch.tensor([1.0, 0.0], dtype=DOUBLE)
    denoiser = sa.Denoiser(network, SCHEDULE, "sample")

    def run(adjoint: sa.Adjoint) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        truncated = isinstance(adjoint, sa.Truncated)
        known = torch.linspace(0, 1, 8, dtype=DOUBLE).reshape(4, 2).requires_grad_()
        x = x_T() if truncated else x_T().requires_grad_()
        seen: list[bool] = []
        out = sa.sample(
            denoiser,
            x,
            frame=sa.Frame(SCHEDULE, 0.5),
            grid=GRIDS[name],
            solver=solver,
            noise=sa.BrownianPath(seed=0),
            adjoint=adjoint,
            after_step=inpaint(mask, known),  # type: ignore[arg-type]
            callback=lambda n, t, x: seen.append(close(x, known)),
        )
        assert all(seen), "the callback sees the state after it was changed"
        assert close(out, known), "also after a last step to sigma = 0"
        leaves = [known, *(p for p in network.parameters() if p.requires_grad)] + ([] if truncated else [x])
        return out.detach(), torch.autograd.grad((out**2).sum(), leaves, allow_unused=True)

    (out, found), (want, exact) = run(adjoint), run(sa.Direct())
    assert torch.equal(out, want)
    if not isinstance(adjoint, sa.Truncated):
        for a, b in zip(found, exact, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize("adjoint", [sa.Reversible(), sa.ContinuousAdjoint()], ids=lambda a: type(a).__name__)
def test_after_step_with_an_adjoint_that_cannot_follow_it(adjoint: sa.Adjoint) -> None:
    with pytest.raises(ValueError, match=r"after_step: .* pass adjoint=Checkpoint\(\)"):
        sa.sample(
            MIXTURE.denoiser(SCHEDULE),
            x_T().requires_grad_(),
            frame=sa.Frame(SCHEDULE),
            grid=GRIDS["regular"],
            solver=sa.Coupled(sa.Heun()),
            adjoint=adjoint,
            after_step=lambda n, t, x: x,
        )


def test_after_step_that_returns_something_else() -> None:
    with pytest.raises(ValueError, match=r"after_step: returned .* return a state like the one it is given"):
        sa.sample(
            MIXTURE.denoiser(SCHEDULE),
            x_T(),
            sampler=sa.samplers.ddim(SCHEDULE),
            steps=2,
            after_step=lambda n, t, x: x[:1],
        )

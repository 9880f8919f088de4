"""Shifted noise: zero shifts change nothing, their gradient is the noise's, and other shifts do what they say."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.noise import BoundNoise, Increment, Noise

from .networks import Mlp

DOUBLE = torch.float64
SCHEDULE = sa.VPLinear()
DENOISER = sa.Denoiser(Mlp(3), SCHEDULE, "epsilon")
FRAME = sa.Frame(SCHEDULE, eta=1.0)
GRID = sa.uniform_logsnr(SCHEDULE, 9)
PATH = sa.BrownianPath([3, 4])
ADJOINTS = (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2))


def x_T(dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.linspace(-1, 2, 6, dtype=dtype).reshape(2, 3)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=DOUBLE)


def sampled(noise: sa.Noise, solver: sa.Solver, adjoint: sa.Adjoint, grid: Tensor = GRID) -> Tensor:
    return sa.sample(DENOISER, x_T(), frame=FRAME, grid=grid, solver=solver, noise=noise, adjoint=adjoint)


def gradients(noise: sa.Noise, leaves: list[Tensor], solver: sa.Solver, adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sampled(noise, solver, adjoint).square().sum(), leaves, allow_unused=True)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.DPMSolverPP2M(), sa.ShARK(), sa.SRA1()], ids=repr)
def test_gradients_are_those_of_the_replayed_increments(solver: sa.Solver, adjoint: sa.Adjoint) -> None:
    shifts, areas = (torch.zeros(9, 2, 3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    dB, H = PATH.increments(FRAME, GRID, x_T()).requires_grad_(), PATH.levy_areas(FRAME, GRID, x_T()).requires_grad_()
    asks = solver.claims.levy != "none"
    shifted, fixed = sa.ShiftedNoise(PATH, shifts, areas if asks else None), sa.FixedNoise(dB, H if asks else None)
    assert torch.equal(sampled(shifted, solver, adjoint), sampled(PATH, solver, adjoint))
    got = gradients(shifted, [shifts, areas] if asks else [shifts], solver, adjoint)
    want = gradients(fixed, [dB, H] if asks else [dB], solver, sa.Direct())
    for ours, theirs in zip(got, want, strict=True):
        # The same derivative summed in another order: round-off of some hundred operations.
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_levy_areas_alone_or_not_shifted(adjoint: sa.Adjoint) -> None:
    """With Levy areas asked for, each of the two tensors may be the only one that requires a gradient."""
    solver, shifts, areas = sa.ShARK(), zeros(9, 2, 3), zeros(9, 2, 3)
    both = gradients(sa.ShiftedNoise(PATH, shifts.requires_grad_(), areas.requires_grad_()), [shifts, areas], solver,
                     sa.Direct())  # fmt: skip
    for noise, leaf, want in (
        (lambda a: sa.ShiftedNoise(PATH, a), shifts, both[0]),
        (lambda a: sa.ShiftedNoise(PATH, a, zeros(9, 2, 3)), shifts, both[0]),
        (lambda a: sa.ShiftedNoise(PATH, zeros(9, 2, 3), a), areas, both[1]),
    ):
        (got,) = gradients(noise(leaf), [leaf], solver, adjoint)
        assert float((got - want).norm() / want.norm()) < 1e-12


def test_a_shift_is_added_in_the_unit_of_the_increments() -> None:
    shifts, areas = (torch.randn(9, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    clock = FRAME.noise_clock(GRID)
    bound = sa.ShiftedNoise(PATH, shifts, areas).bind(clock, x_T(), levy=True)
    plain = PATH.bind(clock, x_T(), levy=True)
    for n in (8, 0, 3, 0):
        assert torch.equal(bound.increment(n).dB, plain.increment(n).dB + shifts[n])
        assert torch.equal(bound.increment(n).H, plain.increment(n).H + areas[n])
    assert bound.tensors == (shifts, areas)
    unasked = sa.ShiftedNoise(PATH, shifts, areas).bind(clock, x_T(), levy=False)
    assert unasked.tensors == (shifts,)
    assert unasked.increment(0).H is None
    areas_kept = sa.ShiftedNoise(PATH, shifts).bind(clock, x_T(), levy=True)
    assert torch.equal(areas_kept.increment(2).H, plain.increment(2).H)


def test_an_edit_of_the_answer_changes_no_later_one() -> None:
    bound = sa.ShiftedNoise(PATH, zeros(9, 2, 3)).bind(FRAME.noise_clock(GRID), x_T(), levy=False)
    before = bound.increment(4).dB.clone()
    bound.increment(4).dB.zero_()
    assert torch.equal(bound.increment(4).dB, before)


def test_narrow_states_get_narrow_noise_and_wide_gradients() -> None:
    shifts = zeros(9, 2, 3).requires_grad_()
    bound = sa.ShiftedNoise(PATH, shifts).bind(FRAME.noise_clock(GRID), x_T(torch.float32), levy=False)
    one = bound.increment(1).dB
    assert one.dtype == torch.float32
    one.sum().backward()
    assert shifts.grad is not None
    assert shifts.grad.dtype == DOUBLE
    assert torch.equal(shifts.grad[1], torch.ones(2, 3, dtype=DOUBLE))


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_the_step_to_sigma_zero_has_no_noise_and_no_gradient(adjoint: sa.Adjoint) -> None:
    grid = torch.cat([GRID, torch.zeros(1, dtype=DOUBLE)])
    shifts = torch.zeros(10, 2, 3, dtype=DOUBLE, requires_grad=True)
    sampled(sa.ShiftedNoise(PATH, shifts), sa.Heun(), adjoint, grid).sum().backward()
    assert shifts.grad is not None
    assert not shifts.grad[-1].any()
    assert shifts.grad[-2].any()


def test_repr_pickle_and_frozen() -> None:
    noise = sa.ShiftedNoise(sa.BrownianPath(0), zeros(2, 3).requires_grad_(), zeros(2, 3))
    tensor = "<torch.float64 tensor of shape (2, 3)>"
    assert repr(noise) == f"ShiftedNoise(path={sa.BrownianPath(0)!r}, shifts={tensor}, levy_shifts={tensor})"
    assert repr(sa.ShiftedNoise(PATH, zeros(1))).endswith("shape (1,)>)")
    again = pickle.loads(pickle.dumps(noise))
    assert again.path == noise.path
    assert torch.equal(again.shifts, noise.shifts)
    assert again.shifts.requires_grad
    with pytest.raises(AttributeError):
        noise.path = PATH  # type: ignore[misc]


class OfTensors(Noise):
    """A third party's noise that is made of a tensor."""

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        class Bound(BoundNoise):
            tensors = (torch.zeros(1),)

            def increment(self, n: int) -> Increment:
                raise AssertionError

        return Bound()


CLOCK = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)
STILL = torch.tensor([1.0, 1.0, 2.0], dtype=DOUBLE)


def bound(noise: sa.Noise, clock: Tensor = CLOCK, levy: bool = False) -> BoundNoise:
    return noise.bind(clock, zeros(3), levy)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: sa.ShiftedNoise(0, zeros(2, 3)), TypeError, "path: got int; pass .*BrownianPath"),
        (lambda: sa.ShiftedNoise(sa.BrownianPath, zeros(2, 3)), TypeError, "path: got the class BrownianPath"),
        (lambda: sa.ShiftedNoise(PATH, [1.0]), TypeError, "shifts must be a real floating-point tensor"),
        (lambda: sa.ShiftedNoise(PATH, torch.zeros(2, dtype=torch.int64)), TypeError, "shifts"),
        (lambda: sa.ShiftedNoise(PATH, zeros(2, 3) / 0), ValueError, "shifts must be finite"),
        (lambda: sa.ShiftedNoise(PATH, zeros()), ValueError, "shifts must have shape"),
        (lambda: sa.ShiftedNoise(PATH, zeros(2, 3), [1.0]), TypeError, "levy_shifts"),
        (lambda: sa.ShiftedNoise(PATH, zeros(2, 3), zeros(2, 4)), ValueError, r"levy_shifts .* \(2, 3\).*\(2, 4\)"),
        (lambda: bound(sa.ShiftedNoise(sa.BrownianPath(0), zeros(3, 3))), ValueError, r"\(3, 3\).*2 steps.*\(2, 3\)"),
        (lambda: bound(sa.ShiftedNoise(sa.BrownianPath(0), zeros(2, 3) + 1), STILL), ValueError, r"steps \[0\]"),
        (
            lambda: bound(sa.ShiftedNoise(sa.BrownianPath(0), zeros(2, 3), zeros(2, 3) + 1), STILL, True),
            ValueError, r"levy_shifts must be zero in steps \[0\]",
        ),
        (lambda: bound(sa.ShiftedNoise(sa.FixedNoise(zeros(2, 3)), zeros(2, 3))), ValueError, r"increments \+ shifts"),
        (lambda: bound(sa.ShiftedNoise(OfTensors(), zeros(2, 3))), ValueError, "OfTensors is made of tensors"),
        (lambda: bound(sa.ShiftedNoise(sa.BrownianPath(0), zeros(2, 3))).increment(2), IndexError, "2 steps, 0 to 1"),
        (lambda: bound(sa.ShiftedNoise(sa.BrownianPath(0), zeros(2, 3)), CLOCK.float()), TypeError, "float64"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(make: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()

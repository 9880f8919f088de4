"""Iterations for fixed points: every method on problems with known solutions, sample by sample."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sdeadjoint.fixed_point import (
    Anderson,
    Broyden,
    Derivative,
    FixedPoint,
    Method,
    Newton,
    fixed_point,
    gmres,
)

DOUBLE = torch.float64
METHODS = [Anderson(), Anderson(memory=12), Broyden(), Newton(), Newton(krylov=4)]
ALL = [FixedPoint(), *METHODS]


class Linear:
    """``g(x) = A x + b`` for each sample, with its solution."""

    def __init__(self, A: Tensor, b: Tensor) -> None:
        self.A, self.b = A, b
        self.solution = torch.linalg.solve(torch.eye(b.shape[1], dtype=b.dtype) - A, b)
        self.seen: list[Tensor] = []

    def update(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(x)
        r = (self.A @ x[:, :, None])[:, :, 0] + self.b - x
        return r, r.norm(dim=1) / self.b.norm(dim=1)

    @property
    def derivative(self) -> Derivative:
        return Derivative(lambda _, v: (self.A @ v[:, :, None])[:, :, 0], linear=True)

    def solve(self, method: Method, start: Tensor, tol: float = 1e-12) -> object:
        return fixed_point(
            self.update, start, tol=tol, method=method, derivative=self.derivative
        )


def problem(eigenvalues: list[float], batch: int = 3, seed: int = 0) -> Linear:
    """A with given eigenvalues and eigenvectors that are not orthogonal, others for each sample."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(batch, n, n, dtype=DOUBLE, generator=generator))[0]
    upper = torch.randn(batch, n, n, dtype=DOUBLE, generator=generator).triu(1) * 0.2
    A = q @ (torch.diag(torch.tensor(eigenvalues, dtype=DOUBLE)) + upper) @ q.mT
    return Linear(A, torch.randn(batch, n, dtype=DOUBLE, generator=generator))


CONTRACTION = [0.8, 0.5, -0.7, 0.3, 0.1, -0.2, 0.6, 0.0]
EXPANSION = [-9.0, 3.0, -2.0, 0.5, 0.1, -0.2, 0.6, 0.0]  # plain iteration diverges


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_linear_contractions(method: Method) -> None:
    linear = problem(CONTRACTION)
    found = linear.solve(method, torch.zeros(3, 8, dtype=DOUBLE))
    assert bool((found.error <= 1e-12).all())
    # |x - x*| <= |(1 - A)^-1| |r|, and |r| <= tol |b|; eigenvalues are below 0.8.
    norm = torch.linalg.matrix_norm(torch.linalg.inv(torch.eye(8, dtype=DOUBLE) - linear.A), 2)
    assert bool(((found.x - linear.solution).norm(dim=1) <= norm * 1e-12 * linear.b.norm(dim=1)).all())
    assert found.iterations == len(linear.seen) == int(found.counts.max())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_linear_problems_where_plain_iteration_diverges(method: Method) -> None:
    linear = problem(EXPANSION)
    found = linear.solve(method, torch.zeros(3, 8, dtype=DOUBLE))
    torch.testing.assert_close(found.x, linear.solution, rtol=0, atol=1e-10)


def test_plain_iteration_is_plain() -> None:
    linear = problem(CONTRACTION)
    linear.solve(FixedPoint(max_iterations=5), torch.ones(3, 8, dtype=DOUBLE))
    for before, after in pairwise(list(linear.seen)):
        assert torch.equal(after, before + linear.update(before)[0])


def test_damping_makes_plain_iteration_contract() -> None:
    linear = problem([-2.5, -1.5, 0.5])
    method = FixedPoint(damping=0.5, max_iterations=300)  # eigenvalues -0.75, -0.25, 0.75
    found = linear.solve(method, torch.zeros(3, 3, dtype=DOUBLE))
    torch.testing.assert_close(found.x, linear.solution, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_samples_never_see_each_other(method: Method) -> None:
    """A sample iterates as it would alone; one that is done keeps its value to the last bit."""
    linear, start = problem(CONTRACTION), torch.zeros(3, 8, dtype=DOUBLE)
    start[1] = linear.solution[1]  # solved at the start, but for round-off
    together = linear.solve(method, start)
    assert torch.equal(together.x[1], start[1])
    assert int(together.counts[1]) == 1
    for i in range(3):
        one = Linear(linear.A[i : i + 1], linear.b[i : i + 1])
        alone = one.solve(method, start[i : i + 1])
        assert int(alone.counts) == int(together.counts[i])
        # Sums over a batch may be ordered otherwise; those differences grow in a few iterations.
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-10, atol=1e-10)


def test_a_done_sample_changes_no_more() -> None:
    linear, start = problem(CONTRACTION), torch.zeros(3, 8, dtype=DOUBLE)
    start[1] = linear.solution[1] + 1e-3
    found = linear.solve(Anderson(), start)
    first = int(found.counts[1])
    assert first < found.iterations
    for x in linear.seen[first:]:
        assert torch.equal(x[1], found.x[1])


def test_broyden_needs_two_steps_per_number_at_most() -> None:
    linear = problem(EXPANSION, batch=5)
    found = linear.solve(Broyden(), torch.zeros(5, 8, dtype=DOUBLE), tol=1e-9)
    assert found.iterations <= 2 * 8 + 1


@pytest.mark.parametrize("memory", [1, 3])
def test_broyden_starts_again_when_its_memory_is_full(memory: int) -> None:
    linear = problem(CONTRACTION)
    found = linear.solve(Broyden(memory=memory, max_iterations=200), torch.zeros(3, 8, dtype=DOUBLE))
    torch.testing.assert_close(found.x, linear.solution, rtol=0, atol=1e-10)


def test_newton_solves_a_linear_problem_in_one_iteration() -> None:
    linear = problem(EXPANSION)
    found = linear.solve(Newton(), torch.zeros(3, 8, dtype=DOUBLE))
    assert found.iterations == 2  # the second sees that it is done


def cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    r = 5 * torch.cos(x) - x  # slope about -4: plain iteration does not converge
    return r, r[:, 0].abs()


COSINE = Derivative(lambda x, v: -5 * torch.sin(x) * v)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_nonlinear_problem(method: Method) -> None:
    start = torch.tensor([[1.0], [1.2], [1.4]], dtype=DOUBLE)
    found = fixed_point(cosine, start, tol=1e-13, method=method, derivative=COSINE)
    assert bool((found.error <= 1e-13).all())
    # The solutions of x = 5 cos x have derivatives -5 sin x - 1 of size 2 or more.
    for x in found.x[:, 0].tolist():
        assert min(abs(x - s) for s in (1.30644000836951, -1.97738, -3.83747)) < 1e-5


def test_newton_squares_the_error() -> None:
    errors: list[float] = []

    def update(x: Tensor) -> tuple[Tensor, Tensor]:
        r, error = cosine(x)
        errors.append(float(error))
        return r, error

    start = torch.tensor([[1.2]], dtype=DOUBLE)
    fixed_point(update, start, tol=1e-14, method=Newton(), derivative=COSINE)
    assert len(errors) <= 6
    for before, after in pairwise(errors):
        # r' ~ r'' d^2 / 2 with d = r / r': |r''| <= 5 and |r'| >= 5: C = 0.1; and the inexact solve.
        assert after <= 1.2 * before**2 + 1e-14


def test_newton_turns_back_where_full_steps_diverge() -> None:
    """Of ``atan(x) = 0``, where Newton's method diverges from |x| > 1.39."""

    def update(x: Tensor) -> tuple[Tensor, Tensor]:
        r = -torch.atan(x)
        return r, r[:, 0].abs()

    derivative = Derivative(lambda x, v: v - v / (1 + x**2))
    start = torch.tensor([[0.5], [3.0], [-20.0]], dtype=DOUBLE)
    found = fixed_point(update, start, tol=1e-12, method=Newton(), derivative=derivative)
    assert bool((found.x.abs() <= 1e-12).all())


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_what_is_not_a_number_is_a_wrong_turn(method: Method) -> None:
    """A root beyond which the function is not defined, and steps that would go there."""

    def update(x: Tensor) -> tuple[Tensor, Tensor]:
        r = 3 * torch.log(x) + 3  # x = exp(-1); NaN for x < 0
        return r.neg(), r[:, 0].abs()

    derivative = Derivative(lambda x, v: v - 3 * v / x)
    start = torch.tensor([[2.0], [0.4]], dtype=DOUBLE)
    found = fixed_point(update, start, tol=1e-12, method=method, derivative=derivative)
    assert bool(found.x.isfinite().all())
    assert float(found.error[1]) <= 1e-12
    if not isinstance(method, Broyden):  # from 2 it may end at its best iterate
        torch.testing.assert_close(found.x, torch.full((2, 1), -1.0, dtype=DOUBLE).exp())


# ------------------------------------------------------------------------------------------ GMRES


def test_gmres_solves_each_system() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(4, 9, 9, dtype=DOUBLE, generator=generator) + 4 * torch.eye(9, dtype=DOUBLE)
    b = torch.randn(4, 9, dtype=DOUBLE, generator=generator)
    b[2] = 0
    tol = torch.full((4,), 1e-13, dtype=DOUBLE)
    found = gmres(lambda v: (A @ v[:, :, None])[:, :, 0], b, tol=tol, limit=20)
    torch.testing.assert_close(found.x, torch.linalg.solve(A, b), rtol=0, atol=1e-12)
    assert found.products <= 9
    assert torch.equal(found.x[2], torch.zeros(9, dtype=DOUBLE))


def test_gmres_stops_each_sample_at_its_own_tolerance() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 9, 9, dtype=DOUBLE, generator=generator) + 4 * torch.eye(9, dtype=DOUBLE)
    b = torch.randn(2, 9, dtype=DOUBLE, generator=generator)
    used: list[Tensor] = []

    def apply(v: Tensor) -> Tensor:
        used.append(v.norm(dim=1))
        return (A @ v[:, :, None])[:, :, 0]

    found = gmres(apply, b, tol=torch.tensor([0.3, 1e-12], dtype=DOUBLE), limit=20)
    residual = ((A @ found.x[:, :, None])[:, :, 0] - b).norm(dim=1) / b.norm(dim=1)
    torch.testing.assert_close(residual, found.residual, rtol=1e-6, atol=1e-13)
    assert 1e-3 < float(residual[0]) <= 0.3
    assert float(residual[1]) <= 1e-12
    assert float(used[-1][0]) == 0  # the first takes no part at the end


def test_gmres_of_a_singular_system_stays_finite() -> None:
    A = torch.diag(torch.tensor([1.0, 0.0], dtype=DOUBLE)).expand(2, 2, 2)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    tol = torch.full((2,), 1e-12, dtype=DOUBLE)
    found = gmres(lambda v: (A @ v[:, :, None])[:, :, 0], b, tol=tol, limit=5)
    torch.testing.assert_close(found.x[0], b[0])
    assert bool(found.x.isfinite().all())
    assert float(found.residual[1]) == 1


# ----------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("method", [FixedPoint, Anderson, Broyden, Newton])
def test_bad_options_are_refused(method: type[Method]) -> None:
    for field in fields(method):
        bad = [0, 1.5, True] if field.type == "int" else [0.0, 1.5, True, "1"]
        for value in bad:
            with pytest.raises(ValueError, match=rf"{field.name}: got {value!r}; pass"):
                method(**{field.name: value})


def test_newton_without_a_derivative_is_refused() -> None:
    with pytest.raises(TypeError, match=r"needs the derivative.*pass Anderson\(\)"):
        fixed_point(cosine, torch.ones(1, 1), tol=1e-3, method=Newton())

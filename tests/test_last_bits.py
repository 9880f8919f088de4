"""The plugin that stands in for another processor: what it changes, by how much, and what it leaves."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from .last_bits import another_processor

DTYPES = {torch.float64: torch.int64, torch.float32: torch.int32}
RULES = ["up", "down", "0", "5", "76"]


def inputs(dtype: torch.dtype = torch.float64, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape or (6, 50), dtype=torch.float64, generator=generator).to(dtype) + 0.1


def ulps(got: Tensor, want: Tensor) -> Tensor:
    """Signed distance in units in the last place, of numbers of the same sign; away from zero is positive."""
    return got.view(DTYPES[got.dtype]) - want.view(DTYPES[want.dtype])


def in_place(x: Tensor) -> Tensor:
    return x.clone().exp_()


def into(x: Tensor) -> Tensor:
    return torch.exp(x, out=torch.empty_like(x))


def into_columns(x: Tensor) -> Tensor:
    """Into every second column of another tensor."""
    return torch.exp(x, out=x.new_empty(len(x), 2 * x.shape[1])[:, ::2]).contiguous()


def of_lists(x: Tensor) -> Tensor:
    return torch.stack(list(torch._foreach_exp(list(x))))


def of_lists_in_place(x: Tensor) -> Tensor:
    rows = list(x.clone())
    torch._foreach_exp_(rows)
    return torch.stack(rows)


def of_columns(x: Tensor) -> Tensor:
    return x.T.exp().T.contiguous()


VARIANTS = [torch.exp, in_place, into, into_columns, of_lists, of_lists_in_place, of_columns]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_every_variant_moves_by_one_unit(rule: str, dtype: torch.dtype, variant: Callable[[Tensor], Tensor]) -> None:
    x = inputs(dtype)
    want = variant(x)
    with another_processor(rule):
        moves = ulps(variant(x), want)
    # float32 has 8 zero bits at the end in one result of 256.
    assert (moves != 0).double().mean() >= (1.0 if dtype == torch.float64 else 0.97)
    assert moves.abs().max() == 1
    expected = {"up": {1}, "down": {-1}}.get(rule, {-1, 1})
    assert set(moves[moves != 0].tolist()) == expected


def test_equal_arguments_have_equal_results() -> None:
    x = inputs()
    with another_processor("3"):
        whole = x.sin()
        assert torch.equal(whole, torch.stack([row.sin() for row in x]))
        assert torch.equal(whole, of_columns(x).log().exp() * 0 + x.T.sin().T)
        again = x.sin()
    assert torch.equal(whole, again)
    assert not torch.equal(whole, x.sin())


def test_backward_passes_are_another_processor_s() -> None:
    def gradient() -> Tensor:
        x = inputs().requires_grad_()
        return torch.autograd.grad((x.exp() + torch.nn.functional.silu(x)).sum(), x)[0]

    want = gradient()
    with another_processor("up"):
        got = gradient()
    assert not torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0)


def test_exact_results_stay() -> None:
    def results() -> list[Tensor]:
        x, whole = inputs(), torch.arange(1, 7, dtype=torch.float64)
        return [
            torch.zeros(3).exp(), torch.ones(3).log(), torch.tensor([0.5, 8.0, 1024.0]).log2(), x.pow(2), x.pow(3),
            x.pow(-1), whole.square().sqrt(), 1 / x, x @ torch.eye(50, dtype=torch.float64),
            whole.sum(), whole.norm(), whole @ whole,
            x.new_tensor([torch.inf]).exp(), x.new_tensor([-torch.inf]).exp(), torch.linspace(0.1, 0.7, 9)[[0, -1]],
            torch.randint(9, (5,), generator=torch.Generator().manual_seed(0)).sum(), x.bfloat16() * 2, torch.rand(
                4, generator=torch.Generator().manual_seed(0)),
        ]  # fmt: skip

    want = results()
    for rule in RULES:
        with another_processor(rule):
            got = results()
        assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


SUMS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.sum(), lambda x: x.sum(1), lambda x: x.mean(), lambda x: x.mean((0, 1)), lambda x: x.norm(),
    lambda x: x.norm(dim=1), lambda x: x.var(1), lambda x: x @ x.T, lambda x: x @ x[0], lambda x: x[0] @ x[1],
    lambda x: torch.addmm(x.new_ones(6, 6), x, x.T), lambda x: x.expand(3, 6, 50) @ x.T.expand(3, 50, 6),
    lambda x: torch.nn.functional.linear(x, x, x.new_ones(6)),
    lambda x: torch.nn.functional.conv1d(x[None], x[:, :, None].expand(6, 50, 3)[:, :6]),
]  # fmt: skip


@pytest.mark.parametrize("total", SUMS, ids=[str(n) for n in range(len(SUMS))])
def test_sums_are_the_same_but_for_round_off(total: Callable[[Tensor], Tensor]) -> None:
    found = []
    for seed in range(4):
        x = inputs() + torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        want = total(x)
        with another_processor("0"):
            got = total(x)
        torch.testing.assert_close(got, want, rtol=50 * 2**-52, atol=0)
        found.append(torch.equal(got, want))
    assert not all(found)


def test_half_precision_moves_now_and_then() -> None:
    x = inputs(torch.bfloat16)
    want = x.exp()
    with another_processor("up"):
        got = x.exp()
    moves = got.view(torch.int16) - want.view(torch.int16)
    assert set(moves.flatten().tolist()) == {0, 1}
    assert 0.02 < moves.double().mean() < 0.15  # one in sixteen, of 300


def test_draws_math_numpy_and_threads() -> None:
    def results() -> list[Tensor]:
        there: list[Tensor] = []
        thread = threading.Thread(target=lambda: there.append(inputs().tanh()))
        thread.start()
        thread.join()
        filled = np.empty(7)
        np.sin(np.linspace(0.1, 1, 7), out=filled)
        return [
            torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
            torch.empty(40, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0)),
            torch.tensor([math.exp(0.3), math.log(3, 7)], dtype=torch.float64),
            torch.from_numpy(np.exp(np.linspace(0.1, 1, 7)[::2])),
            torch.tensor(float(np.exp(0.3)), dtype=torch.float64),
            torch.from_numpy(filled),
            torch.linspace(0, 1, 9, dtype=torch.float64)[1:-1] if not there else there[0],
        ]

    plain = results()
    with another_processor("up"):
        for got, want in zip(results(), plain, strict=True):
            assert (ulps(got, want) == 1).all()
        assert isinstance(math.exp(0.3), float)
        assert isinstance(np.exp(0.3), np.float64)
        assert np.logaddexp2.reduce(np.zeros(4)) == 2
        assert math.log2(8) == np.log2(8) == 3
    assert all(torch.equal(*pair) for pair in zip(results(), plain, strict=True))


def test_compiled_networks_compute_there_too() -> None:
    compiled, x = torch.compile(torch.exp, backend="aot_eager", fullgraph=True), inputs()
    want = compiled(x)
    with another_processor("up"):
        assert (ulps(compiled(x), want) == 1).all()


def test_a_rule_that_is_none_is_refused() -> None:
    for name in ("77", "-1", "both", ""):
        with pytest.raises(pytest.UsageError, match="pass up, down, or a seed from 0 to 76"), another_processor(name):
            pass

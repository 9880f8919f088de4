"""Conversions between the five prediction kinds: definitions, inverses, dtypes, gradients, singular ends."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdeadjoint.diffusion.predictions import PREDICTIONS, convert

EPS = torch.finfo(torch.float64).eps
PAIRS = list(itertools.product(PREDICTIONS, repeat=2))
OTHERS = [(source, target) for source, target in PAIRS if source != target]


def truth(kind: str, x0: Tensor, eps: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """The kinds by their definitions."""
    return {
        "sample": lambda: x0,
        "epsilon": lambda: eps,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "flow_prediction": lambda: eps - x0,
        "score": lambda: -eps / sigma,
    }[kind]()


def data(seed: int = 0, shape: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return x0, eps


coefficients = st.floats(1e-3, 100.0)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@settings(max_examples=20)  # the formula is affine in value and state, so that a wrong one shows at once
@given(alpha=coefficients, sigma=coefficients, seed=st.integers(0, 99))
def test_every_pair_agrees_with_the_definitions(
    source: str, target: str, alpha: float, sigma: float, seed: int
) -> None:
    x0, eps = data(seed)
    x = alpha * x0 + sigma * eps
    given_value = truth(source, x0, eps, alpha, sigma)
    got = convert(given_value, x, alpha, sigma, source, target)
    want = truth(target, x0, eps, alpha, sigma)
    # Errors of a few ulp in x and the value, magnified by the coefficients of the formulas: at most
    # (alpha + sigma) / min(alpha, sigma) for the step to (x0, eps), and the target's own coefficients.
    scale = (1 + alpha + sigma) * (alpha + sigma) / min(alpha, sigma) / min(sigma, 1) * (1 + alpha + sigma)
    torch.testing.assert_close(got, want, rtol=0, atol=20 * EPS * scale)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@settings(max_examples=20)
@given(alpha=st.floats(0.1, 10.0), sigma=st.floats(0.1, 10.0))
def test_pairs_are_inverse(source: str, target: str, alpha: float, sigma: float) -> None:
    value, x = data(7)  # any value is possible, whatever x
    there = convert(value, x, alpha, sigma, source, target)
    back = convert(there, x, alpha, sigma, target, source)
    # Ratios of coefficients are below 100, their products with sigma below 2000.
    torch.testing.assert_close(back, value, rtol=0, atol=1e4 * EPS)


def test_same_kind_is_the_value_itself() -> None:
    value, x = data()
    for kind in PREDICTIONS:
        assert convert(value, x, 0.0, 0.0, kind, kind) is value


# The pairs that exist where a coefficient is 0, written out independently of the implementation.
AT_ALPHA_ZERO = {p for p in OTHERS if p[0] in ("sample", "v_prediction", "flow_prediction")} | {
    ("epsilon", "score"),
    ("score", "epsilon"),
}
AT_SIGMA_ZERO = {p for p in OTHERS if "score" not in p and p[0] != "sample"}


@pytest.mark.parametrize(("source", "target"), OTHERS)
@pytest.mark.parametrize(("alpha", "sigma", "regular"), [(0.0, 1.5, AT_ALPHA_ZERO), (1.5, 0.0, AT_SIGMA_ZERO)])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_singular_ends(
    source: str, target: str, alpha: float, sigma: float, regular: set[tuple[str, str]], as_tensor: bool
) -> None:
    x0, eps = data()
    x = alpha * x0 + sigma * eps
    a: float | Tensor = alpha
    s: float | Tensor = sigma
    if as_tensor:  # one singular sample of three is enough
        a, s = torch.tensor([[0.5], [alpha], [0.5]]), torch.tensor([[0.5], [sigma], [0.5]])
        x = a * x0 + s * eps
    if (source, target) in regular:
        value = truth(source, x0, eps, a, s)
        got = convert(value, x, a, s, source, target)
        torch.testing.assert_close(got, truth(target, x0, eps, a, s), rtol=0, atol=64 * EPS)
        return
    zero = "alpha" if alpha == 0 else "sigma"
    rule = rf"^'{source}' cannot be converted to '{target}' where {zero} = 0; "
    rule += r"there, predict '(\w+)' and ask for '(\w+)'$"
    with pytest.raises(ValueError, match=rule) as caught:
        convert(eps, x, a, s, source, target)
    match = re.match(rule, str(caught.value))
    assert match is not None
    assert convert(eps, x, a, s, *match.groups()).isfinite().all()  # the advice works


@pytest.mark.parametrize(("source", "target"), OTHERS)
@pytest.mark.parametrize(("alpha", "sigma"), [(1e-8, 1.0), (1.0, 1e-8)])
def test_regular_conversions_stay_accurate_next_to_an_end(source: str, target: str, alpha: float, sigma: float) -> None:
    if (source, target) not in (AT_ALPHA_ZERO if alpha < sigma else AT_SIGMA_ZERO):
        return
    x0, eps = data()
    x = alpha * x0 + sigma * eps
    got = convert(truth(source, x0, eps, alpha, sigma), x, alpha, sigma, source, target)
    torch.testing.assert_close(got, truth(target, x0, eps, alpha, sigma), rtol=0, atol=64 * EPS)


@pytest.mark.parametrize(("source", "target"), OTHERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept_and_coefficients_are_float64(source: str, target: str, dtype: torch.dtype) -> None:
    value, x = (tensor.to(dtype) for tensor in data())
    alpha, sigma = 0.6, 0.9
    exact = convert(value.double(), x.double(), alpha, sigma, source, target)
    eps = torch.finfo(dtype).eps
    wide = [torch.tensor(c, dtype=torch.float64) for c in (alpha, sigma)]
    for a, s in ((alpha, sigma), wide, [c.expand(3, 1) for c in wide]):
        got = convert(value, x, a, s, source, target)
        assert got.dtype == dtype
        # Two products and a sum of terms below 4 * |value|: five roundings.
        torch.testing.assert_close(got.double(), exact, rtol=0, atol=5 * 4 * eps * value.abs().max().item())


def test_coefficients_are_not_rounded_before_their_arithmetic() -> None:
    # In bfloat16, alpha^2 + sigma^2 of these would round to 1 and alpha itself to 1.
    value, x = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([0.0], dtype=torch.bfloat16)
    alpha, sigma = torch.tensor(1 - 2**-12, dtype=torch.float64), torch.tensor(2**-6, dtype=torch.float64)
    # flow to v: a = sigma - alpha (enters with x = 0), b = (alpha^2 + sigma^2) / (alpha + sigma).
    got = convert(value, x, alpha, sigma, "flow_prediction", "v_prediction")
    want = torch.tensor([(alpha**2 + sigma**2) / (alpha + sigma)]).to(torch.bfloat16)
    assert torch.equal(got, want)
    # float32 values of alpha are the schedule's business: they are widened, not the result.
    narrow = convert(value, x, alpha.float(), sigma.float(), "flow_prediction", "v_prediction")
    assert narrow.dtype == torch.bfloat16


def test_a_narrow_prediction_of_a_wide_state_is_widened() -> None:
    value, x = data()
    got = convert(value.bfloat16(), x, 0.6, torch.full((3, 1), 0.8), "epsilon", "sample")
    assert got.dtype == torch.float64
    sigma = torch.tensor(0.8).double()  # the float32 nearest to 0.8
    torch.testing.assert_close(got, (x - sigma * value.bfloat16().double()) / 0.6, rtol=0, atol=64 * EPS)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_gradients_flow_to_value_state_and_coefficients(source: str, target: str) -> None:
    value, x = (tensor.requires_grad_() for tensor in data())
    alpha, sigma = (torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in (0.6, 0.9))

    def function(value: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return convert(value, x, alpha, sigma, source, target)

    assert torch.autograd.gradcheck(function, (value, x, alpha, sigma))


@pytest.mark.parametrize(("source", "target"), OTHERS)
def test_the_state_enters_only_where_it_must(source: str, target: str) -> None:
    value, x = (tensor.requires_grad_() for tensor in data())
    convert(value, x, 0.6, 0.9, source, target).sum().backward()
    assert value.grad is not None
    assert (x.grad is None) == ({source, target} == {"epsilon", "score"})


def test_unknown_kinds_are_refused() -> None:
    value, x = data()
    everything = ", ".join(map(repr, PREDICTIONS))
    for bad in ("eps", "v", "x0", "", None):
        with pytest.raises(ValueError, match=f"^source must be one of {everything}, got {bad!r}$"):
            convert(value, x, 1.0, 1.0, bad, "sample")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^target must be one of {everything}, got {bad!r}$"):
            convert(value, x, 1.0, 1.0, "sample", bad)  # type: ignore[arg-type]
    assert PREDICTIONS == ("epsilon", "sample", "v_prediction", "flow_prediction", "score")


@pytest.mark.parametrize(
    "bad", [-0.1, math.inf, math.nan, torch.tensor([[0.5], [-0.1], [0.5]]), torch.tensor(math.nan)]
)
def test_bad_coefficients_are_refused(bad: float | Tensor) -> None:
    value, x = data()
    with pytest.raises(ValueError, match=r"^alpha must be finite and at least 0, got"):
        convert(value, x, bad, 1.0, "v_prediction", "sample")
    with pytest.raises(ValueError, match=r"^sigma must be finite and at least 0, got"):
        convert(value, x, 1.0, bad, "v_prediction", "sample")


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    value, x = data()
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(3, 4\)"):
        convert(value[:, 0], x, 0.6, 0.8, "epsilon", "epsilon")
    with pytest.raises(ValueError, match=r"broadcast to the shape of x, \(3, 4\).*\(2, 3, 4\); reshape"):
        convert(value, x, torch.full((2, 1, 1), 0.6), 0.8, "epsilon", "sample")
    for pair in ((value.long(), x), (value, x.long())):
        with pytest.raises(TypeError, match=r"floating point, got .*torch\.int64"):
            convert(*pair, 0.6, 0.8, "epsilon", "sample")


def test_both_coefficients_zero() -> None:
    value, x = data()
    for source in ("v_prediction", "flow_prediction"):
        with pytest.raises(ValueError, match="where alpha = sigma = 0"):
            convert(value, x, 0.0, 0.0, source, "sample")


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 80.0), (1.0, 0.002), (0.3, 0.7)])
def test_published_forms_on_schedules_that_do_not_preserve_variance(alpha: float, sigma: float) -> None:
    value, x = data(3)
    sample = {kind: convert(value, x, alpha, sigma, kind, "sample") for kind in PREDICTIONS}
    eps = {kind: convert(value, x, alpha, sigma, kind, "epsilon") for kind in PREDICTIONS}
    total = alpha**2 + sigma**2
    want_sample = {
        "sample": value,
        "epsilon": (x - sigma * value) / alpha,
        "v_prediction": (alpha * x - sigma * value) / total,
        "flow_prediction": (x - sigma * value) / (alpha + sigma),
        "score": (x + sigma**2 * value) / alpha,
    }
    want_eps = {
        "sample": (x - alpha * value) / sigma,
        "epsilon": value,
        "v_prediction": (sigma * x + alpha * value) / total,
        "flow_prediction": (x + alpha * value) / (alpha + sigma),
        "score": -sigma * value,
    }
    for kind in PREDICTIONS:
        scale = (1 + sigma**2 + 1 / sigma) / alpha
        torch.testing.assert_close(sample[kind], want_sample[kind], rtol=0, atol=16 * EPS * scale)
        torch.testing.assert_close(eps[kind], want_eps[kind], rtol=0, atol=16 * EPS * scale)

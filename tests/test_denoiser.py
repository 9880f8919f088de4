"""The denoiser: five predictions of one network, its time and conditioning, and classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.testing import strategies

EPS = torch.finfo(torch.float64).eps
SCHEDULE = sa.VPLinear()
Network = Callable[..., Any]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(x: Tensor, t: Tensor) -> Tensor:
    return 0.6 * torch.tanh(0.9 * x + torch.cos(t)[:, None]) - 0.1 * torch.sin(x.flip(1))


def predicting(kind: str, schedule: sa.Schedule) -> Network:
    """The network that says with a prediction of this kind what ``data`` says, converted by the definitions."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        x_0 = data(x, t)
        eps = (x - alpha * x_0) / sigma
        return {
            "sample": x_0,
            "epsilon": eps,
            "v_prediction": alpha * eps - sigma * x_0,
            "flow_prediction": eps - x_0,
            "score": -eps / sigma,
        }[kind]

    return network


# ---------------------------------------------------------------- predictions


@given(strategies.frames(), strategies.predictions(), strategies.predictions(), strategies.seeds(), st.data())
def test_equivalent_networks_sample_alike(
    frame: sa.Frame, one: str, other: str, seed: int, draw: st.DataObject
) -> None:
    schedule = frame.schedule
    grid = draw.draw(strategies.grids(schedule, max_steps=6, logsnr=(-4.0, 4.0)))
    x_T = schedule.alpha(grid[0]) * randn(3, 2) + schedule.sigma(grid[0]) * randn(3, 2, seed=1)
    noise = sa.BrownianPath(seed) if frame.eta else None
    first, second = (
        sa.sample(
            sa.Denoiser(predicting(kind, schedule), schedule, kind),
            x_T, frame=frame, grid=grid, solver=sa.Euler(), noise=noise, trajectory=True,
        )
        for kind in (one, other)
    )  # fmt: skip
    # A conversion where alpha or sigma is e^-4 of the other loses two digits, there and back four, in up to six steps.
    torch.testing.assert_close(first, second, rtol=0, atol=1e5 * EPS * float(first.abs().max()))


@given(strategies.schedules(), strategies.predictions(), st.data())
def test_every_prediction_is_had_from_every_network(schedule: sa.Schedule, kind: str, draw: st.DataObject) -> None:
    t = float(draw.draw(strategies.grids(schedule, logsnr=(-4.0, 4.0)))[0])
    x, alpha, sigma = randn(3, 2), schedule.alpha(t), schedule.sigma(t)
    denoiser = sa.Denoiser(predicting(kind, schedule), schedule, kind)
    assert torch.equal(denoiser(x, t), denoiser(x, t, prediction="sample"))
    x_0, eps, v, flow, score = (
        denoiser(x, t, prediction=name) for name in ("sample", "epsilon", "v_prediction", "flow_prediction", "score")
    )

    def close(got: Tensor, want: Tensor, size: Tensor) -> None:
        torch.testing.assert_close(got, want, rtol=0, atol=1e5 * EPS * float(size.abs().max()))

    close(x_0, data(x, torch.full((3,), t, dtype=torch.float64)), x_0.abs() + x.abs() / alpha)
    close(alpha * x_0 + sigma * eps, x, x)
    close(v, alpha * eps - sigma * x_0, v.abs() + eps.abs())
    close(flow, eps - x_0, flow.abs() + eps.abs() + x_0.abs())
    close(sigma * score, -eps, eps)


@given(strategies.predictions(), strategies.predictions())
def test_a_time_for_each_sample(kind: str, wanted: str) -> None:
    schedule, x, t = SCHEDULE, randn(4, 2), torch.tensor([0.9, 0.5, 0.2, 0.05], dtype=torch.float64)
    denoiser = sa.Denoiser(predicting(kind, schedule), schedule, kind)
    each = torch.cat([denoiser(x[i : i + 1], float(t[i]), prediction=wanted) for i in range(4)])
    torch.testing.assert_close(denoiser(x, t, prediction=wanted), each, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- what the network is given


class Recorder(nn.Module):
    """Remembers its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.calls.append((x, t, cond))
        return self.weight.to(x.dtype) * x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("time_dtype", [None, torch.float64, torch.float32])
@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3, dtype=torch.float64), 1, torch.full((5,), 0.3).double()], ids=str)
def test_time_and_its_dtype(dtype: torch.dtype, time_dtype: torch.dtype | None, t: Any) -> None:
    network, x = Recorder(), randn(5, 2).to(dtype)
    out = sa.Denoiser(network, SCHEDULE, time_dtype=time_dtype)(x, t)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    (given_x, given_t, cond) = network.calls[0]
    assert torch.equal(given_x, x)
    assert (given_t.shape, given_t.dtype) == ((5,), time_dtype or dtype)
    exact = torch.as_tensor(t, dtype=torch.float64).expand(5)
    assert torch.equal(given_t, exact.to(time_dtype or dtype))
    assert cond == {}


@pytest.mark.parametrize("guided", [None, True, False], ids=["plain", "one batch", "two calls"])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_a_network_that_works_in_place_changes_its_own_output_only(
    guided: bool | None, dtype: torch.dtype | None
) -> None:
    cond = {"shift": randn(5, 1)}
    guidance = None if guided is None else sa.Guidance(3.0, {"shift": randn(5, 1)}, batched=guided)

    def pure(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return torch.relu(x) + t[:, None] * shift

    def in_place(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return torch.relu_(x) + 2 * t.div_(2)[:, None] * shift

    before, time = randn(5, 2), torch.full((5,), 0.5, dtype=torch.float64)
    x, t = before.clone(), time.clone()
    got, want = (
        sa.Denoiser(network, SCHEDULE, guidance=guidance, network_dtype=dtype)(x, t, cond)
        for network in (in_place, pure)
    )
    assert torch.equal(x, before)
    assert torch.equal(t, time)
    assert torch.equal(got, want)


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
def test_a_network_may_scale_the_one_time_of_a_batch_in_place(t: float | Tensor) -> None:
    x = randn(5, 2)
    got, want = (
        sa.Denoiser(network, SCHEDULE)(x, t)
        for network in (lambda x, t: x * t.mul_(4)[:, None], lambda x, t: x * (4 * t)[:, None])
    )
    assert torch.equal(got, want)


class Pair(NamedTuple):
    left: Tensor
    right: Any


def test_conditioning_reaches_the_network_untouched() -> None:
    cond = {"label": randn(3), "nest": {"deep": [randn(1), Pair(randn(2), None)]}, "name": "cat", "other": object()}
    network = Recorder()
    sa.Denoiser(network, SCHEDULE)(randn(3, 2), 0.5, cond)
    (_, _, received) = network.calls[0]
    assert list(received) == list(cond)
    assert all(received[name] is value for name, value in cond.items())


def test_modules_are_registered_and_functions_accepted() -> None:
    network = Recorder()
    scale, null = torch.tensor(2.0, requires_grad=True), {"style": [randn(1, 2)]}
    denoiser = sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(scale, null))
    assert [*denoiser.parameters()] == [network.weight]
    assert list(denoiser.parameters()) == [network.weight]
    other = denoiser.guided_by(None)
    assert other.network is network
    assert (other.guidance, denoiser.guidance is not None) == (None, True)
    assert [*sa.Denoiser(lambda x, t: x, SCHEDULE).parameters()] == []
    denoiser.to(torch.float32).eval()
    assert (network.weight.dtype, network.training) == (torch.float32, False)


# ---------------------------------------------------------------- guidance


def conditioned(x: Tensor, t: Tensor, label: Tensor, nest: dict[str, list[Tensor]] | None = None) -> Tensor:
    h = data(x, t) + torch.sin(label) * x
    return h if nest is None else h * torch.cos(nest["style"][0])


def conditions(batch: int, seed: int, unconditional_batch: int) -> tuple[dict[str, Any], dict[str, Any]]:
    a, b, c, d = (randn(batch if k % 2 == 0 else unconditional_batch, 2, seed=seed + k) for k in range(4))
    return {"label": a, "nest": {"style": [c]}}, {"label": b, "nest": {"style": [d]}}


@given(strategies.predictions(), st.integers(1, 4), st.booleans(), st.floats(-2.0, 8.0), st.integers(0, 99))
def test_guidance_is_the_formula_in_one_call_or_two(
    kind: str, batch: int, expanded: bool, scale: float, seed: int
) -> None:
    x, t = randn(batch, 2, seed=seed), 0.4
    cond, null = conditions(batch, seed, 1 if expanded else batch)
    positive, negative = (sa.Denoiser(conditioned, SCHEDULE, kind)(x, t, c, prediction=kind) for c in (cond, null))
    for batched in (True, False):
        denoiser = sa.Denoiser(conditioned, SCHEDULE, kind, guidance=sa.Guidance(scale, null, batched=batched))
        got = denoiser(x, t, cond, prediction=kind)
        # Ho and Salimans (2022), eq. 6, w = scale - 1.
        want = scale * positive - (scale - 1) * negative
        torch.testing.assert_close(got, want, rtol=0, atol=100 * EPS * (1 + abs(scale)))
        ends = ((1.0, positive), (0.0, negative))
        for end, expected in ends:
            denoiser.guidance = sa.Guidance(end, null, batched=batched)
            torch.testing.assert_close(denoiser(x, t, cond, prediction=kind), expected, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("batched", [True, False])
def test_guidance_calls_the_network_as_often_as_it_says(batched: bool) -> None:
    network = Recorder()
    cond, null = conditions(3, 0, 1)
    times = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, null, batched=batched))(randn(3, 2), times, cond)
    sizes = [(len(x), t.tolist(), len(given["label"])) for x, t, given in network.calls]
    t = times.tolist()
    assert sizes == ([(6, [*t, *t], 6)] if batched else [(3, t, 3), (3, t, 1)])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint()], ids=repr)
def test_gradients_reach_the_unconditional_tensors_and_the_scale(batched: bool, adjoint: sa.Adjoint) -> None:
    x_T, (cond, null) = randn(3, 2), conditions(3, 0, 1)
    scale = torch.tensor([[1.5], [3.0], [0.5]], dtype=torch.float64)
    leaves = [scale, cond["label"], cond["nest"]["style"][0], null["label"], null["nest"]["style"][0]]
    for leaf in leaves:
        leaf.requires_grad_()
    frame, grid = sa.Frame(SCHEDULE), sa.uniform_logsnr(SCHEDULE, 3)

    def solve(*values: Tensor) -> Tensor:
        guidance = sa.Guidance(values[0], {"label": values[3], "nest": {"style": [values[4]]}}, batched=batched)
        given = {"label": values[1], "nest": {"style": [values[2]]}}
        denoiser = sa.Denoiser(conditioned, SCHEDULE, "sample", guidance=guidance)
        return sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=sa.Heun(), cond=given, adjoint=adjoint)

    gradients = torch.autograd.grad((solve(*leaves) ** 2).sum(), leaves)
    # Central differences in a random direction: error h^2 |f'''| + eps / h.
    for k, gradient in enumerate(gradients):
        direction, h = randn(*leaves[k].shape, seed=k), 1e-5
        ends = []
        for sign in (1, -1):
            moved = [leaf.detach() + sign * h * direction if j == k else leaf.detach() for j, leaf in enumerate(leaves)]
            ends.append(float((solve(*moved) ** 2).sum()))
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_guidance_rescale(batched: bool, rescale: float) -> None:
    """Lin et al. (2024), eqs. 15 and 16, sample by sample; with 1 the deviation is the conditional prediction's."""
    x, (cond, null) = randn(3, 5, 4), ({"label": randn(3, 1, 1)}, {"label": randn(1, 1, 1, seed=1)})

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x + t[:, None, None]) + torch.sin(label) * x

    guidance = sa.Guidance(4.0, null, batched=batched, rescale=rescale)
    got = sa.Denoiser(network, SCHEDULE, guidance=guidance)(x, 0.4, cond, prediction="epsilon")
    positive, negative = (sa.Denoiser(network, SCHEDULE)(x, 0.4, c, prediction="epsilon") for c in (cond, null))
    for i in range(3):
        plain = negative[i] + 4.0 * (positive[i] - negative[i])
        want = rescale * plain * (positive[i].var() / plain.var()).sqrt() + (1 - rescale) * plain
        torch.testing.assert_close(got[i], want, rtol=1e-12, atol=1e-12)
        if rescale == 1:
            torch.testing.assert_close(got[i].std(), positive[i].std(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_times_have_gradients_through_the_network_and_the_schedule(shape: tuple[int, ...]) -> None:
    x, t = randn(2, 3), torch.full(shape, 0.4, dtype=torch.float64, requires_grad=True)
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x * t[:, None]), SCHEDULE, "epsilon")
    assert torch.autograd.gradcheck(lambda t: denoiser(x, t, prediction="sample"), t)


def test_guidance_rescale_is_differentiated_with_its_deviations() -> None:
    def guided(x: Tensor, label: Tensor) -> Tensor:
        guidance = sa.Guidance(4.0, {"label": torch.zeros_like(label)}, rescale=0.7)
        denoiser = sa.Denoiser(lambda x, t, label: torch.tanh(x) + label * x, SCHEDULE, guidance=guidance)
        return denoiser(x, 0.4, {"label": label}, prediction="epsilon")

    assert torch.autograd.gradcheck(guided, (randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()))


def test_guidance_rescale_is_checked() -> None:
    for bad in (-0.1, 1.5, True, torch.ones(())):
        with pytest.raises(ValueError, match="rescale: got"):
            sa.Guidance(2.0, rescale=bad)  # type: ignore[arg-type]
    denoiser = sa.Denoiser(lambda x, t: x, SCHEDULE, guidance=sa.Guidance(2.0, rescale=0.5))
    with pytest.raises(ValueError, match="one number per sample has no deviation"):
        denoiser(randn(3, 1), 0.5)


def test_guidance_passes_on_what_is_no_tensor() -> None:
    cond = {"names": ["cat"], "pair": Pair(randn(2, 1), "same"), "flags": (True, {"k": 3}), "width": 64}
    network = Recorder()
    sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, cond))(randn(2, 2), 0.5, cond)
    received = network.calls[0][2]
    assert received["names"] == ["cat"]
    assert received["flags"] == (True, {"k": 3})
    assert received["width"] == 64
    assert isinstance(received["pair"], Pair)
    assert received["pair"].right == "same"
    assert torch.equal(received["pair"].left, torch.cat([cond["pair"].left] * 2))


# ---------------------------------------------------------------- the door


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": 3}, TypeError, r"network: got int; pass a callable network\(x, t, \*\*cond\)"),
        ({"schedule": "vp"}, TypeError, r"schedule: got str; pass a Schedule such as VPLinear\(\)"),
        ({"prediction": "noise"}, ValueError, r"prediction: got 'noise'; pass one of \('epsilon', 'sample'"),
        ({"guidance": 7.5}, TypeError, r"guidance: got float; pass Guidance\(scale, unconditional\)"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sa.Denoiser(**{"network": data, "schedule": SCHEDULE, **arguments})


def test_guidance_needs_a_mapping() -> None:
    with pytest.raises(TypeError, match="unconditional: got Tensor; pass a mapping of names, like cond"):
        sa.Guidance(2.0, torch.zeros(3))  # type: ignore[arg-type]


def test_a_prediction_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target must be one of .*'noise'"):
        sa.Denoiser(data, SCHEDULE)(randn(3, 2), 0.5, prediction="noise")


@pytest.mark.parametrize("shape", [(2,), (1,), (3, 1), (0,)])
def test_times_must_be_one_or_one_for_each_sample(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"t: got shape .*; pass a number or a tensor of shape \(3,\)"):
        sa.Denoiser(data, SCHEDULE)(randn(3, 2), torch.full(shape, 0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: {"sample": x}, TypeError, "network: returned dict; it must return one tensor of x's shape"),
        (lambda x: (x,), TypeError, "network: returned tuple; .*wrap it"),
        (lambda x: None, TypeError, "network: returned NoneType"),
        (lambda x: x.sum(1), ValueError, r"network: returned shape \(\d,\) for x of shape \(3, 2\); return x's shape"),
        (lambda x: torch.cat([x, x], 1), ValueError, r"returned shape \(3, 4\) for x .*drop learned-variance"),
        (lambda x: x[:1], ValueError, r"returned shape \(1, 2\) for x of shape \(3, 2\)"),
        (lambda x: x.long(), TypeError, r"network: returned dtype torch\.int64; it must return a real floating"),
        (lambda x: x + 0j, TypeError, r"network: returned dtype torch\.complex128"),
    ],
)
@pytest.mark.parametrize("guidance", [None, sa.Guidance(2.0), sa.Guidance(2.0, batched=False)], ids=str)
def test_bad_outputs_are_refused(
    output: Network, error: type[Exception], message: str, guidance: sa.Guidance | None
) -> None:
    with pytest.raises(error, match=message):
        sa.Denoiser(lambda x, t: output(x), SCHEDULE, guidance=guidance)(randn(3, 2), 0.5)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [(lambda x: None, TypeError, "returned NoneType"), (lambda x: x[:1], ValueError, r"returned shape \(1, 2\)")],
)
def test_a_bad_output_of_the_second_call_alone_is_refused(
    output: Network, error: type[Exception], message: str
) -> None:
    denoiser = sa.Denoiser(
        lambda x, t, good: x if good else output(x), SCHEDULE, guidance=sa.Guidance(2.0, {"good": False}, batched=False)
    )
    with pytest.raises(error, match=message):
        denoiser(randn(3, 2), 0.5, {"good": True})


@pytest.mark.parametrize(
    ("cond", "null", "message"),
    [
        ({"a": 1}, {"b": 1}, r"cond: got names \['a'\], but the unconditional conditioning has \['b'\]; pass the same"),
        ({}, {"b": 1}, r"cond: got names \[\], but"),
        ({"a": randn(3, 2)}, {"a": randn(3, 1)}, r"cond\['a'\]: cannot batch shapes \(3, 2\) and \(3, 1\)"),
        ({"a": randn(2)}, {"a": randn(2)}, r"cond\['a'\]: cannot batch shapes \(2,\) and \(2,\)"),
        ({"a": randn(3).sum()}, {"a": randn(3)}, r"cond\['a'\]: cannot batch shapes \(\) and \(3,\)"),
        ({"a": 1}, {"a": 2}, r"cond\['a'\]: int and int cannot be stacked into one batch; .* or pass batched=False"),
        ({"a": randn(3)}, {"a": None}, r"cond\['a'\]: Tensor and NoneType cannot be stacked"),
        ({"a": {"x": randn(3)}}, {"a": {"y": randn(3)}}, r"cond\['a'\]: dict and dict cannot be stacked"),
        ({"a": [randn(3), {"z": 1}]}, {"a": [randn(3), {"z": 2}]}, r"cond\['a\[1\]\.z'\]: int and int"),
        ({"a": [1, 2]}, {"a": [1]}, r"cond\['a'\]: list and list cannot be stacked"),
        ({"a": [1]}, {"a": (1,)}, r"cond\['a'\]: list and tuple cannot be stacked"),
    ],
)
def test_conditions_that_cannot_be_batched_are_refused(cond: Any, null: Any, message: str) -> None:
    network = Recorder()
    with pytest.raises(ValueError, match=message):
        sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, null))(randn(3, 2), 0.5, cond)
    if set(cond) == set(null):  # two calls take anything
        sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, null, batched=False))(randn(3, 2), 0.5, cond)


def test_repr_is_the_call() -> None:
    assert repr(sa.Denoiser(Recorder(), SCHEDULE)) == f"Denoiser(Recorder, {SCHEDULE!r}, prediction='epsilon')"
    full = sa.Denoiser(data, SCHEDULE, "score", guidance=sa.Guidance(2.0), time_dtype=torch.float32)
    assert repr(full) == (
        f"Denoiser(data, {SCHEDULE!r}, prediction='score', guidance=Guidance(scale=2.0, unconditional={{}}, "
        "batched=True, rescale=0.0), time_dtype=torch.float32)"
    )


@pytest.mark.parametrize("time_dtype", [None, torch.float64])
def test_the_network_may_run_in_another_dtype_than_the_state(time_dtype: torch.dtype | None) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype))
        return torch.tanh(x)

    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    denoiser = sa.Denoiser(network, SCHEDULE, "epsilon", time_dtype=time_dtype, network_dtype=torch.float32)
    out = denoiser(x, 0.5, prediction="epsilon")
    assert seen == [(torch.float32, time_dtype or torch.float32)]
    assert torch.equal(out, torch.tanh(x.float()))
    assert denoiser(x, 0.5).dtype == torch.float64  # combined with the state in the state's dtype
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.dtype == torch.float64
    assert "network_dtype=torch.float32" in repr(denoiser)
    for name in ("time_dtype", "network_dtype"):
        with pytest.raises(TypeError, match=f"{name}: got torch.int64"):
            sa.Denoiser(network, SCHEDULE, **{name: torch.int64})  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [lambda s: sa.Denoiser(lambda x, t: x, s), sa.Frame], ids=["Denoiser", "Frame"])
@pytest.mark.parametrize("make", [lambda p: sa.VPLinear(0.1, p), lambda p: sa.VE(0.01, p)], ids=["VPLinear", "VE"])
def test_parameters_of_a_schedule_that_want_gradients_are_refused(
    place: Callable[[sa.Schedule], object], make: Callable[[Tensor], sa.Schedule]
) -> None:
    with pytest.raises(ValueError, match="parameters require gradients; gradients in the schedule are not computed"):
        place(make(torch.tensor(20.0, requires_grad=True)))
    place(make(torch.tensor(20.0)))


def test_a_table_that_wants_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alphas_cumprod requires a gradient.*pass its .detach\(\)"):
        sa.Tabulated(torch.linspace(0.99, 0.01, 10, requires_grad=True))


def test_a_network_of_another_dtype_says_what_to_pass() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.linear(x)

    with pytest.raises(RuntimeError, match="dtype") as caught:
        sa.Denoiser(Flat(), sa.VPLinear())(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    assert any("network_dtype=torch.float32" in note for note in caught.value.__notes__)
    served = sa.Denoiser(Flat(), sa.VPLinear(), network_dtype=torch.float32)
    assert served(torch.zeros(1, 2, dtype=torch.float64), 0.5).dtype == torch.float64


@pytest.mark.parametrize("how", ["later", "without gradients"])
def test_a_schedule_that_comes_to_want_gradients_is_refused_by_sample(how: str) -> None:
    parameter = torch.tensor(20.0, requires_grad=how == "without gradients")
    with torch.no_grad():
        schedule = sa.VPLinear(0.1, parameter)
        grid = sa.uniform_logsnr(schedule, 3).detach()
        if how == "without gradients":
            with pytest.raises(ValueError, match="parameters require gradients"):
                sa.Frame(schedule)
            return
        denoiser, (frame, solver) = sa.Denoiser(lambda x, t: x, schedule), sa.samplers.ddim(schedule)
    parameter.requires_grad_()
    with pytest.raises(ValueError, match="parameters require gradients"):
        sa.sample(denoiser, torch.zeros(1, 2), frame=frame, grid=grid, solver=solver)


def test_other_errors_of_a_network_get_no_advice_on_dtypes() -> None:
    class Narrow(torch.nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x.float())

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        sa.Denoiser(Narrow(3, 3), sa.VPLinear())(torch.zeros(1, 2, dtype=torch.float64), 0.5)
    assert not any("network_dtype" in note for note in getattr(caught.value, "__notes__", []))

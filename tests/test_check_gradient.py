"""``check_gradient`` passes what is right, finds what is wrong, names every tensor, and touches nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.gradient_check import Row
from sdeadjoint.gradient_check.call import Call

from .networks import Mlp
from .wrong_adjoints import NotANumber, Scaled, WithoutNoise

SCHEDULE = sa.VPLinear()
DOUBLE = torch.float64
# Round-off of some tens of steps, each of some tens of operations, relative to the gradient's norm.
EXACT = 1e-12
PARAMETERS = {f"network.{layer}.{part}" for layer in ("inward", "outward") for part in ("weight", "bias")} | {
    "network.shared",
    "network.unused",
}


def square(x: Tensor) -> Tensor:
    return 0.5 * (x**2).sum()


def arguments(sampler: Any = sa.samplers.ddim, *, dtype: torch.dtype = DOUBLE, steps: int = 3) -> dict[str, Any]:
    """A call with everything that can have a gradient."""
    frame, solver = sampler(SCHEDULE)
    grid = sa.uniform_logsnr(SCHEDULE, steps)
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(3, 6, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()
    style = torch.randn(3, 8, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()
    noise = None
    if frame.eta > 0:
        path = sa.BrownianPath(seed=1)
        areas = path.levy_areas(frame, grid, like=x_T).requires_grad_() if solver.claims.levy != "none" else None
        noise = sa.FixedNoise(path.increments(frame, grid, like=x_T).requires_grad_(), areas)
    return {
        "denoiser": sa.Denoiser(Mlp(6).to(dtype), SCHEDULE),
        "x_T": x_T,
        "loss": square,
        "frame": frame,
        "grid": grid,
        "solver": solver,
        "noise": noise,
        "cond": {"embedding": {"style": [style]}},
    }


def check(call: dict[str, Any], **options: Any) -> sa.GradientCheck:
    return sa.check_gradient(**(call | options))


@pytest.mark.parametrize("sampler", [sa.samplers.dpm_solver_pp_2m, sa.samplers.shark_sde])
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=2)], ids=repr)
def test_exact_adjoints_pass_and_every_tensor_is_named(sampler: Any, adjoint: sa.Adjoint) -> None:
    found = check(arguments(sampler), adjoint=adjoint)
    noise = {"noise.increments", "noise.levy_areas"} if sampler is sa.samplers.shark_sde else set()
    assert {row.name for row in found.rows} == {"x_T", "cond.embedding.style[0]", *noise, *PARAMETERS}
    assert found.passed(EXACT)
    assert found.reference == "direct"
    assert found.loss == found.reference_loss
    for row in found.rows:
        if row.name == "network.unused":
            assert (row.norm, row.reference_norm, row.relative_error, row.cosine) == (0, 0, 0, None)
            assert row.remark == "the loss does not depend on it"
        else:
            assert row.cosine == pytest.approx(1, abs=EXACT)
            assert row.reference_norm > 0
            assert row.remark == ""


def test_difference_quotients_agree_with_autograd_within_their_stated_error() -> None:
    found = check(arguments(sa.samplers.shark_sde), reference="differences")
    for row in found.rows:
        # eps^(2/3) = 4e-11 is what central differences can do; a sampler's third derivatives cost some more.
        assert row.relative_error <= row.uncertainty + EXACT
        assert row.uncertainty < 1e-6
        assert row.cosine is None
    assert found.passed(1e-6)
    assert {row.name: row.remark for row in found.rows}["network.unused"].startswith("zero within the quotients' error")


@pytest.mark.parametrize("reference", ["direct", "differences"])
def test_a_gradient_that_is_one_percent_off_is_found(reference: str) -> None:
    found = check(arguments(sa.samplers.sde_dpm_solver_pp_1), adjoint=Scaled(1.01), reference=reference)
    assert not found.passed(5e-3)
    for row in found.rows:
        if row.name != "network.unused":
            assert row.relative_error == pytest.approx(0.01, rel=1e-4)  # and the quotients' own error
    assert check(arguments(), adjoint=Scaled(1.0)).passed(EXACT)


@pytest.mark.parametrize("reference", ["direct", "differences"])
def test_a_missing_noise_gradient_is_found(reference: str) -> None:
    found = check(arguments(sa.samplers.sde_dpm_solver_pp_1), adjoint=WithoutNoise(), reference=reference)
    assert found.worst.name == "noise.increments"
    assert found.worst.relative_error == 1
    assert found.worst.norm == 0
    assert found.worst.remark == "the adjoint gives no gradient"
    assert not found.passed(0.5)
    right = [row for row in found.rows if row.name != "noise.increments"]
    assert all(row.relative_error <= row.uncertainty + EXACT for row in right)


def test_a_gradient_of_nans_is_the_worst() -> None:
    found = check(arguments(), adjoint=NotANumber())
    assert math.isnan(found.worst.relative_error)
    assert not found.passed(math.inf)


def test_float32_is_compared_with_float64() -> None:
    found = check(arguments(sa.samplers.sde_dpm_solver_pp_2m, dtype=torch.float32))
    assert found.dtype == "float32"
    assert found.loss == pytest.approx(found.reference_loss, rel=1e-5)
    # Some units of float32 round-off, 1.2e-7, for each of a few tens of operations.
    assert 1e-9 < found.worst.relative_error < 1e-5
    assert found.passed(1e-5)


def test_a_float32_network_on_float64_states_is_run_in_float64() -> None:
    call = arguments()
    denoiser = sa.Denoiser(Mlp(6).float(), SCHEDULE, network_dtype=torch.float32, time_dtype=torch.float32)
    found = check(call | {"denoiser": denoiser, "cond": None})
    assert 1e-9 < found.worst.relative_error < 1e-5


def test_differences_are_chosen_where_the_graph_does_not_fit() -> None:
    assert check(arguments(), memory="1kB", directions=1).reference == "differences"
    assert check(arguments(), memory="1GiB").reference == "direct"
    call = arguments(steps=40)
    graph = Call(**call).copied().probe().graph_bytes(40)
    with sa.memory.PeakMemory() as memory:
        loss = square(sa.sample(**{k: v for k, v in call.items() if k != "loss"}, adjoint=sa.Direct()))
    del loss
    assert memory.peak / 2 < graph < memory.peak * 2


def test_nothing_of_the_callers_is_changed() -> None:
    call = arguments(sa.samplers.shark_sde)
    x_T = (call["x_T"] * 2).requires_grad_()  # not a leaf, and read by the conditioning too
    call |= {"x_T": x_T, "cond": {"embedding": {"style": [call["cond"]["embedding"]["style"][0], x_T]}}}
    network = call["denoiser"].network.train()
    leaves = Call(**call).leaves()
    assert [name for name in leaves if name.startswith("cond")] == ["cond.embedding.style[0]"]  # one tensor, one name
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    network.shared.grad = torch.ones_like(network.shared)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for reference in ("direct", "differences"):
        assert check(call, reference=reference, directions=1).passed(1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert torch.equal(network.shared.grad, torch.ones_like(network.shared))
    for name, leaf in Call(**call).leaves().items():
        assert leaf is leaves[name]
        assert leaf.requires_grad
        assert torch.equal(leaf, before[name])
        if leaf.is_leaf and leaf is not network.shared:
            assert leaf.grad is None


def test_dropout_draws_the_same_masks_everywhere() -> None:
    call = arguments()
    network = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Dropout(), nn.Linear(64, 6)).double()
    call |= {"denoiser": sa.Denoiser(lambda x, t: network(x), SCHEDULE), "cond": None}
    call["denoiser"].network = _TimeFree(network)
    assert check(call).passed(EXACT)
    assert check(call, reference="differences", directions=2).passed(1e-6)


class _TimeFree(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out


def test_tensors_that_a_function_closes_over_are_checked_too() -> None:
    scale = torch.tensor(0.3, requires_grad=True)  # float32, and stays so
    call = arguments() | {"denoiser": sa.Denoiser(lambda x, t: scale * torch.tanh(x), SCHEDULE), "cond": None}
    found = check(call)
    assert [row.name for row in found.rows] == ["x_T", "closure[0]"]
    assert any("closure[0]" in note and note.endswith("is checked") for note in found.notes)
    assert found.rows[1].cosine == pytest.approx(1, abs=1e-6)
    assert found.passed(1e-6)
    by_quotients = check(call, reference="differences")
    assert [row.name for row in by_quotients.rows] == ["x_T"]
    assert any("closure[0]" in note and "not checked" in note for note in by_quotients.notes)
    assert not check(call, adjoint=Scaled(1.01)).passed(1e-3)
    assert scale.grad is None
    call |= {"x_T": call["x_T"].detach().float()}
    assert any("run as it is" in note for note in check(call).notes)


def test_gradients_that_are_zero_but_for_round_off() -> None:
    class Centred(nn.Module):
        """The mean is taken off, so a bias cannot matter."""

        def __init__(self) -> None:
            super().__init__()
            self.bias, self.scale = (nn.Parameter(torch.full((1,), v, dtype=DOUBLE)) for v in (0.3, 0.7))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = torch.sin(x) * self.scale + self.bias
            return h - h.mean(1, keepdim=True)

    found = check(arguments() | {"denoiser": sa.Denoiser(Centred(), SCHEDULE), "cond": None}, adjoint=sa.Checkpoint())
    rows = {row.name: row for row in found.rows}
    assert rows["network.bias"].remark.startswith("zero to round-off")
    assert found.passed(1)
    assert rows["network.scale"].relative_error < EXACT
    # A gradient that should be zero and is not is no round-off, and one that is below round-off is no error.
    sizes = {}
    for leak in (1.0, 1e-12):
        wrong = check(
            arguments() | {"denoiser": sa.Denoiser(Centred(), SCHEDULE), "cond": None}, adjoint=_Leaks(leak), loss=total
        )
        sizes[leak] = {row.name: row for row in wrong.rows}["network.bias"].relative_error
    assert sizes[1.0] > 1e6
    assert sizes[1e-12] < 1


def total(x: Tensor) -> Tensor:
    return x.sum()


@dataclass(frozen=True)
class _Leaks(sa.Adjoint):
    """Adds something to the gradient of a bias."""

    size: float

    def solve(self, recursion: Any, y: Tensor, **options: Any) -> tuple[Tensor, ...]:
        (y,) = sa.Direct().solve(recursion, y, **options)
        bias = recursion.equation.denoiser.network.bias
        return (y + self.size * (bias - bias.detach()),)


def test_a_tensor_given_twice_has_one_gradient() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, t: Tensor, other: Tensor) -> Tensor:
            return torch.tanh(x - other)

    call = arguments() | {"denoiser": sa.Denoiser(Both(), SCHEDULE)}
    for reference in ("direct", "differences"):
        found = check(call, cond={"other": call["x_T"]}, reference=reference)
        assert [row.name for row in found.rows] == ["x_T"]
        assert found.passed(1e-6)
    separate = check(call, cond={"other": call["x_T"].detach().clone().requires_grad_()})
    assert [row.name for row in separate.rows] == ["x_T", "cond.other"]


def test_guidance_scheduled_conditioning_and_shifted_noise_are_named() -> None:
    call = arguments(sa.samplers.sde_dpm_solver_pp_1)
    slots = torch.linspace(-1, 1, 3 * 3 * 8, dtype=DOUBLE).reshape(3, 3, 8)
    null = [torch.zeros(3, 8, dtype=DOUBLE, requires_grad=True) for _ in range(3)]
    scale = torch.tensor(1.5, dtype=DOUBLE, requires_grad=True)
    guidance = sa.Guidance(scale, {"embedding": {"style": [sa.Scheduled(null)]}})
    shifts = torch.zeros(3, 3, 6, dtype=DOUBLE, requires_grad=True)
    call |= {
        "denoiser": sa.Denoiser(Mlp(6), SCHEDULE, guidance=guidance),
        "cond": {"embedding": {"style": [sa.Scheduled(slots.requires_grad_())]}},
        "noise": sa.noise.ShiftedNoise(sa.BrownianPath(seed=3), shifts),
    }
    found = check(call)
    assert found.passed(EXACT)
    slots_of_null = {f"guidance.unconditional.embedding.style[0][{n}]" for n in range(3)}
    named = {row.name for row in found.rows} - PARAMETERS
    assert named == {"x_T", "cond.embedding.style[0]", "guidance.scale", "noise.shifts", *slots_of_null}


@dataclass(frozen=True)
class _OwnNoise(sa.Noise):
    """Somebody else's noise, with a tensor of its own."""

    scale: Tensor

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> Any:
        path = sa.BrownianPath(seed=0).bind(clock, like, levy)
        return _OwnBound(path, self.scale)


@dataclass(frozen=True)
class _OwnBound(sa.noise.BoundNoise):
    path: Any
    scale: Tensor

    def increment(self, n: int) -> Any:
        return sa.noise.Increment(self.path.increment(n).dB * self.scale, None)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.scale,)


def test_noise_of_another_kind_is_checked_by_position() -> None:
    noise = _OwnNoise(torch.tensor(0.5, dtype=DOUBLE, requires_grad=True))
    found = check(arguments(sa.samplers.sde_dpm_solver_pp_1) | {"noise": noise}, adjoint=sa.Direct())
    assert "noise[0]" in {row.name for row in found.rows}
    assert found.passed(EXACT)


def refusals() -> Iterator[Any]:
    call = arguments()
    plain = {"x_T": call["x_T"].detach(), "cond": None}
    frozen = sa.Denoiser(Mlp(6).requires_grad_(False), SCHEDULE)
    yield call, {"denoiser": frozen, **plain}, ValueError, "x_T: nothing requires a gradient"
    yield call, {"adjoint": sa.Truncated(last=1)}, RuntimeError, r"x_T requires a gradient, but Truncated\(last=1\)"
    yield call, {"adjoint": "direct"}, TypeError, "adjoint: got str; pass an adjoint"
    yield call, {"reference": "exact"}, ValueError, "reference: got 'exact'; pass one of"
    yield call, {"directions": 0}, ValueError, "directions: got 0; pass an integer >= 1"
    yield call, {"memory": "much"}, ValueError, "memory: got 'much'"
    yield (
        call,
        {"loss": lambda x: x},
        TypeError,
        r"loss: returned torch.float64 \(3, 6\); it must return one real number",
    )
    yield call, {"loss": 3}, TypeError, "loss: got int; pass a function"
    yield call, {"denoiser": Mlp(6)}, TypeError, "denoiser: got Mlp; pass Denoiser"
    yield call, {"x_T": [1.0]}, TypeError, "x_T: got list; pass a tensor"
    yield call, {"noise": sa.BrownianPath(0), "frame": sa.Frame(sa.VPCosine(), 1.0)}, ValueError, "frame: its schedule"
    narrow = arguments(dtype=torch.float32)
    strict = sa.Denoiser(lambda x, t: torch.tanh(x @ torch.eye(6)), SCHEDULE)
    yield narrow, {"denoiser": strict, "cond": None}, RuntimeError, "float64 copy, which is the reference, fails"
    weight = torch.eye(6, requires_grad=True)
    yield (
        narrow,
        {"loss": lambda x: (x @ weight).sum()},
        RuntimeError,
        r"denoiser, loss: the call works, but its float64",
    )
    stuck = sa.Denoiser(_Uncopiable(), SCHEDULE)
    yield call, {"denoiser": stuck, "cond": None}, TypeError, "copy.deepcopy failed"


class _Uncopiable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.derived = torch.ones(1, requires_grad=True) * 2

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)


@pytest.mark.parametrize(("call", "changes", "error", "message"), list(refusals()))
def test_refusals(call: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(call, **changes)


def test_a_tolerance_below_what_the_quotients_can_tell_is_refused() -> None:
    found = check(arguments(), reference="differences", directions=1)
    with pytest.raises(ValueError, match=r"tolerance: got 1e-15, but the difference quotients of .* are known to"):
        found.passed(1e-15)


def test_the_table_is_aligned_and_the_numbers_are_plain() -> None:
    found = check(arguments(), adjoint=Scaled(1.01))
    lines = str(found).splitlines()
    assert lines[0].startswith("Scaled(factor=1.01) with Euler(), 3 steps, float64, against plain autograd in float64")
    header, rows = lines[2], lines[3 : 3 + len(found.rows)]
    for name in ("norm", "reference", "rel. error", "cosine"):
        end = header.index(name) + len(name)
        assert all(line[end - 1] != " " and (len(line) == end or line[end] == " ") for line in rows)
    assert json.loads(json.dumps(found.as_json()))["rows"][0]["name"] == "x_T"
    worse = replace(found, rows=(*found.rows, Row("made up", 1.0, 1.0, 2.0, 0.0)))
    assert worse.worst.name == "made up"

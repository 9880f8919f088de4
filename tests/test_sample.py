"""``sample``: what goes in, what comes out, and what is refused at the door."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .networks import Mlp

DOUBLE = torch.float64
SCHEDULE = sa.VPLinear()
GRID = sa.uniform_logsnr(SCHEDULE, 5)
ADJOINTS = [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)]


def call(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "denoiser": sa.Denoiser(lambda x, t: torch.tanh(x), SCHEDULE),
        "x_T": torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4),
        "frame": sa.Frame(SCHEDULE),
        "grid": GRID,
        "solver": sa.Heun(),
    }
    return sa.sample(**(arguments | changes))


def network(function: Any, prediction: str = "epsilon") -> sa.Denoiser:
    return sa.Denoiser(function, SCHEDULE, prediction)


SDE = sa.Frame(SCHEDULE, eta=1.0)
STILL = torch.zeros(5, 2, 4, dtype=DOUBLE)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rising grid": ({"grid": GRID.flip(0)}, ValueError, r"must strictly decrease.*grid\.flip\(0\)"),
    "repeated time": ({"grid": [1.0, 0.5, 0.5, 0.1]}, ValueError, r"grid\[1\]=0.5 is followed by grid\[2\]=0.5"),
    "grid out of range": ({"grid": [1.5, 0.5]}, ValueError, r"outside the times \[0.0, 1.0\] where VPLinear is defined"),
    "NaN in grid": ({"grid": [1.0, float("nan"), 0.1]}, ValueError, "time 1 is nan"),
    "one time": ({"grid": [1.0]}, ValueError, "steps \\+ 1 >= 2 times"),
    "matrix grid": ({"grid": GRID[None]}, ValueError, "got shape"),
    "complex grid": ({"grid": GRID.to(torch.complex128)}, ValueError, "pass real times"),
    "eta without noise": ({"frame": SDE}, ValueError, r"noise: got None.*BrownianPath\(seed=0\)"),
    "noise that is none": ({"frame": SDE, "noise": STILL}, TypeError, r"noise: got Tensor.*FixedNoise\(increments\)"),
    "noise of another shape": (
        {"frame": SDE, "noise": sa.FixedNoise(STILL[..., :3])}, ValueError, r"increments has shape \(5, 2, 3\)",
    ),
    "noise of another grid": ({"frame": SDE, "noise": sa.FixedNoise(STILL[:4])}, ValueError, "grid of 5 steps"),
    "noise for an ODE": ({"noise": sa.FixedNoise(STILL + 1)}, ValueError, "eta = 0"),
    "too few seeds": ({"frame": SDE, "noise": sa.BrownianPath(seed=[1])}, ValueError, "seed lists 1 paths"),
    "no Levy area": (
        {"frame": SDE, "noise": sa.FixedNoise(STILL), "solver": sa.SRA1()}, ValueError, "asks for space-time Levy areas",
    ),
    "integer x_T": ({"x_T": torch.ones(2, 4, dtype=torch.int64)}, TypeError, "x_T: got dtype torch.int64"),
    "complex x_T": ({"x_T": torch.ones(2, 4, dtype=torch.complex64)}, TypeError, "x_T: got dtype torch.complex64"),
    "half x_T": ({"x_T": torch.ones(2, 4, dtype=torch.float16)}, TypeError, "float16 network runs in its own dtype"),
    "scalar x_T": ({"x_T": torch.tensor(1.0)}, ValueError, "x_T: got shape"),
    "no sample": ({"x_T": torch.ones(0, 4)}, ValueError, r"x_T: got shape \(0, 4\); pass a batch"),
    "infinite x_T": ({"x_T": torch.tensor([[1.0, float("inf")]])}, ValueError, "x_T: it holds NaN or infinite values"),
    "x_T no tensor": ({"x_T": [1.0]}, TypeError, "x_T: got list"),
    "network for denoiser": ({"denoiser": torch.tanh}, TypeError, "denoiser: got builtin_function_or_method"),
    "solver class": ({"solver": sa.Heun}, TypeError, "solver: got the class Heun; pass a solver such as Heun()"),
    "adjoint class": ({"adjoint": sa.Checkpoint}, TypeError, "adjoint: got the class Checkpoint"),
    "cond no mapping": ({"cond": torch.ones(2)}, TypeError, "cond: got Tensor"),
    "two schedules": ({"frame": sa.Frame(sa.VPCosine())}, ValueError, "pass one schedule to both"),
    "tuple output": (
        {"denoiser": network(lambda x, t: (x,))}, TypeError, r"network: returned tuple; it must return one tensor",
    ),
    "wrong shape": ({"denoiser": network(lambda x, t: x[:, :2])}, ValueError, r"returned shape \(2, 2\) for x of shape"),
    "broadcast shape": ({"denoiser": network(lambda x, t: x[:1])}, ValueError, r"returned shape \(1, 4\)"),
    "integer output": ({"denoiser": network(lambda x, t: x.long())}, TypeError, "must return a real floating-point tensor"),
    "noise kind at alpha = 0": (
        {
            "denoiser": sa.Denoiser(torch.tanh, sa.RectifiedFlow()), "grid": [1.0, 0.5],
            "frame": sa.Frame(sa.RectifiedFlow(), kind="noise"),
        }, ValueError, "alpha = 0 and the noise kind is singular.*kind='data'",
    ),
    "eps at alpha = 0": (
        {
            "denoiser": sa.Denoiser(lambda x, t: x, sa.RectifiedFlow()), "grid": [1.0, 0.5],
            "frame": sa.Frame(sa.RectifiedFlow()),
        }, ValueError, "epsilon.*alpha",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refused(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    changes, kind, message = case
    with pytest.raises(kind, match=message):
        call(**changes)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_name_the_step(adjoint: sa.Adjoint, value: float) -> None:
    def breaks(x: Tensor, t: Tensor) -> Tensor:
        return x * value if t[0] < GRID[3] + 1e-9 else x

    with pytest.raises(ValueError, match=r"not finite \(NaN or inf\) at step 3 of 5, t="):
        call(denoiser=network(breaks), solver=sa.Euler(), adjoint=adjoint)


def test_errors_of_the_network_say_at_which_step() -> None:
    def breaks(x: Tensor, t: Tensor) -> Tensor:
        if t[0] < GRID[2] + 1e-9:
            raise KeyError("missing")
        return x

    with pytest.raises(KeyError) as caught:
        call(denoiser=network(breaks), solver=sa.Euler())
    assert "(step 2 of 5, from t=" in caught.value.__notes__[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("who", ["x_T", "cond", "noise", "guidance"])
def test_gradients_that_are_asked_for_but_globally_off(mode: Any, who: str) -> None:
    leaf = torch.zeros(5, 2, 4, dtype=DOUBLE, requires_grad=True)
    changes: dict[str, Any] = {
        "x_T": {"x_T": leaf[0].detach().requires_grad_()},
        "cond": {"cond": {"z": [leaf]}, "denoiser": network(lambda x, t, z: x)},
        "noise": {"noise": sa.FixedNoise(leaf), "frame": SDE},
        "guidance": {"denoiser": sa.Denoiser(lambda x, t: x, SCHEDULE, guidance=sa.Guidance(leaf[0]))},
    }[who]
    with mode(), pytest.raises(RuntimeError, match=f"{who} requires a gradient, but gradients are globally off"):
        call(**changes)


def test_plain_sampling_without_gradients_is_fine_and_the_same() -> None:
    model = Mlp(4)
    with torch.no_grad():
        plain = call(denoiser=network(model))
    differentiable = call(denoiser=network(model))
    assert not plain.requires_grad
    assert differentiable.requires_grad
    assert torch.equal(plain, differentiable)
    assert not call().requires_grad


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_callback_sees_each_state_once_detached_and_cannot_change_anything(adjoint: sa.Adjoint) -> None:
    seen: list[tuple[int, float, Tensor]] = []

    def callback(n: int, t: float, x: Tensor) -> None:
        assert not x.requires_grad
        seen.append((n, t, x.clone()))
        x.zero_()

    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    grid = [*GRID.tolist(), 0.0]
    states = call(x_T=x_T, adjoint=adjoint, callback=callback, trajectory=True, grid=grid)
    states.sum().backward()
    assert [n for n, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [t for _, t, _ in seen] == grid[1:]
    assert all(torch.equal(x, states[n]) for n, _, x in seen)


def test_progress_bar_and_its_absence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    call()
    assert capsys.readouterr() == ("", "")
    call(progress=True)
    assert "5/5" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"pip install 'sdeadjoint\[progress\]'"):
        call(progress=True)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_last_step_to_sigma_zero_is_the_predicted_data(kind: str, eta: float, adjoint: sa.Adjoint) -> None:
    """Whatever the solver, kind and noise: x_N = x_0(x_{N-1}, t_{N-1}), and gradients pass through it."""
    denoiser = sa.Denoiser(lambda x, t: torch.sin(x * (1 + t[:, None])), SCHEDULE, "sample")
    noise = sa.BrownianPath(seed=0) if eta else None
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    for solver in (sa.Heun(), sa.DPMSolverPP2M()):
        states = call(
            denoiser=denoiser, frame=sa.Frame(SCHEDULE, eta, kind), grid=[1.0, 0.6, 0.2, 0.0], solver=solver,
            noise=noise, trajectory=True, adjoint=adjoint, x_T=x_T,
        )  # fmt: skip
        assert torch.equal(states[3], denoiser(states[2], 0.2))
        (grad,) = torch.autograd.grad(states[3].sum(), x_T)
        assert grad.abs().min() > 0


@pytest.mark.parametrize("kind", ["data", "flow"])
def test_from_alpha_zero_with_noise_x_T_enters_through_the_first_evaluation_only(kind: str) -> None:
    """y_T = x_T / w = 0 where w is infinite; the first drift is still evaluated at x_T itself."""
    schedule = sa.RectifiedFlow()
    frame, grid = sa.Frame(schedule, eta=1.0, kind=kind), [1.0, 0.7, 0.3]
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), schedule, "flow_prediction")
    noise = sa.BrownianPath(seed=2)
    clock, weight = frame.clock(torch.tensor(grid, dtype=DOUBLE)), frame.weight(torch.tensor(grid, dtype=DOUBLE))
    dB = noise.increments(frame, grid, x_T)
    y = denoiser(x_T, 1.0, prediction=frame.prediction) * (clock[1] - clock[0]) + dB[0]
    y = y + denoiser(weight[1] * y, 0.7, prediction=frame.prediction) * (clock[2] - clock[1]) + dB[1]
    (want,) = torch.autograd.grad((weight[2] * y).sum(), x_T)
    for adjoint in ADJOINTS:
        out = call(denoiser=denoiser, frame=frame, grid=grid, solver=sa.Euler(), noise=noise, adjoint=adjoint, x_T=x_T)
        assert torch.allclose(out, weight[2] * y, rtol=1e-12, atol=0)
        assert torch.allclose(torch.autograd.grad(out.sum(), x_T)[0], want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("grid", [[1.0, 0.5, 0.2], [1.0, 0.0]], ids=["from alpha = 0", "one step"])
def test_networks_that_change_their_argument_leave_x_T_alone(adjoint: sa.Adjoint, grid: list[float]) -> None:
    """Where the weight is infinite, and where the only step is the projection, the network is given x_T itself."""
    schedule, x_T = sa.RectifiedFlow(), torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4)
    common: dict[str, Any] = {
        "x_T": x_T, "frame": sa.Frame(schedule, eta=1.0), "grid": grid, "noise": sa.BrownianPath(seed=2), "adjoint": adjoint,
    }  # fmt: skip
    want = call(denoiser=sa.Denoiser(lambda x, t: torch.sin(0.5 * x), schedule, "sample"), **common)
    before = x_T.clone()
    got = call(denoiser=sa.Denoiser(lambda x, t: x.mul_(0.5).sin_(), schedule, "sample"), **common)
    assert torch.equal(x_T, before)
    assert torch.equal(got, want)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize(
    "grid", [GRID.tolist(), [1.0, 0.5, 0.0], [1.0, 0.0]], ids=["plain", "to sigma = 0", "one step"]
)
def test_the_sample_may_be_changed_in_place(adjoint: sa.Adjoint, grid: list[float]) -> None:
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    out = call(denoiser=network(lambda x, t: torch.sin(x), "sample"), x_T=x_T, grid=grid, adjoint=adjoint)
    (want,) = torch.autograd.grad(2 * out.sum(), x_T, retain_graph=True)
    out.mul_(2)
    (got,) = torch.autograd.grad(out.sum(), x_T)
    assert torch.equal(got, want)


@pytest.mark.parametrize("solver", [sa.Heun(), sa.SRA1()], ids=repr)
def test_an_ode_may_be_given_increments_that_are_all_zero(solver: sa.Solver) -> None:
    """And no Levy areas, whatever the solver: there is no noise to have any."""
    assert torch.equal(call(solver=solver, noise=sa.FixedNoise(STILL)), call(solver=solver))
    assert torch.equal(call(solver=solver, noise=sa.BrownianPath(0)), call(solver=solver))


def test_noise_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match="increments must be finite"):
        sa.FixedNoise(STILL * float("nan"))


def test_seed_lists_make_samples_independent_of_their_batch_mates() -> None:
    x_T = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4)
    for refinable in (False, True):
        together = call(x_T=x_T, frame=SDE, noise=sa.BrownianPath([9, 4, 7], refinable=refinable))
        for i, seed in enumerate((9, 4, 7)):
            alone = call(x_T=x_T[i : i + 1], frame=SDE, noise=sa.BrownianPath([seed], refinable=refinable))
            # Elementwise networks: the batch changes nothing but vectorised kernels' last bits.
            assert torch.allclose(together[i], alone[0], rtol=1e-14, atol=1e-14)


def test_nothing_depends_on_or_changes_global_generators() -> None:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        x_T = torch.ones(2, 4, dtype=DOUBLE, requires_grad=True)
        out = call(frame=SDE, noise=sa.BrownianPath(seed=0), x_T=x_T)
        out.sum().backward()
        assert torch.equal(before, torch.get_rng_state())
        results.append((out, x_T.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_default_device_and_dtype_of_the_user_do_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    want = call(frame=SDE, noise=sa.BrownianPath(seed=0, refinable=True))
    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        got = call(
            frame=SDE, noise=sa.BrownianPath(seed=0, refinable=True), grid=GRID,
            x_T=torch.linspace(-1, 1, 8, dtype=DOUBLE, device="cpu").reshape(2, 4),
        )  # fmt: skip
        sa.uniform_time(SCHEDULE, 3), sa.karras(SCHEDULE, 3), sa.uniform_logsnr(SCHEDULE, 3)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(got, want)


def test_objects_copy_pickle_and_print_as_the_call_that_makes_them() -> None:
    namespace = {name: getattr(sa, name) for name in sa.__all__}
    objects = [
        SCHEDULE, sa.VPCosine(), sa.VE(), sa.RectifiedFlow(), sa.Tabulated([0.9, 0.5, 0.1]), sa.Frame(SCHEDULE, 0.5, "noise"),
        sa.Euler(), sa.AdamsBashforth(3, "clock"), sa.SRA1(), sa.Checkpoint(3), sa.Direct(), sa.BrownianPath([1, 2], refinable=True),
        sa.Guidance(2.0, {"label": 1}),
    ]  # fmt: skip
    for thing in objects:
        assert eval(repr(thing), {"torch": torch, **namespace}) == thing
        assert copy.deepcopy(thing) == thing
        assert pickle.loads(pickle.dumps(thing)) == thing
    assert repr(sa.Denoiser(nn.Identity(), SCHEDULE)).startswith("Denoiser(Identity, VPLinear(beta_min=0.1")


def test_the_ode_has_neither_increments_nor_levy_areas() -> None:
    seen: list[tuple[object, object]] = []

    class Looking(sa.Solver):
        claims = sa.Claims(ode=1, strong=1.0, evaluations=1)

        def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
            seen.append((interval.dB, interval.H))
            return y + interval.ds * drift(interval.s0, y), state

    schedule = sa.VPLinear()
    grid = sa.uniform_logsnr(schedule, 3)
    denoiser = sa.Denoiser(lambda x, t: x, schedule, "sample")
    sa.sample(denoiser, torch.ones(1, dtype=torch.float64), frame=sa.Frame(schedule), grid=grid, solver=Looking())
    assert seen == [(0.0, 0.0)] * 3


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize(
    "adjoint", [sa.Direct(), sa.Checkpoint(1), *(sa.ContinuousAdjoint(sa.Heun(), s) for s in ("recorded", "reconstructed"))],
    ids=repr,
)  # fmt: skip
def test_the_network_sees_the_times_of_the_grid_bit_by_bit(kind: str, adjoint: sa.Adjoint) -> None:
    # Models with a table of times look them up: a time that went through a clock and back may be another entry.
    seen: set[float] = set()

    def recording(x: Tensor, t: Tensor) -> Tensor:
        seen.update(t.tolist())
        return torch.tanh(x)

    grid = sa.uniform_time(SCHEDULE, 37)
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    denoiser, frame = sa.Denoiser(recording, SCHEDULE, time_dtype=DOUBLE), sa.Frame(SCHEDULE, kind=kind)
    sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=sa.Heun(), adjoint=adjoint).sum().backward()
    assert seen == set(grid.tolist())

"""``sa.solve`` and ``sa.noise_clock``: what is refused at the door, and in which words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .written_out import CLOCK, DOUBLE, numbers

Y = numbers(2, 3)
NEST = {"x": Y, "v": 2 * Y}
LEAF = torch.zeros(5, 2, 3, dtype=DOUBLE, requires_grad=True)
STILL = torch.zeros(5, 2, 3, dtype=DOUBLE)
Refused = tuple[dict[str, Any], type[Exception], str]


def call(**changes: Any) -> Any:
    arguments = {"drift": lambda s, y: y, "y0": Y, "clock": CLOCK, "solver": sa.Heun()} | changes
    return sa.solve(arguments.pop("drift"), arguments.pop("y0"), **arguments)


def of_nests(**changes: Any) -> Any:
    return call(**{"y0": NEST} | changes)


DOOR: dict[str, Refused] = {
    "no clock": ({"clock": None}, TypeError, "clock: got None; pass N \\+ 1 numbers for N steps"),
    "clock of one": ({"clock": [0.0]}, ValueError, r"clock: got shape \(1,\); pass one number per node, at least two"),
    "clock a matrix": ({"clock": CLOCK[None]}, ValueError, r"clock: got shape \(1, 6\)"),
    "clock repeats": ({"clock": [0, 0.5, 0.5, 1]}, ValueError, "clock: .* but step 1 of 3 goes from 0.5 to 0.5"),
    "clock turns": ({"clock": [0, 0.5, 0.2]}, ValueError, "clock: .* but step 1 of 2 goes from 0.5 to 0.2"),
    "clock with NaN": ({"clock": [0, math.nan]}, ValueError, "clock: holds NaN or infinite numbers; pass finite ones"),
    "infinite clock": ({"clock": [0, math.inf]}, ValueError, "clock: holds NaN or infinite numbers"),
    "complex clock": ({"clock": CLOCK + 0j}, TypeError, "clock: got Tensor; .*complex128"),
    "clock of flags": ({"clock": CLOCK > 0}, TypeError, "clock: got Tensor; .*bool"),
    "clock a text": ({"clock": "01"}, TypeError, "clock: got str; pass a 1-D tensor"),
    "clock a mapping": ({"clock": {0: 1}}, TypeError, "clock: got dict; pass a 1-D tensor"),
    "clock with gradient": ({"clock": LEAF[0, 0]}, ValueError, r"clock: requires a gradient.*pass clock\.detach\(\)"),
    "clock of gradients": ({"clock": [LEAF[0, 0, 0], 1.0]}, ValueError, "clock: requires a gradient"),
    "no drift": ({"drift": None}, TypeError, r"drift: got None; pass a function drift\(s, y, \*\*cond\)"),
    "drift a class": ({"drift": nn.Linear}, TypeError, "drift: got the class Linear"),
    "y0 a number": ({"y0": 1.0}, TypeError, "y0: got float; pass a tensor, or a dict, list or tuple of tensors"),
    "y0 empty": ({"y0": {}}, TypeError, "y0: got a dict without tensors; pass at least one"),
    "y0 holds a number": ({"y0": NEST | {"n": 3}}, TypeError, "y0: holds int; pass tensors only, and everything else"),
    "y0 holds None": ({"y0": [Y, None]}, TypeError, "y0: holds None; pass tensors only"),
    "y0 of integers": ({"y0": torch.ones(2, dtype=torch.int64)}, TypeError, "y0: got dtype torch.int64; pass float64"),
    "y0 complex": ({"y0": Y + 0j}, TypeError, "y0: got dtype torch.complex128"),
    "y0 half": ({"y0": Y.half()}, TypeError, "y0: got dtype torch.float16"),
    "y0 mixed": ({"y0": [Y, Y.float()]}, TypeError, "y0: its tensors have the dtypes torch.float32, torch.float64"),
    "y0 on two devices": ({"y0": [Y, Y.to("meta")]}, TypeError, "y0: its tensors have the devices cpu, meta"),
    "y0 on meta": ({"y0": Y.to("meta")}, ValueError, "y0: it is on meta"),
    "y0 without numbers": ({"y0": Y[:0]}, ValueError, r"y0: got a tensor of shape \(0, 3\); pass at least one"),
    "y0 with NaN": ({"y0": Y / 0 * 0}, ValueError, "y0: it holds NaN or infinite values; pass a finite state"),
    "y0 sparse": ({"y0": Y.to_sparse()}, TypeError, "y0: got layout torch.sparse_coo; pass a dense tensor"),
    "cond no mapping": ({"cond": [Y]}, TypeError, "cond: got list; pass a mapping from the drift's keyword names"),
    "cond by number": ({"cond": {1: Y}}, TypeError, "cond: got the key 1; pass the names of the drift's keyword"),
    "Scheduled": ({"cond": {"x": sa.Scheduled(Y)}}, ValueError, "cond: Scheduled holds 2 values, but .* has 5 steps"),
    "time_dtype": ({"time_dtype": "float32"}, TypeError, "time_dtype: got 'float32'; pass a floating dtype"),
    "integer time": ({"time_dtype": torch.int32}, TypeError, "time_dtype: got torch.int32; pass a floating dtype"),
    "solver class": ({"solver": sa.Heun}, TypeError, r"solver: got the class Heun; pass a solver such as Heun\(\)"),
    "adjoint class": ({"adjoint": sa.Direct}, TypeError, "adjoint: got the class Direct; pass an adjoint"),
    "callback": ({"callback": 3}, TypeError, r"callback: got int; pass a function callback\(n, t, x\)"),
    "after_step": ({"after_step": 3}, TypeError, r"after_step: got int; pass a function after_step\(n, t, x\)"),
    "clock a number": ({"clock": 10}, ValueError, "clock: got the number 10; pass N \\+ 1 numbers for N steps"),
    "progress": ({"progress": "yes"}, TypeError, "progress: got 'yes'; pass True or False"),
    "trajectory": ({"trajectory": 1}, TypeError, "trajectory: got 1; pass True or False"),
    "noise missing": ({"noise_clock": CLOCK}, ValueError, r"noise: got None, but noise_clock is given; pass noise=Brow"),
    "noise a number": ({"noise": 3}, TypeError, r"noise: got int; pass BrownianPath\(seed=0\), FixedNoise"),
    "noise a generator": ({"noise": torch.Generator()}, TypeError, r"noise: got Generator; pass BrownianPath\(seed=0\), "),
    "noise a list": ({"noise": [sa.BrownianPath(0)]}, ValueError, r"noise: got \[BrownianPath\] for a state \(2, 3\)"),
    "noise of other steps": ({"noise": sa.FixedNoise(STILL[1:])}, ValueError, r"increments has shape \(4, 2, 3\)"),
    "noise of other shape": ({"noise": sa.FixedNoise(STILL[..., 1:])}, ValueError, r"ask for \(5, 2, 3\)"),
    "seeds": ({"noise": sa.BrownianPath([1, 2, 3])}, ValueError, r"seed lists 3 paths, but the state has shape \(2, 3\)"),
    "noise where the clock stands still": (
        {"noise": sa.FixedNoise(STILL + 1), "noise_clock": [0, 1, 1, 2, 3, 4]}, ValueError, r"must be zero in steps \[1\]",
    ),
    "noise_clock short": (
        {"noise": sa.BrownianPath(0), "noise_clock": CLOCK[1:]}, ValueError, "noise_clock: got 5 values, but the clock has 6",
    ),
    "noise_clock falls": (
        {"noise": sa.BrownianPath(0), "noise_clock": CLOCK.flip(0)}, ValueError, "noise_clock: must not fall",
    ),
    "no Levy areas": (
        {"noise": sa.FixedNoise(STILL), "solver": sa.SRA1()}, ValueError, "the solver asks for space-time Levy areas",
    ),
    "log of negative clocks": (
        {"clock": [-2.0, -1.0, 1.0], "solver": sa.AdamsBashforth(2)}, ValueError, r"log s.*pass .*AdamsBashforth\(2, 'clock'\)",
    ),
    "log of zero": (
        {"clock": [1.0, 0.5, 0.0], "solver": sa.DPMSolverPP2M()}, ValueError, "step from s = 0.5 to 0.0 has no log",
    ),
}  # fmt: skip

NESTS: dict[str, Refused] = {
    "noise of another nest": ({"noise": {"x": None}}, ValueError, r"noise: got \{'x': None\} for a state \{'x': \(2"),
    "a part that is no noise": ({"noise": {"x": None, "v": 3}}, TypeError, r"noise: got int; pass BrownianPath\(seed=0\), "),
    "noise in no part": (
        {"noise": {"x": None, "v": None}, "noise_clock": CLOCK}, ValueError, "noise: got None, but noise_clock is given",
    ),
    "fixed noise for all": ({"noise": sa.FixedNoise(STILL)}, ValueError, "FixedNoise is made of tensors itself; pass a nest"),
    "shifts for all": (
        {"noise": sa.ShiftedNoise(sa.BrownianPath(0), torch.zeros(5, 2, 6, dtype=DOUBLE))}, ValueError, "ShiftedNoise is made",
    ),
    "one path twice": ({"noise": {"x": sa.BrownianPath(3), "v": sa.BrownianPath(3)}}, ValueError, "have the seed 3"),
    "one path of many": (
        {"noise": {"x": sa.BrownianPath([1, 2]), "v": sa.BrownianPath([3, 2])}}, ValueError, "two parts of y0 have the seed 2",
    ),
    "one path shifted": (
        {"noise": {"x": sa.BrownianPath(3), "v": sa.ShiftedNoise(sa.BrownianPath(3), STILL)}}, ValueError, "have the seed 3",
    ),
    "seeds without a batch": (
        {"y0": (Y, numbers(3)), "noise": sa.BrownianPath([0] * 9)}, ValueError,
        r"noise: seed lists 9 paths, one per sample, but .* no first dimension in common: \[\(2, 3\), \(3,\)\]",
    ),
    "another structure": ({"drift": lambda s, y: [y["x"], y["v"]]}, ValueError, r"drift: returned \[\(2, 3\), \(2, 3\)\] in"),
    "a name missing": ({"drift": lambda s, y: {"x": y["x"]}}, ValueError, r"returned \{'x': \(2, 3\)\} in the place of"),
    "a name too many": ({"drift": lambda s, y: y | {"z": Y}}, ValueError, r"'z': \(2, 3\)\} in the place of \{'x': \(2, 3"),
    "a part of another shape": ({"drift": lambda s, y: y | {"v": Y[0]}}, ValueError, r"'v': \(3,\)\} in the place of"),
    "a part that is no tensor": ({"drift": lambda s, y: y | {"v": None}}, ValueError, r"'v': None\} in the place of"),
    "a part of integers": ({"drift": lambda s, y: y | {"v": Y.long()}}, TypeError, "drift: returned dtype torch.int64"),
    "after_step in other names": (
        {"after_step": lambda n, s, y: {"x": y["x"], "z": y["v"]}}, ValueError, r"\{'x': \(2, 3\), 'z': \(2, 3\)\} in the place of",
    ),
}  # fmt: skip

DRIFTS: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "nothing": (lambda s, y: None, ValueError, r"drift: returned None in the place of \(2, 3\); return a derivative"),
    "a tuple": (lambda s, y: (y,), ValueError, r"drift: returned \[\(2, 3\)\] in the place of \(2, 3\)"),
    "a number": (lambda s, y: 1.0, ValueError, r"drift: returned float in the place of \(2, 3\)"),
    "a row": (lambda s, y: y[:1], ValueError, r"drift: returned \(1, 3\) in the place of \(2, 3\)"),
    "integers": (lambda s, y: y.long(), TypeError, "drift: returned dtype torch.int64; it must return real floating"),
    "complex numbers": (lambda s, y: y + 0j, TypeError, "drift: returned dtype torch.complex128"),
    "NaN": (lambda s, y: y * math.nan, ValueError, r"drift: what it returned is not finite .* at step 0 of 5, s=0\.0"),
    "inf later": (lambda s, y: y / (s < 0.5), ValueError, "drift: what it returned is not finite .* at step 2 of 5, s=0.6"),
    "explosions": (lambda s, y: y.exp().exp() * 1e300, ValueError, "is not finite"),
    "nothing at all": (lambda s, y: 1 / 0, ZeroDivisionError, "division by zero"),
}  # fmt: skip


@pytest.mark.parametrize("case", DOOR.values(), ids=DOOR.keys())
def test_refused_at_the_door(case: Refused) -> None:
    changes, kind, says = case
    with pytest.raises(kind, match=says):
        call(**changes)


@pytest.mark.parametrize("case", NESTS.values(), ids=NESTS.keys())
def test_refused_of_nests(case: Refused) -> None:
    changes, kind, says = case
    with pytest.raises(kind, match=says):
        of_nests(**changes)


@pytest.mark.parametrize("case", DRIFTS.values(), ids=DRIFTS.keys())
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint()], ids=repr)
def test_what_a_drift_returns(case: Any, adjoint: sa.Adjoint) -> None:
    drift, kind, says = case
    with pytest.raises(kind, match=says) as caught:
        call(drift=drift, adjoint=adjoint)
    where = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(r"step \d of 5, (from t|s)=0\.", where)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_asked_for_but_globally_off(mode: Any) -> None:
    for name, changes in (
        ("y0", {"y0": {"x": LEAF[0].detach().requires_grad_(), "v": Y}}),
        ("cond", {"cond": {"z": [LEAF]}, "drift": lambda s, y, z: y}),
        ("noise", {"y0": NEST, "noise": {"x": sa.FixedNoise(LEAF), "v": None}}),
    ):
        with (
            mode(),
            pytest.raises(
                RuntimeError, match=f"{name} requires a gradient, but gradients are globally off"
            ),
        ):
            call(**changes)
    with mode():
        assert not call().requires_grad


G: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "a number": (0.3, [0, 1], TypeError, "g: got float; pass a function of the clock such as lambda s: 0.3"),
    "no clock": (lambda s: 1.0, 3, ValueError, r"clock: got the number 3; pass N \+ 1"),
    "a clock that turns": (lambda s: 1.0, [0, 1, 0.5], ValueError, "clock: must strictly rise or strictly fall"),
    "a gradient": (lambda s: LEAF[0, 0, 0] + 1, [0, 1], ValueError, "g: returned a tensor that requires a gradient"),
    "a vector": (lambda s: torch.ones(2), [0, 1], ValueError, r"g: returned Tensor at s=0\.5; return one real number"),
    "a complex number": (lambda s: 1j, [0, 1], ValueError, "g: returned complex at s=0.5; return one real number"),
    "NaN": (lambda s: math.nan, [0, 1], ValueError, "g: the integral of its square from 0.0 to 1.0 is found to be nan"),
    "a pole at the end": (lambda s: 1 / s, [0, 1], ValueError, "g: the integral of its square .* stay off poles"),
    "a pole inside": (lambda s: 1 / (s - 0.3), [1, 0], ValueError, "g: the integral of its square from 1.0 to 0.0"),
    "a pole of order 1": (lambda s: abs(s - 0.3) ** -0.5, [0, 1], ValueError, "g: the integral of its square"),
    "float32": (lambda s: torch.tensor(s).float().exp(), [0, 1], ValueError, "smooth g in float64"),
}  # fmt: skip


@pytest.mark.parametrize("case", G.values(), ids=G.keys())
def test_diffusion_coefficients_that_have_no_clock(case: Any) -> None:
    g, clock, kind, says = case
    with pytest.raises(kind, match=says):
        sa.noise_clock(g, clock)


# ---------------------------------------------------------------- equations in place of drifts


def equation(**changes: Any) -> sa.Equation:
    from sdeadjoint.field import Field

    options = {"cond": {"x": numbers(3)}, "noise_clock": None, "time_dtype": DOUBLE} | changes
    return Field.create(lambda s, y, x: -y * x, Y, CLOCK, **options)


def test_an_equation_goes_in_as_a_drift_does() -> None:
    x = numbers(3).requires_grad_()
    found = []
    for drift, options in (
        (equation(cond={"x": x}, noise_clock=CLOCK), {}),
        (lambda s, y, x: -y * x, {"clock": CLOCK, "cond": {"x": x}}),
    ):
        out = sa.solve(drift, Y, solver=sa.Heun(), noise=sa.BrownianPath(0), **options)
        found.append((out, *torch.autograd.grad(out.sum(), x)))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", ["clock", "noise_clock", "cond"])
def test_an_equation_has_its_own_arguments(name: str) -> None:
    given: dict[str, Any] = {name: {} if name == "cond" else CLOCK}
    with pytest.raises(ValueError, match=f"{name}: the equation has its own; leave it out"):
        sa.solve(equation(), Y, solver=sa.Heun(), **given)


def test_an_equation_with_a_noise_clock_asks_for_noise() -> None:
    with pytest.raises(
        ValueError, match="noise: got None, but the equation has a noise clock; pass noise=Brownian"
    ):
        sa.solve(equation(noise_clock=CLOCK), Y, solver=sa.Heun())


def test_errors_in_a_drift_keep_their_type() -> None:
    def drift(s: Tensor, y: Tensor) -> Tensor:
        if s > 0.5:
            raise KeyError("missing")
        return y

    with pytest.raises(KeyError) as caught:
        call(drift=drift)
    assert "(step 2 of 5, from t=0.4 to t=0.6" in caught.value.__notes__[0]

"""``check_equation``: right equations pass, and each planted fault is found by a sentence of its own."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.field import Field
from sdeadjoint.testing import ContractError, check_equation

from .wrong_equations import DOUBLE, pull

X = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)


def field(y0: Any, drift: Any, **changes: Any) -> Field:
    options = {
        "cond": {"z": torch.ones(3, dtype=DOUBLE)},
        "noise_clock": None,
        "time_dtype": DOUBLE,
    }
    return Field.create(drift, y0, [0.0, 0.3, 0.5, 1.0], **(options | changes))


def test_a_right_equation_passes() -> None:
    check_equation(pull())
    check_equation(pull(noise_clock=None), x=X)
    falling = {"clocks": (0.4, 0.3, 0.1), "times": (5.4, 5.3, 5.1), "weights": (1.4, 1.3, 1.1)}
    check_equation(pull(**falling, noise_clock=None), x=X)


def test_fields_pass() -> None:
    check_equation(field(X, lambda s, y, z: torch.tanh(y * z) * s), x=X)
    check_equation(field(X.float(), lambda s, y, z: torch.sin(y) * s), x=X.float())
    nest = {"x": X, "v": (X[:, :1], X[:, 0])}

    def drift(s: Tensor, y: Any, z: Tensor) -> Any:
        return {"v": (y["x"][:, :1].sin(), y["v"][1]), "x": y["v"][0] * z}

    check_equation(field(nest, drift, noise_clock=[0.0, 0.0, 1.0, 1.5]), x=nest)
    scheduled = {"z": sa.Scheduled(torch.ones(3, 3, dtype=DOUBLE))}
    check_equation(field(X, lambda s, y, z: torch.tanh(y * z), cond=scheduled), x=X)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_diffusions_pass(kind: str, eta: float) -> None:
    schedule = sa.VPLinear()
    network = nn.Linear(3, 3).double()
    denoiser = sa.Denoiser(lambda x, t, z: torch.tanh(network(x) + z), schedule)
    grid = sa.uniform_logsnr(schedule, 4, t_max=0.9, t_min=0.05)
    cond = {"z": torch.ones(3, dtype=DOUBLE)}
    check_equation(Diffusion.create(denoiser, sa.Frame(schedule, eta, kind), grid, cond), x=X)


def test_singular_diffusions_pass() -> None:
    """alpha = 0 at the start, where y is 0 with eta > 0, and a last step to sigma = 0."""
    schedule = sa.RectifiedFlow()
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), schedule, "flow_prediction")
    check_equation(
        Diffusion.create(denoiser, sa.Frame(schedule, 1.0), [1.0, 0.6, 0.2, 0.0], {}), x=X
    )
    check_equation(Diffusion.create(denoiser, sa.Frame(schedule), [0.5, 0.0], {}), x=X)


FAULTS = {
    "hides the start": ("start", "tensors does not hold the tensors of start"),
    "copies the start": ("start", r"starting_at\(x\)\.start is another object than x"),
    "starts in place": ("start", "starting_at changed the equation that it was called on"),
    "rounds its times": ("tables", r"at\(\d, clocks\[\d\]\) is .*bit by bit"),
    "forgets the weight": ("state", r"leave\(\d, enter\(x, \d\)\) differs from x by"),
    "narrows": ("state", r"enter\(x, 0\) is \(torch\.float32"),
    "enters by sharing": ("state", r"y_0 shares memory with x or with leave\(0, y\)"),
    "leaves by sharing": ("state", "y_0 shares memory"),
    "enters by a square": ("linear", r"enter\(2 x - z / 2, \d\) and .* differ by"),
    "enters with an offset": ("linear", r"enter\(2 x - z / 2, \d\)"),
    "outward multiplies": ("cotangents", r"<outward\(\d, a\), x> is .* equal for dual maps"),
    "inward divides": ("cotangents", r"<inward\(\d, b\), y> is .* equal for dual maps"),
    "widens": ("kind", "has the dtype torch.float32, and y torch.float64"),
    "flattens": ("kind", r"has the shape torch\.Size\(\[6\]\), and y torch\.Size\(\[2, 3\]\)"),
    "returns a number": ("kind", r"drift\(0\)\(s, y\) is float; it is a tensor like y"),
    "has a pole": ("kind", "is not finite"),
    "edits y": ("purity", "changed y in place"),
    "edits the target": ("purity", "changed a tensor of equation.tensors in place"),
    "counts": ("purity", r"drift\(0\)\(0\.0, y\) changed by .* between two calls"),
    "reads strides": ("purity", "of a y that is not contiguous is off by"),
    "draws": ("surroundings", "the drift changed the global generator of torch"),
    "detaches under no_grad": ("surroundings", r"under torch\.no_grad\(\) is off by"),
    "keeps the target": ("tensors", r"on\(tensors\)\.tensors are not the tensors that it was given"),
    "copies the rate": ("tensors", r"on\(tensors\)\.tensors are not the tensors that it was given"),
    "moves the clock": ("tensors", r"on\(tensors\) has other tables"),
    "keeps the old target elsewhere": ("tensors", r"still depends on the old tensor of shape \[\(3,\)\]"),
    "detaches the target": ("gradient", "along the tensor 1 of equation.tensors is 0 by autograd"),
    "detaches y": ("gradient", "along the state is"),
    "doubles a gradient": ("gradient", "along the tensor 2 of equation.tensors is"),
    "detaches the parameters": ("gradient", "by autograd and .* by differences"),
    "noise of one sample": ("noise", "the increment of step 0 is"),
    "recasts to other clocks": ("recast", r"recast on 4 nodes, drift\(0\)\(0\.0, y\) is off by"),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "found"), FAULTS.items(), ids=FAULTS.keys())
def test_faults_are_found(fault: str, found: tuple[str, str]) -> None:
    item, says = found
    with pytest.raises(ContractError) as caught:
        check_equation(pull(fault), x=X.clone(), only=item)
    assert f'item "{item}" is broken' in str(caught.value)
    assert re.search(says, str(caught.value))


TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "clocks that turn": ({"clocks": (0.0, 0.3, 0.1, 0.4)}, "clocks is .* it strictly rises or falls"),
    "times that repeat": ({"times": (5.0, 5.1, 5.1, 5.4)}, "times is .* it strictly rises or falls"),
    "an infinite clock": ({"clocks": (0.0, 0.1, 0.3, float("inf"))}, "clocks is .* and is finite"),
    "tensors": ({"clocks": tuple(torch.tensor([0.0, 0.1, 0.3, 0.4]))}, "clocks is .* it is a tuple of Python floats"),
    "a list": ({"weights": [1.0, 1.1, 1.3, 1.4]}, "weights is .* it is a tuple of Python floats"),
    "too few": ({"weights": (1.0, 1.1)}, "weights has 2 values, and clocks 4; one per node"),
    "no step": ({"clocks": (0.0,), "times": (5.0,), "weights": (1.0,)}, "one per node, two at least"),
    "a weight of 0": ({"weights": (1.0, 0.0, 1.3, 1.4)}, "weights is .* neither 0 nor inf"),
    "a first weight of 0": ({"weights": (0.0, 1.1, 1.3, 1.4)}, r"weights\[0\] is 0"),
    "NaN": ({"weights": (1.0, float("nan"), 1.3, 1.4)}, "weights has NaN"),
    "a falling noise clock": ({"noise_clock": (0.0, 0.2, 0.1, 0.4)}, "noise_clock is .* does not fall"),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLES.values(), ids=TABLES.keys())
def test_faults_of_tables_are_found(case: tuple[dict[str, Any], str]) -> None:
    changes, says = case
    with pytest.raises(ContractError) as caught:
        check_equation(pull(**changes), x=X, only="tables")
    assert re.search(says, str(caught.value))


def test_a_solve_that_is_not_what_is_recomputed_is_found() -> None:
    with pytest.raises(ContractError, match="it raised RuntimeError: network: recomputing step"):
        check_equation(pull("counts"), x=X, only="solve")


def test_parameters_are_put_back_and_generators_left_alone() -> None:
    equation = pull()
    before = [parameter.detach().clone() for parameter in equation.network.parameters()]
    state = torch.get_rng_state()
    for item in ("gradient", "surroundings", "solve"):
        check_equation(equation, only=item)
    assert all(map(torch.equal, before, equation.network.parameters()))
    assert all(parameter.grad is None for parameter in equation.network.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_what_a_failure_says_can_be_run() -> None:
    with pytest.raises(ContractError) as caught:
        check_equation(pull("counts"), x=X, only="purity")
    shown = "print(Point(n=0, place=0.0, seed=0).drift(equation))"
    assert f"from sdeadjoint.testing.points import Point\n    {shown}" in str(caught.value)
    exec(f"from sdeadjoint.testing.points import Point\n{shown}", {"equation": pull()})


@pytest.mark.parametrize(
    ("equation", "x", "says"),
    [
        (lambda s, y: y, X, "equation: got function; pass an object of a subclass of sdeadjoint.Equation"),
        (sa.Equation, X, "equation: got the class Equation"),
        (pull(), X.long(), "x: got torch.int64; pass an initial state of float64 or float32"),
        (field(X, lambda s, y, z: y), None, "x: got None; pass an initial state"),
    ],
    ids=["function", "class", "integers", "no start"],
)  # fmt: skip
def test_other_things_are_refused(equation: Any, x: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        check_equation(equation, x)
    with pytest.raises(
        ValueError, match="only, skip: got 'order'; pass names from 'tables', 'start'"
    ):
        check_equation(pull(), only="order")

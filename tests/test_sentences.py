"""What errors and reprs say: the argument that is meant, a remedy that helps, and no thousand numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

DOUBLE = torch.float64
SCHEDULE = sa.VPLinear()
TABLE = torch.linspace(0.9999, 0.005, 1000, dtype=DOUBLE)
X = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)
GRID = sa.uniform_logsnr(SCHEDULE, 3)


def network(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
    return 0.3 * x


def call(denoiser: sa.Denoiser | None = None, x_T: Tensor = X, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"frame": sa.Frame(SCHEDULE), "grid": GRID, "solver": sa.Euler()} | changes
    return sa.sample(denoiser or sa.Denoiser(network, SCHEDULE), x_T, **arguments)


def guided(unconditional: Any, cond: Any, *, batched: bool = True) -> Tensor:
    guidance = sa.Guidance(2.0, {"c": unconditional}, batched=batched)
    return call(sa.Denoiser(network, SCHEDULE, guidance=guidance), cond={"c": cond})


def twice(n: int, t: float, x: Tensor) -> Any:
    return {"latents": 2 * x}


WHOLE, PART = torch.ones(2, 3, dtype=DOUBLE), torch.ones(2, 3)
SAID: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "complex x_T": (lambda: call(x_T=X + 0j), TypeError, "x_T: .*states are real; pass torch.view_as_real"),
    "complex y0": (
        lambda: sa.solve(lambda s, y: y, X + 0j, clock=[0, 1], solver=sa.Euler()), TypeError, "y0: .*are real; pass",
    ),
    "last time twice": (
        lambda: call(grid=[1.0, 0.5, 0.1, 0.1]), ValueError, r"leave the last one out: pass grid\[:-1\]$",
    ),
    "a time twice": (lambda: call(grid=[1.0, 0.5, 0.5, 0.1]), ValueError, "pass each time once$"),
    "rising times": (lambda: call(grid=GRID.flip(0)), ValueError, r"pass grid\.flip\(0\)"),
    "a state from a callback": (lambda: call(callback=twice), TypeError, "callback: returned dict .*after_step"),
    "a tensor from a callback": (
        lambda: call(callback=lambda n, t, x: 0 * x), TypeError, "callback: returned Tensor .*after_step",
    ),
    "dtypes of guidance": (
        lambda: guided(PART, WHOLE), TypeError, r"guidance: unconditional\['c'\] is of torch.float32, but cond\['c'\]",
    ),
    "arrays in guidance": (lambda: guided(np.ones((2, 3)), WHOLE), TypeError, r"cond\['c'\]: .*from_numpy"),
    "arrays in both": (lambda: guided(*[np.ones((2, 3))] * 2), TypeError, r"cond\['c'\]: got ndarray, .*from_numpy"),
    "another schedule": (
        lambda: call(sa.Denoiser(network, sa.Tabulated(TABLE)), frame=sa.Frame(sa.Tabulated(TABLE / 2))), ValueError,
        "schedule",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID.values(), ids=SAID.keys())
def test_errors_say_what_is_meant(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    make, kind, said = case
    with pytest.raises(kind, match=said) as caught:
        make()
    assert len(str(caught.value)) < 500


def test_callbacks_may_return_what_they_like_but_a_state() -> None:
    seen: dict[int, Tensor] = {}
    for callback in (lambda n, t, x: seen.setdefault(n, x), lambda n, t, x: x.norm(), lambda n, t, x: True):
        call(callback=callback)
    assert len(seen) == 3


LONG = torch.zeros(1000, dtype=DOUBLE)
OBJECTS: dict[str, Any] = {
    "a table": sa.Tabulated(TABLE),
    "a frame": sa.Frame(sa.Tabulated(TABLE)),
    "a denoiser": sa.Denoiser(network, sa.Tabulated(TABLE), guidance=sa.Guidance(2.0, {"c": LONG})),
    "fixed noise": sa.FixedNoise(LONG[:, None, None]),
    "standard normals": sa.NormalNoise(LONG[:, None, None]),
    "a path for each of a thousand samples": sa.BrownianPath(seed=range(1000)),
    "conditioning of each step": sa.Scheduled(LONG[:, None].expand(1000, 50)),
    "a mixture": sa.problems.Mixture([1.0], [LONG.tolist()], 1.0),
    "Gaussian data": sa.problems.Gaussian(LONG, LONG + 1),
    "digits": sa.problems.Digits(),
}


@pytest.mark.parametrize("what", OBJECTS)
def test_reprs_are_read_by_people(what: str) -> None:
    assert len(repr(OBJECTS[what])) < 500


def test_checks_are_found_without_an_import_of_their_own() -> None:
    assert sa.testing.check_solver is not None
    with pytest.raises(AttributeError, match="module 'sdeadjoint' has no attribute 'nothing'"):
        _ = sa.nothing

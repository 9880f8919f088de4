"""The public strategies: what they draw is valid, and varied; and what is said where hypothesis is missing."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

import sdeadjoint as sa
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.diffusion.frames import KINDS
from sdeadjoint.diffusion.grids import validate_grid
from sdeadjoint.diffusion.predictions import PREDICTIONS
from sdeadjoint.testing import strategies

ENOUGH = settings(max_examples=2000, database=None)


@given(st.data(), st.booleans())
def test_frames_and_grids_fit_each_other(data: st.DataObject, singular: bool) -> None:
    frame = data.draw(strategies.frames())
    grid = data.draw(strategies.grids(frame.schedule, singular=singular))
    assert torch.equal(validate_grid(grid, frame.schedule), grid)
    assert 1 <= len(grid) - 1 <= 40
    lam = frame.schedule.lam(grid)
    if not singular:
        assert (lam.abs() <= 6 + 1e-9).all()
    if not (frame.kind == "noise" and lam[0].isneginf()):
        denoiser = sa.Denoiser(lambda x, t: x, frame.schedule)
        Diffusion.create(denoiser, frame, grid, {})


@given(strategies.frames(sa.VE()), strategies.seeds(), strategies.etas(), strategies.predictions(), strategies.kinds())
def test_the_simple_ones(frame: sa.Frame, seed: int, eta: float, prediction: str, kind: str) -> None:
    assert frame.schedule == sa.VE()
    assert sa.BrownianPath(seed).seed == seed
    assert 0 <= eta <= 2
    assert prediction in PREDICTIONS
    assert kind in KINDS


def test_every_solver_schedule_and_singular_end_is_drawn() -> None:
    for solver in strategies.SOLVERS:
        assert find(strategies.solvers(), lambda drawn, wanted=solver: drawn == wanted, settings=ENOUGH) == solver
    for kind in (sa.VPLinear, sa.VPCosine, sa.VE, sa.RectifiedFlow, sa.Tabulated):
        find(strategies.schedules(), lambda drawn, wanted=kind: isinstance(drawn, wanted), settings=ENOUGH)
    grids = strategies.grids(sa.RectifiedFlow(), singular=True)
    for ends in ((True, True), (True, False), (False, True), (False, False)):
        find(grids, lambda g, wanted=ends: (bool(g[0] == 1), bool(g[-1] == 0)) == wanted, settings=ENOUGH)
    for steps in (1, 40):
        find(grids, lambda g, wanted=steps: len(g) - 1 == wanted, settings=ENOUGH)
    assert find(strategies.solvers(), lambda drawn: True, settings=ENOUGH) == sa.Euler()  # the simplest


def test_without_hypothesis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("sdeadjoint.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"pip install 'sdeadjoint\[testing\]'"):
        __import__("sdeadjoint.testing")

"""The comparison counts, measures and tells what it should, and the command line shows it."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint import cli
from sdeadjoint.command_line import solver as named_solver
from sdeadjoint.comparison import Comparison, Method, command, compare, default_methods, plots, result, scene
from sdeadjoint.comparison.trial import Trial, agreements
from sdeadjoint.comparison.truth import Truth, refined, true_gradients
from sdeadjoint.gradient_check.call import Call
from sdeadjoint.solvers import Solver

from .networks import Mlp
from .wrong_adjoints import NotANumber, Scaled

DOUBLE = torch.float64
SCHEDULE = scene.SCHEDULE
EXACT = 1e-12  # round-off of some tens of steps
# Two refinements of six steps, where what is compared is not how good the true gradient is.
CHEAP = {"repeats": 1, "truth_steps": 12}
# Where the true gradient is not looked at, no finer grid is solved on for it: the solution is said to be x_T itself.
NO_TRUTH = CHEAP | {"solution": lambda x: x}
EXACT_METHODS = (
    Method("Direct()", sa.Direct()),
    Method("Checkpoint()", sa.Checkpoint()),
    Method("Checkpoint(snapshots=4)", sa.Checkpoint(snapshots=4)),
)


def of_mixture(eta: float = 0.0, samples: int = 8, *, steps: tuple[int, ...] = (6,), **options: Any) -> Comparison:
    problem = sa.comparison.mixture(eta, samples)
    call = {"loss": problem.loss, "frame": problem.frame, "noise": problem.noise, "solver": sa.Euler()}
    grids = [scene.grid(n) for n in steps]
    return compare(problem.denoiser, problem.x_T, grids=grids, **(call | CHEAP | options))


SHORT, LONG = 6, 9  # more steps than the four snapshots, so that some are recomputed on both


@pytest.fixture(scope="module")
def ode() -> Comparison:
    return of_mixture(steps=(LONG, SHORT), truth_steps=18)


@pytest.fixture(scope="module")
def sde() -> Comparison:
    # The ODE's has all methods. What refuses the SDE does so whatever its order, and one of each family is enough to be
    # given noise: a ``Trial`` knows no more of a method than its adjoint and its solver.
    left_out = ("2M", "memory", "euler", "midpoint", "Heun", "last=5", "copies")
    methods = [method for method in default_methods(sa.Euler()) if not any(part in method.name for part in left_out)]
    return of_mixture(1.0, steps=(4, 8), truth_steps=16, methods=methods)


@pytest.mark.parametrize(("solver", "p"), [(sa.Euler(), 1), (sa.Heun(), 2), (sa.RK4(), 4)], ids=repr)
def test_network_calls_are_those_of_theory(solver: Solver, p: int) -> None:
    N, c, r = 6, 4, 2  # six steps need two repetitions with four snapshots: C(c + 1, c) = 5 < 6 <= C(c + 2, c) = 15
    found = of_mixture(samples=2, solver=solver, methods=EXACT_METHODS, **NO_TRUTH)
    direct, checkpoint, snapshots = found.measurements
    for row in (direct, checkpoint, snapshots):
        assert row.forward_calls == row.products == N * p
    assert direct.backward_calls == 0
    assert checkpoint.backward_calls == N * p
    # Griewank and Walther's least number of forward steps, r N - C(c + r, c + 1), has the first sweep's N - 1 in it and
    # not the N steps that are recomputed with their graphs.
    assert snapshots.backward_calls == (r * N - math.comb(c + r, c + 1) - (N - 1) + N) * p


def test_calls_with_guidance_and_of_truncations() -> None:
    generator = torch.Generator().manual_seed(0)
    style, null = (torch.randn(2, 8, generator=generator, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    for batched, calls in ((True, 1), (False, 2)):
        guidance = sa.Guidance(2.0, {"embedding": {"style": [null]}}, batched=batched)
        denoiser = sa.Denoiser(Mlp(8), SCHEDULE, guidance=guidance)
        x_T = torch.randn(2, 8, generator=generator, dtype=DOUBLE, requires_grad=True)
        found = compare(
            denoiser,
            x_T,
            loss=lambda x: (x**2).sum(),
            frame=sa.Frame(SCHEDULE),
            grids=scene.grid(5),
            solver=sa.Euler(),
            methods=[Method("direct", sa.Direct()), Method("last", sa.Truncated(last=2))],
            cond={"embedding": {"style": [style]}},
            **CHEAP,
        )
        assert found.kinds == ("x_T", "cond", "guidance", "weights")
        direct, last = found.measurements
        assert (direct.forward_calls, direct.backward_calls, direct.products) == (5 * calls, 0, 5 * calls)
        assert (last.forward_calls, last.backward_calls, last.products) == (5 * calls, 2 * calls, 2 * calls)
        assert [g.kind for g in last.gradients] == ["cond", "guidance", "weights"]
        assert all(g.true is not None for g in direct.gradients)


def test_exact_methods_are_exact_and_reversible_ones_tell_their_round_trip(ode: Comparison, sde: Comparison) -> None:
    for found in (ode, sde):
        for row in found.measurements:
            if row.family != "exact":
                assert row.round_trip is None
                continue
            for gradient in row.gradients:
                assert gradient.own is not None
                # The inverse of the SDE's steps in the data kind costs digits: theory/reversible.md.
                assert gradient.own.error < (1e-9 if "Reversible" in row.method else EXACT)
                assert gradient.own.cosine == pytest.approx(1, abs=1e-9)
            assert (row.round_trip is not None) == ("Reversible" in row.method)
            if row.round_trip is not None:
                assert 0 < row.round_trip < 1e-6
        assert found.kinds == (("x_T", "noise", "weights") if found is sde else ("x_T", "weights"))


def test_memory_is_what_each_method_keeps(ode: Comparison) -> None:
    def growth(method: str) -> int:
        short, long = (ode.at(method, steps).peak_bytes for steps in (SHORT, LONG))
        assert short is not None
        assert long is not None
        return long - short

    state = 8 * 8 * 8  # samples, dimensions, bytes
    more = LONG - SHORT
    assert growth("Direct()") > more * 2 * state
    assert growth("Checkpoint()") == pytest.approx(more * state, abs=state)
    for method in (
        "Checkpoint(snapshots=4)",
        "Reversible(), Coupled(Euler())",
        "AdjointDPM, euler",
        "Truncated(last=1)",
    ):
        assert abs(growth(method)) <= 2 * state, method


def test_what_was_found_on_the_smooth_mixture() -> None:
    """The numbers of an independent prototype, whose draw of the means was another: hence the bounds.

    Over 72 draws of means, target and starting points the cosine at 10 steps was -0.66 to 0.40, the error 2.3 to 4.3.
    """
    problem = sa.comparison.mixture(samples=256)
    denoiser, x_T, loss, frame, _ = problem
    coarse = Call(denoiser, x_T, loss, frame, scene.grid(10), sa.Euler())
    # RK4 with 40 steps: its error, and more than that, is told below.
    truth = true_gradients(coarse, ["x_T"], None, 40)
    assert isinstance(truth, Truth)
    assert truth.uncertainty < 0.01
    own, true = {}, {}
    for n in (10, 20, 50):
        # As ``compare`` does it, without counting memory and taking times.
        deis, direct = (
            Trial(Method(name, adjoint), replace(coarse, grid=scene.grid(n)))
            for name, adjoint in (("DEIS-1", sa.adjoint_deis(1, states="recorded")), ("Direct()", sa.Direct()))
        )
        reference, exact = direct.own_reference(), direct.answer().gradients
        found = deis.answer().gradients
        assert exact is not None
        assert found is not None
        own[n] = agreements(found, reference, None)[0].own
        plain = agreements(exact, reference, {"x_T": truth.gradients["x_T"]})[0]
        assert plain.kind == "x_T"
        assert plain.own.median_error < EXACT  # type: ignore[union-attr]
        true[n] = plain.true.median_error  # type: ignore[union-attr]
    assert -0.3 < own[10].median_cosine < -0.1  # type: ignore[union-attr]
    assert own[10].median_error > 2  # type: ignore[union-attr]
    assert own[20].median_error == pytest.approx(0.98, abs=0.01)  # type: ignore[union-attr]
    assert own[50].median_error == pytest.approx(0.63, abs=0.02)  # type: ignore[union-attr]
    # DDIM has order 1; its error is not yet proportional to 1/N at 10 steps.
    assert true[10] / true[20] == pytest.approx(2, rel=0.25)
    assert true[20] / true[50] == pytest.approx(2.5, rel=0.25)


def test_a_wrong_method_is_shown_to_be_wrong() -> None:
    found = of_mixture(methods=[Method("scaled", Scaled(1.01)), Method("broken", NotANumber())], **NO_TRUTH)
    scaled, broken = found.measurements
    for gradient in scaled.gradients:
        assert gradient.own is not None
        assert gradient.own.error == pytest.approx(0.01, rel=1e-9)
        assert gradient.own.cosine == pytest.approx(1)
    assert scaled.family == "other"
    assert broken.refused == "the gradient is not finite"
    assert (broken.gradients, broken.seconds, broken.products) == ((), None, None)


def test_the_truth_in_closed_form_and_on_a_finer_grid_agree() -> None:
    problem = sa.problems.Mixture([0.4, 0.6], [-1.0, 0.8], 0.5)
    x_T = torch.linspace(-2, 2, 9, dtype=DOUBLE).requires_grad_()
    call = Call(problem.denoiser(SCHEDULE), x_T, lambda x: (x**3).sum(), sa.Frame(SCHEDULE), scene.grid(10), sa.Euler())
    exact = true_gradients(call, ["x_T"], None, 60)
    assert isinstance(exact, Truth)
    assert (exact.source, exact.uncertainty) == ("closed form", 0.0)
    hidden = replace(
        call, denoiser=sa.Denoiser(lambda x, t: call.denoiser(x, t), SCHEDULE, "sample", time_dtype=DOUBLE)
    )
    fine = true_gradients(hidden, ["x_T"], None, 60)
    assert isinstance(fine, Truth)
    assert fine.source == "RK4() at 60 steps"
    error = (fine.gradients["x_T"] - exact.gradients["x_T"]).norm() / exact.gradients["x_T"].norm()  # type: ignore
    assert 0 < error < fine.uncertainty < 1e-3
    given = true_gradients(hidden, ["x_T"], lambda x: problem.ode_map(x, SCHEDULE, 1.0, scene.T_MIN), 60)
    assert isinstance(given, Truth)
    assert torch.equal(given.gradients["x_T"], exact.gradients["x_T"])  # type: ignore[arg-type]


def test_the_truth_of_an_sde_is_on_the_same_path(sde: Comparison) -> None:
    assert sde.truth == "ShARK() at 16 steps"
    for steps in (4, 8):
        row = sde.at("Direct()", steps)
        assert row.gradient("noise").true is None  # type: ignore[union-attr]  # it belongs to one grid
        assert row.gradient("noise").own is not None  # type: ignore[union-attr]
    errors = [sde.at("Direct()", n).gradient("x_T").true.median_error for n in (4, 8)]  # type: ignore[union-attr]
    assert errors[1] < errors[0] < 1
    problem = sa.comparison.mixture(1.0, 8)
    call = Call(problem.denoiser, problem.x_T, problem.loss, problem.frame, scene.grid(6), sa.Euler(), problem.noise)
    for noise in (
        sa.BrownianPath(0),
        sa.FixedNoise(sa.BrownianPath(0).increments(call.frame, call.grid, like=call.x_T)),
    ):
        said = true_gradients(replace(call, noise=noise), ["x_T"], None, 40)
        assert isinstance(said, str)
        assert "belongs to one grid" in said
        assert "refinable=True" in said
    found = of_mixture(1.0, noise=sa.BrownianPath(0), methods=EXACT_METHODS[:1])
    assert found.truth.startswith("not known: BrownianPath(seed=0")
    assert found.measurements[0].gradient("x_T").true is None  # type: ignore[union-attr]
    assert "not known: BrownianPath" in str(found)


def test_costs_are_those_of_a_path_that_is_not_refinable() -> None:
    problem = sa.comparison.mixture(1.0, 4)
    call = Call(problem.denoiser, problem.x_T, problem.loss, problem.frame, scene.grid(4), sa.Euler(), problem.noise)
    trial = Trial.create(EXACT_METHODS[0], call)
    assert trial.as_used().call.noise == sa.BrownianPath(0)
    increments = sa.BrownianPath(0).increments(call.frame, call.grid, like=call.x_T)
    fixed = replace(trial, call=replace(call, noise=sa.FixedNoise(increments)))
    assert fixed.as_used() is fixed


@pytest.mark.parametrize("final_zero", [False, True])
@pytest.mark.parametrize("make", [sa.uniform_logsnr, sa.uniform_time, sa.karras])
def test_refined_grids_contain_the_coarse_one(make: Any, final_zero: bool) -> None:
    grid = make(SCHEDULE, 25, t_min=0.01, final_zero=final_zero)
    fine = refined(grid, SCHEDULE, 4)
    assert torch.equal(fine[::4], grid)
    assert len(fine) == 101
    assert (fine.diff() < 0).all()


def test_the_built_in_network_is_the_exact_one() -> None:
    problem = sa.comparison.mixture(samples=16)
    means = problem.denoiser.network.means.detach()
    exact = sa.problems.Mixture([1.0] * len(means), means, scene.VARIANCE).denoiser(SCHEDULE)
    for t in (1.0, 0.3, scene.T_MIN):
        x = problem.x_T.detach()
        assert torch.allclose(problem.denoiser(x, t), exact(x, t), rtol=1e-12, atol=1e-12)


def test_refusals_have_rows_and_sentences(ode: Comparison, sde: Comparison) -> None:
    for steps in (4, 8):
        row = sde.at("AdjointDPM, rk4", steps)
        assert row.refused.startswith("adjoint_dpm: it is a method for the ODE")
        assert (row.gradients, row.forward_calls, row.seconds, row.peak_bytes) == ((), None, None, None)
    row = ode.at("Truncated(last=1)", SHORT)
    assert row.refused.startswith("x_T requires a gradient, but Truncated(last=1) stops before it")
    assert row.gradient("x_T") is None
    assert row.gradient("weights") is not None  # which it does have
    assert (row.forward_calls, row.products) == (SHORT, 1)


def test_warnings_are_told_and_not_given() -> None:
    tight = Method("tight", sa.Reversible(tolerance=1e-30), sa.Coupled(sa.Euler()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = of_mixture(methods=[tight], **NO_TRUTH)
    (row,) = found.measurements
    assert len(row.warnings) == 1
    assert row.warnings[0].startswith("Reversible: the way back strayed")
    assert f"[1] {row.warnings[0]}" in str(found)


def test_nothing_of_the_callers_is_changed() -> None:
    problem = sa.comparison.mixture(1.0, 4)
    before, state = problem.x_T.detach().clone(), torch.get_rng_state()
    means = problem.denoiser.network.means
    compare(
        problem.denoiser,
        problem.x_T,
        loss=problem.loss,
        frame=problem.frame,
        grids=scene.grid(4),
        solver=sa.Euler(),
        noise=problem.noise,
        methods=[*EXACT_METHODS, Method("last", sa.Truncated(last=1))],
        **CHEAP,
    )
    assert torch.equal(problem.x_T, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert problem.x_T.requires_grad
    assert means.requires_grad
    assert problem.x_T.grad is None
    assert means.grad is None
    assert isinstance(problem.denoiser.network, scene.MixtureNetwork)


def test_float32_is_compared_with_float64() -> None:
    problem = sa.comparison.mixture(samples=8)
    x_T, solver = problem.x_T.detach().float().requires_grad_(), sa.DPMSolverPP2M()
    # A solver with memory has no coupled form, hence the second one.
    names = ("Checkpoint()", "Reversible(), ReversibleHeun()", "AdjointDEIS-2M, recorded")
    methods = [method for method in default_methods(solver) if method.name in names]
    found = compare(
        problem.denoiser.float(),
        x_T,
        loss=problem.loss,
        frame=problem.frame,
        grids=[scene.grid(4)],
        solver=solver,
        methods=methods,
        **NO_TRUTH,
    )
    assert found.settings["dtype"] == "float32"
    assert set(found.methods) == set(names)
    assert not any(row.refused for row in found.measurements)
    error = found.at("Checkpoint()", 4).gradient("x_T").own.median_error  # type: ignore[union-attr]
    assert 1e-9 < error < 1e-4


def test_json_gives_the_same_value_back(sde: Comparison, tmp_path: Path) -> None:
    sde.to_json(tmp_path / "x.json")
    assert Comparison.from_json(tmp_path / "x.json") == sde
    assert "NaN" not in (tmp_path / "x.json").read_text()


def test_the_table_has_every_row_its_columns_and_a_legend(ode: Comparison, sde: Comparison) -> None:
    for found in (ode, sde):
        lines = str(found).splitlines()
        main = lines.index("Gradient in x_T")
        header, rows = lines[main + 1], lines[main + 2 : main + 2 + len(found.measurements)]
        assert lines[main + 2 + len(found.measurements)] == ""
        for name, _ in result.COLUMNS:
            end = header.index(name) + len(name)
            assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for row in rows)
        assert {(int(row.split()[0]), name) for row in rows for name in found.methods if f"  {name} " in row} == {
            (row.steps, row.method) for row in found.measurements
        }
        steps = [int(row.split()[0]) for row in rows]
        assert steps == sorted(steps)
        for line in lines[main + 2 + len(found.measurements) :]:
            assert len(line) < 300
        for word in ("calls", "VJPs", "ms, MiB", "own", "true", "trip", found.truth):
            assert any(word in line for line in lines[-20:])
        blocks = [line for line in lines if line.startswith("Gradient in ")]
        assert len(blocks) == len(found.kinds)
    refused = [row.refused for row in sde.measurements if row.refused]
    assert all(f"] {sentence}" in str(sde) for sentence in refused)


def test_the_most_exact_and_then_the_smallest_come_first(ode: Comparison) -> None:
    rows = str(ode).splitlines()
    first = [row for row in rows if row.startswith(f"    {SHORT}  ")][:5]
    exact = {row.method for row in ode.measurements if row.family == "exact"}
    assert {name for name in exact for row in first if f"  {name} " in row} == exact
    peaks = [ode.at(name, SHORT).peak_bytes for row in first for name in exact if f"  {name} " in row]
    assert peaks == sorted(peaks)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"grids": []}, ValueError, "grids: got none"),
        (
            {"grids": [scene.grid(4), scene.grid(4)]},
            ValueError,
            "grids with different numbers of steps and the same ends",
        ),
        ({"grids": [scene.grid(4), scene.grid(5)[:-1]]}, ValueError, "grids with different numbers of steps"),
        ({"methods": []}, TypeError, r"pass Method\(name, adjoint\), one at least"),
        ({"methods": [sa.Direct()]}, TypeError, r"pass Method\(name, adjoint\)"),
        ({"methods": [Method("a", sa.Direct()), Method("a", sa.Checkpoint())]}, ValueError, "a name of its own"),
        ({"repeats": 0}, ValueError, "repeats: got 0; pass an integer >= 1"),
        ({"truth_steps": 2.5}, ValueError, "truth_steps: got 2.5; pass an integer >= 1"),
        ({"noise": None, "frame": sa.Frame(SCHEDULE, 1.0)}, ValueError, "noise: got None"),
        ({"solver": "Euler"}, TypeError, "solver: got str; pass a solver"),
        ({"loss": lambda x: x}, TypeError, "loss: returned torch.float64"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    problem = sa.comparison.mixture(samples=2)
    call = {"loss": problem.loss, "frame": problem.frame, "solver": sa.Euler(), "grids": [scene.grid(4)]}
    with pytest.raises(error, match=message):
        compare(problem.denoiser, problem.x_T, **(call | CHEAP | changes))


def test_nothing_to_differentiate() -> None:
    problem = sa.comparison.mixture(samples=2)
    problem.denoiser.requires_grad_(False)
    call = {"loss": problem.loss, "frame": problem.frame, "solver": sa.Euler(), "grids": scene.grid(4)}
    with pytest.raises(ValueError, match="nothing requires a gradient"):
        compare(problem.denoiser, problem.x_T.detach(), **call, **CHEAP)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, sa.Direct()), "name: got 3"),
        (("a", "Direct"), "adjoint: got str; pass an adjoint"),
        (("a", sa.Direct(), "Euler"), "solver: got str; pass a solver, or None"),
    ],
)
def test_wrong_methods(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Method(*arguments)


def only(found: Comparison, *kinds: str) -> Comparison:
    """The same without the gradients of other kinds."""
    rows = (
        replace(row, gradients=tuple(gradient for gradient in row.gradients if gradient.kind in kinds))
        for row in found.measurements
    )
    return replace(found, measurements=tuple(rows))


def test_plots_are_drawn(ode: Comparison, sde: Comparison, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    # Rows of panels are made alike for all kinds of gradients: two kinds' and one's.
    noisy, plain = only(sde, "x_T", "noise"), only(ode, "x_T")
    for draw, found in ((plots.draw_error, noisy), (plots.draw_cosine, plain), (plots.draw_memory, ode)):
        path = tmp_path / f"{draw.__name__}.png"
        draw(found, path)
        pixels = image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert 0.001 < (pixels.mean(2) < 0.7).mean() < 0.3, f"{path.name} is blank or black"
        for colour in ("#0072B2", "#D55E00"):  # exact ones, continuous ones
            rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert (abs(pixels - rgb).max(2) < 0.01).sum() > 100


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    assert plots.SUFFIXES == (".png", ".svg", ".pdf")
    monkeypatch.setattr(plots, "SUFFIXES", (".svg", ".pdf"))  # those with dates; test_plots_are_drawn looks at pixels
    known = plots._known
    monkeypatch.setattr(plots, "_known", lambda found: known(found)[:1])  # one row of panels: it draws all of them
    out = tmp_path / "made" / "by itself"
    arguments = [
        "--steps",
        "8",
        "4",
        "--samples",
        "4",
        "--eta",
        "1",
        "--solver",
        "Heun",
        "--methods",
        "direct",
        "deis-1",
        "--truth-steps",
        "16",
    ]
    assert cli.main(["compare", "--out", str(out), *arguments]) == 0
    drawn = {f"{name}.{kind}" for name in ("error", "cosine", "memory") for kind in ("svg", "pdf")}
    assert {path.name for path in out.iterdir()} == {"compare.json"} | drawn
    found = Comparison.from_json(out / "compare.json")
    assert found.steps == (4, 8)
    assert found.methods == ("Direct()", "AdjointDEIS-1, recorded", "AdjointDEIS-1, reconstructed")
    assert found.settings["solver"] == "Heun()"
    assert found.settings["shape"] == [4, 8]
    assert "eta=1.0" in found.settings["frame"]
    assert found.settings["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert str(found) in printed.out
    assert "4 steps: Direct()" in printed.err
    assert "Direct()" in printed.out


def test_equal_seeds_give_equal_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "draw_all", lambda comparison, out: [])  # the numbers come from the file
    results = []
    for seed in ("3", "3", "4"):
        arguments = [
            "--steps",
            "4",
            "--samples",
            "4",
            "--methods",
            "Checkpoint()",
            "--seed",
            seed,
            "--truth-steps",
            "8",
        ]
        assert cli.main(["compare", "--out", str(tmp_path), *arguments]) == 0
        results.append([row.gradients for row in Comparison.from_json(tmp_path / "compare.json").measurements])
    assert results[0] == results[1]
    assert results[0] != results[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --out"),
        (["--out", __file__], "is a file; pass a directory"),
        (["--out", ".", "--steps", "0"], "'0' is not a count; pass an integer >= 1"),
        (["--out", ".", "--eta", "0.5"], "invalid choice"),
        (["--out", ".", "--samples", "-1"], "'-1' is not a count"),
        (["--out", ".", "--solver", "AdamsBashforth7"], "there is no 'AdamsBashforth7'; did you mean AdamsBashforth?"),
        (["--out", ".", "--methods", "magic"], "'magic' is in no method's name; pass a part of one of: Direct(), "),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_failures_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert cli.main(["compare", "--out", str(tmp_path / "new")]) == 1
    expected = "sdeadjoint compare: the figures need matplotlib: pip install 'sdeadjoint[demo]'\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "new").exists()


def test_an_exact_method_that_is_not_is_a_failure() -> None:
    found = of_mixture(methods=EXACT_METHODS[:1], **NO_TRUTH)
    command._check(found)
    (row,) = of_mixture(methods=[Method("wrong", Scaled(1.01))], **NO_TRUTH).measurements
    with pytest.raises(
        RuntimeError, match=r"wrong at 6 steps is not the gradient of its sampler: relative error 1.0e-02"
    ):
        command._check(replace(found, measurements=(replace(row, family="exact"),)))
    command._check(replace(found, measurements=(row,)))
    command._check(replace(found, measurements=(replace(row, family="exact", warnings=("it said so",)),)))


def test_every_solver_of_the_command_line_can_be_compared() -> None:
    for name in ("Euler", "Heun", "Midpoint", "RK4", "DPMSolverPP2M", "SRA1", "ShARK", "UniPC", "dpm_solver_pp_2m"):
        names = [method.name for method in default_methods(named_solver(name).solver)]
        assert len(set(names)) == len(names)


def test_json_is_strict(ode: Comparison, tmp_path: Path) -> None:
    ode.to_json(tmp_path / "x.json")
    json.loads((tmp_path / "x.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_tensors_of_the_batch_are_told_apart() -> None:
    """The median is over samples: a minority of wrong ones moves the aggregate alone."""
    r = torch.ones(5, 3, dtype=DOUBLE)
    g: Tensor = r.clone()
    g[0] = -9.0
    (found,) = agreements({"x_T": g}, {"x_T": r}, None)
    assert found.own is not None
    assert (found.own.median_error, found.own.median_cosine) == (0.0, pytest.approx(1.0))
    assert found.own.error == pytest.approx(10 / 5**0.5)
    assert found.true is None
    (zero,) = agreements({"x_T": None}, {"x_T": r}, {"x_T": 2 * r})
    assert (zero.own.error, zero.own.cosine, zero.own.median_cosine) == (1.0, None, None)  # type: ignore[union-attr]

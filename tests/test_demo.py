"""The demo does what it says, the same for the same seed, and the command line says what is wrong with it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sdeadjoint as sa
from sdeadjoint import cli, demo
from sdeadjoint.demo import descent, gradients, sheet
from sdeadjoint.demo.faces import images, morph, score, unet
from sdeadjoint.demo.faces.eigenfaces import Eigenfaces
from sdeadjoint.demo.scene import SDE, Scene

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
image = pytest.importorskip("matplotlib.image")

SMALL = demo.Effort(rows=1, pairs=2, memory_steps=(10, 30), morphs=1, morph_iterations=1)


class Demo(NamedTuple):
    out: Path
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "made" / "by itself"
    return Demo(out, demo.run(out, effort=SMALL))


@pytest.fixture(scope="module")
def scene() -> Scene:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # nothing may come of it
        return Scene.create(0)


@pytest.mark.whole_run
def test_gradients_are_those_of_plain_autograd(small: Demo) -> None:
    rows = small.numbers["gradients"]
    assert {row["adjoint"] for row in rows} == {"Checkpoint()", "Checkpoint(snapshots=8)"}
    quantities = [set(row["errors"]) for row in rows]
    noises = [{"x_T", "label"}, {"x_T", "label", "noise"}, {"x_T", "label", "noise", "Levy area"}]
    assert quantities == [names for names in noises for _ in range(2)]
    for row in rows:
        assert row["same_samples"]
        assert all(0 <= error <= 1e-12 for error in row["errors"].values())


@pytest.mark.whole_run
def test_every_wish_is_reached(small: Demo) -> None:
    assert len(small.numbers["descents"]) == 2
    for numbers in small.numbers["descents"].values():
        assert len(numbers["start"]) == SMALL.pairs
        for start, wish, p, iterations, losses in zip(
            *(numbers[key] for key in ("start", "wish", "probability", "iterations", "losses")), strict=True
        ):
            assert start != wish
            assert p >= descent.REACHED
            assert iterations == len(losses) - 1 > 0
            assert losses[-1] == pytest.approx(-torch.tensor(p, dtype=torch.float64).log().item(), abs=1e-12)
            assert all(-loss < torch.tensor(descent.REACHED).log() for loss in losses[:-1])


@pytest.mark.whole_run
def test_samples_are_the_digits_asked_for_and_replayed(small: Demo) -> None:
    assert small.numbers["sheet"]["replayed_bitwise"]
    # An exact model of the class: what it draws is as legible as the held-out images, of which 95 % are read right.
    assert all(share >= 0.9 for share in small.numbers["sheet"]["classified_as_asked"].values())
    assert small.numbers["classifier_accuracy"] > 0.9


@pytest.mark.whole_run
def test_memory_is_what_each_adjoint_keeps(small: Demo) -> None:
    direct, states, snapshots = small.numbers["peak_memory_bytes"].values()
    more, state, weights = 20, 16 * 64 * 8, 16 * 1797 * 8  # steps; bytes of a state and of the mixture's (batch, 1797)
    assert direct[1] - direct[0] >= more * weights
    # A state and the solver's one past drift for each step more; once, a few short-lived tensors may overlap otherwise.
    assert states[1] - states[0] <= 2 * (more + 2) * state
    flags = 32 * more  # of what is read at the end of a pass: bytes
    assert snapshots[1] - snapshots[0] <= 2 * 2 * state + flags


@pytest.mark.whole_run
def test_files(small: Demo) -> None:
    pictures = {"sheet.png", "demo.png", "memory.png", "faces.png"}
    assert {path.name for path in small.out.iterdir()} == pictures | {"demo.json"}
    assert json.loads((small.out / "demo.json").read_text()) == json.loads(json.dumps(small.numbers))
    assert small.numbers["versions"]["torch"] == torch.__version__
    assert small.numbers["settings"]["seed"] == 0
    for path in small.out.glob("*.png"):
        pixels = image.imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 250
        dark = (pixels.mean(2) < 0.5).mean()
        assert 0.001 < dark < 0.5, f"{path.name} is blank or black"


@pytest.mark.whole_run
def test_equal_seeds_give_equal_numbers(small: Demo, scene: Scene) -> None:
    with demo.one_thread():
        assert sheet.generate(scene, SMALL.rows).as_json() == small.numbers["sheet"]
        assert [row.as_json() for row in gradients.compare(scene)] == small.numbers["gradients"]
        again = descent.on_noise(scene, SMALL.pairs).as_json()
    assert json.loads(json.dumps(again)) == json.loads((small.out / "demo.json").read_text())["descents"][demo.ON_NOISE]


def test_another_seed_is_another_sample(scene: Scene) -> None:
    assert not torch.equal(scene.latents(1), Scene(1, scene.problem, scene.denoiser, scene.classifier).latents(1))


def test_exact_class_probabilities_are_those_of_the_images(scene: Scene) -> None:
    # At the images themselves, farther from the next image of another class than the bandwidth, all but certain.
    _, exact = scene.class_probabilities(scene.problem.images[:50])
    assert torch.equal(exact.argmax(1), scene.problem.labels[:50])
    assert torch.allclose(exact.sum(1), torch.ones(50, dtype=torch.float64))


def test_late_noise_and_x_T_stay_as_they_were(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Scene.sample

    def spy(self: Scene, sampler: Any, x_T: Any, label: Any, noise: Any = None, **options: Any) -> Any:
        if isinstance(noise, sa.FixedNoise):
            seen.append((x_T.clone(), noise.increments.detach().clone()))
        return original(self, sampler, x_T, label, noise, **options)

    monkeypatch.setattr(Scene, "sample", spy)
    descent.on_noise(scene, 1)
    (x_first, first), (x_last, last) = seen[0], seen[-1]
    assert torch.equal(x_first, x_last)
    ratio = (-SDE.frame.schedule.lam(scene.grid())[1:]).exp()
    moved = (first != last).flatten(1).any(1)
    assert torch.equal(moved, ratio > 0.2)


@pytest.mark.whole_run
def test_a_morph_is_nearer_to_the_farther_face(small: Demo) -> None:
    numbers = small.numbers["morphs"]
    assert numbers["pairs"] == [morph.PAIRS[0]]
    (curve,) = numbers["losses"]
    assert len(curve) == SMALL.morph_iterations + 1
    # The images are kept in float32, and the distances computed anew.
    assert max(numbers["before"]["a"] + numbers["before"]["b"]) == pytest.approx(curve[0], abs=1e-5)
    assert max(numbers["after"]["a"] + numbers["after"]["b"]) == pytest.approx(min(curve), abs=1e-5)
    assert min(curve) < curve[0]
    assert numbers["gradient_error"] <= demo.FACES_TOLERANCE
    assert numbers["encoding_error"] <= morph.ENCODING  # relative to a norm of at most 1 per pixel


@pytest.mark.whole_run
def test_the_network_generalises_where_the_exact_score_cannot(small: Demo) -> None:
    rows = small.numbers["denoising"]
    assert [row["level"] for row in rows] == list(score.LEVELS)
    for row in rows:
        assert row["seen"][1] <= row["seen"][0] * 1.02  # nothing denoises draws from the law better than its mean
    assert rows[-1]["unseen"][0] < rows[-1]["unseen"][1] / 2


def test_the_exact_denoiser_has_the_exact_score() -> None:
    law = images.law()
    for row in score.errors(law.denoiser(unet.SCHEDULE), law, 0):
        # Both in float32, from the same x: a few ulps of a pixel, over noise of standard deviation ``level``.
        assert row.score <= 1e-6 / row.level
        assert row.seen[0] == pytest.approx(row.seen[1], rel=1e-5)
        assert row.unseen[0] == pytest.approx(row.unseen[1], rel=1e-5)


def test_the_error_of_a_wrong_score_is_measured() -> None:
    # A network that says 0, for a Gaussian of mean 0 and variance v: the scores are -x / sigma^2 and
    # -x / (alpha^2 v + sigma^2), so the first is off by alpha^2 v / sigma^2 times the second.
    blind, variance = sa.Denoiser(lambda x, t: torch.zeros_like(x), unet.SCHEDULE, "sample"), 0.3
    law = sa.problems.Mixture([1.0], torch.zeros(1, 1, 24, 24), variance)
    for row in score.errors(blind, law, 0):
        assert row.score == pytest.approx(variance / row.level**2, rel=1e-4)  # float32
        assert row.seen[0] == pytest.approx(float(images.seen().square().mean().sqrt()), rel=0.1)  # 40 of 720 images


def test_crops_are_the_corners_and_their_mirror_images() -> None:
    image = torch.arange(625.0).reshape(1, 1, 25, 25)
    found = images.crops(image)
    assert found.shape == (8, 1, 24, 24)
    firsts = {float(crop[0, 0, 0]) for crop in found}
    assert firsts == {0, 1, 25, 26, 23, 24, 48, 49}
    assert images.law().means.shape == (720, 1, 24, 24)


def test_eigenfaces_are_uncorrelated_and_of_variance_one() -> None:
    measure = Eigenfaces.of(images.seen())
    coordinates = (images.seen().flatten(1) - measure.mean.double()) @ measure.components.double()
    covariance = coordinates.T @ coordinates / len(coordinates)
    # Stored in float32, whose round-off the first component's share of all variance multiplies.
    assert torch.allclose(covariance, torch.eye(len(covariance), dtype=torch.float64), atol=1e-4)
    a, b = images.seen()[:2].float(), images.seen()[2:4].float()
    assert measure.distance(a, a).abs().max() < 1e-6
    assert torch.allclose(measure.distance(a, b), measure.distance(b, a))


def test_the_weights_are_small_and_frozen() -> None:
    assert unet.WEIGHTS.stat().st_size <= 2 * 2**20
    network = unet.load().network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_wrong_gradient_stops_the_demo() -> None:
    right = gradients.Comparison("ODE", "Checkpoint()", True, {"x_T": 1e-16})
    demo._check([right])
    for wrong in (
        gradients.Comparison("ODE", "Checkpoint()", True, {"x_T": 0.0, "label": 1e-6}),
        gradients.Comparison("ODE", "Checkpoint()", True, {"x_T": float("nan")}),
        gradients.Comparison("ODE", "Checkpoint()", False, {"x_T": 0.0}),
    ):
        with pytest.raises(RuntimeError, match="not plain autograd's"):
            demo._check([right, wrong])


def test_a_wrong_gradient_through_the_network_stops_the_demo() -> None:
    demo._check_morphs(1e-6)
    for wrong in (1e-3, float("nan")):
        with pytest.raises(RuntimeError, match="through the faces' sampler is not plain autograd's"):
            demo._check_morphs(wrong)


def test_a_wish_out_of_reach_is_an_error(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "LIMIT", 0)
    with pytest.raises(RuntimeError, match=r"2 of 2 descents did not reach .* in 0 iterations; pass another seed"):
        descent.on_latent(scene, 2)


def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else object())
    assert cli.main(["demo", "--out", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err == "sdeadjoint demo: the demo needs matplotlib: pip install 'sdeadjoint[demo]'\n"
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    names = "scikit-learn, scikit-image, matplotlib"
    with pytest.raises(ImportError, match=rf"needs {names}: pip install 'sdeadjoint\[demo\]'"):
        demo.run(tmp_path)


def test_command_line_runs_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(demo, "run", lambda out, seed: calls.append((out, seed)))
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    assert cli.main(["demo", "--out", str(tmp_path / "x"), "--seed", "7"]) == 0
    assert calls == [(tmp_path, 0), (tmp_path / "x", 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["demos"], "invalid choice: 'demos'"),
        (["demo"], "the following arguments are required: --out"),
        (["demo", "--out", __file__], "is a file; pass a directory"),
        (["demo", "--out", ".", "--seed", "-1"], "'-1' is not a seed; pass an integer from 0"),
        (["demo", "--out", ".", "--seed", "x"], "'x' is not a seed"),
        (["demo", "--out", ".", "--seed", str(2**62)], "is not a seed"),
    ],
)
def test_wrong_command_lines(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_module_entry_point(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """In this process; test_convergence_command.py starts another."""
    monkeypatch.setattr(sys, "argv", ["sdeadjoint", "demo", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("sdeadjoint", run_name="__main__")
    assert not stopped.value.code
    assert "--out DIR" in capsys.readouterr().out

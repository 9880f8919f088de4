"""``python -m tests.mutation``: plant every fault in turn and count those that the tests catch; ``make mutants``.

Each mutant is written into a copy of the tree and the tests that answer for its file are run until the first failure.
A whole campaign takes hours on two cores: ``--only frames`` runs a part, ``--sample 50`` a random one, and prints the
interval in which the caught fraction of all lies.
``survivors.md`` beside this file names every mutant that may survive, with its reason; others fail the command.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from scipy.stats import binomtest

from .mutants import Mutant, mutants
from .runner import SECONDS, Outcome, run

ROOT = Path(__file__).resolve().parent.parent.parent
# What answers for what: source files, and the tests that must notice a change there, quickest first. The iterations of
# ``inversion.py`` and ``fixed_point/`` are left out: what they return has been checked, and faults cost calls only.
TARGETS: dict[str, tuple[str, ...]] = {
    "sdeadjoint/diffusion/predictions.py": ("test_predictions",),
    "sdeadjoint/diffusion/frames.py": ("test_frames", "test_samplers"),
    "sdeadjoint/samplers.py": ("test_samplers", "test_defaults"),
    "sdeadjoint/diffusion/denoiser.py": ("test_denoiser",),
    "sdeadjoint/diffusion/guidance.py": ("test_denoiser",),
    "sdeadjoint/diffusion/grids.py": ("test_grids", "test_defaults"),
    "sdeadjoint/diffusion/schedules/*.py": ("test_schedules", "test_defaults"),
    "sdeadjoint/solvers/*.py": (
        "test_theory", "test_claims", "test_defaults", "test_solvers", "test_reversible_solvers", "test_samplers",
        "test_guarantees",
    ),
    "sdeadjoint/noise/*.py": ("test_noise", "test_shifted_noise", "test_sampler_module", "test_solve"),
    "sdeadjoint/diffusion/kinds.py": ("test_frames", "test_samplers"),
    "sdeadjoint/diffusion/equation.py": (
        "test_sample", "test_frames", "test_samplers", "test_hooked", "test_reversible", "test_encode",
    ),
    "sdeadjoint/equation.py": ("test_solve", "test_sample", "test_hooked"),
    "sdeadjoint/recursion.py": ("test_sampler_module", "test_sample", "test_solve"),
    "sdeadjoint/field.py": ("test_solve",),
    "sdeadjoint/packing.py": ("test_solve",),
    "sdeadjoint/adjoints/continuous/*.py": ("test_defaults", "test_continuous", "test_sample"),
    "sdeadjoint/adjoints/replay/*.py": (
        "test_checkpoint", "test_checkpoint_memory", "test_truncated", "test_conditioning", "test_reversible",
        "test_leaks", "test_second_derivatives",
    ),
    "sdeadjoint/adjoints/checkpoint.py": ("test_checkpoint_memory", "test_checkpoint"),
    "sdeadjoint/adjoints/reversible.py": ("test_reversible", "test_defaults"),
    "sdeadjoint/adjoints/truncated.py": ("test_truncated",),
    "sdeadjoint/adjoints/low_variance.py": ("test_truncated", "test_hooked", "test_defaults"),
    "sdeadjoint/adjoints/hooked.py": ("test_hooked", "test_defaults"),
    "sdeadjoint/encode.py": ("test_encode", "test_defaults"),
    "sdeadjoint/probability/*.py": ("test_transitions", "test_likelihood", "test_defaults"),
    "sdeadjoint/control/*.py": ("test_control", "test_defaults"),
    "sdeadjoint/curvature.py": ("test_second_derivatives", "test_defaults"),
    "sdeadjoint/accuracy/*.py": ("test_accuracy",),
    "sdeadjoint/problems/*.py": ("test_problems", "test_tilted"),
    "sdeadjoint/adapters/*.py": (
        "test_adapters_diffusers", "test_adapters", "test_timesteps", "test_adapters_awkward", "test_adapters_parity",
        "test_audit",
    ),
    "sdeadjoint/convergence/*.py": (
        "test_convergence_slope", "test_convergence", "test_convergence_equations", "test_convergence_fingerprint",
        "test_convergence_command",
    ),
    "sdeadjoint/testing/*.py": ("test_testing", "test_check_equation", "test_checks", "test_weak_orders"),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="files whose path contains one of these"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    planted = [
        (mutant, tests)
        for pattern, tests in TARGETS.items()
        for path in sorted(ROOT.glob(pattern))
        if any(text in str(path.relative_to(ROOT)) for text in arguments.only)
        for mutant in mutants(path)
    ]
    if arguments.sample is not None:
        planted = random.Random(arguments.seed).sample(planted, min(arguments.sample, len(planted)))
    check_baseline({name for _, tests in planted for name in tests}, arguments.jobs)
    survivors, late = campaign(planted, arguments.jobs)
    excused = (Path(__file__).parent / "survivors.md").read_text()
    unexplained = [name for name in survivors if f"`{name}`" not in excused]
    caught = len(planted) - len(survivors)
    print(f"{caught} of {len(planted)} caught, {late} of them by the limit of {SECONDS} s alone")
    if arguments.sample is not None and planted:
        low, high = binomtest(caught, len(planted)).proportion_ci(method="wilson")
        print(f"of all mutants {caught / len(planted):.0%}, with a 95 % interval of {low:.0%} to {high:.0%} (Wilson)")
    print(f"{len(survivors)} survived, {len(unexplained)} of them without a reason")
    for name in survivors:
        print(f"  survived{' (no reason given)' if name in unexplained else ''}: {name}")
    return 1 if unexplained else 0


def campaign(planted: list[tuple[Mutant, tuple[str, ...]]], jobs: int) -> tuple[list[str], int]:
    """The names of the mutants that no test caught, and how many others were caught by the time limit alone."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for k in range(jobs):
            copies.put(_copy(Path(scratch) / str(k)))

        def tried(job: tuple[Mutant, tuple[str, ...]]) -> Outcome:
            tree = copies.get()
            try:
                return outcome(*job, tree)
            finally:
                copies.put(tree)

        survivors, late = [], 0
        for k, (result, (mutant, _)) in enumerate(zip(pool.map(tried, planted), planted, strict=True), start=1):
            if result is Outcome.LATE:
                late += 1
                print(f"caught by the time limit: {name_of(mutant)}", file=sys.stderr)
            if result is Outcome.PASSED:
                survivors.append(name_of(mutant))
                print(f"survived: {survivors[-1]}", file=sys.stderr)
            print(f"{k}/{len(planted)}, {len(survivors)} survived", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return survivors, late


def outcome(mutant: Mutant, tests: tuple[str, ...], tree: Path) -> Outcome:
    """What the tests say of the tree with this fault in it."""
    place = tree / mutant.path.relative_to(ROOT)
    place.write_text(mutant.text())
    try:
        return run(tests, tree, first=mutant.path.stem.replace("_", ""))
    finally:
        shutil.copy(mutant.path, place)


def check_baseline(tests: set[str], jobs: int) -> None:
    """Tests that fail without a fault would catch everything."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        tree, names = _copy(Path(scratch) / "unchanged"), sorted(tests)
        for name, result in zip(names, pool.map(lambda name: run((name,), tree), names), strict=True):
            if result is not Outcome.PASSED:
                raise RuntimeError(f"without any fault {name} fails, or takes more than {SECONDS} s")


def name_of(mutant: Mutant) -> str:
    """A name that does not change when lines above are added."""
    line = mutant.path.read_text().splitlines()[mutant.line - 1].strip()
    return f"{mutant.path.relative_to(ROOT)}: {line}: {' '.join(mutant.old.split())} -> {' '.join(mutant.new.split())}"


def _copy(tree: Path) -> Path:
    for folder in ("sdeadjoint", "tests", "theory", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "Makefile"):
        shutil.copy(ROOT / file, tree / file)
    return tree


if __name__ == "__main__":
    sys.exit(main())

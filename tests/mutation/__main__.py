"""``python -m tests.mutation``: plant every fault in turn and count those that the tests catch; ``make mutants``.

Each mutant is written into a copy of the tree and the tests that answer for its file are run until the first failure.
A whole campaign takes more than an hour on two cores: ``--only frames`` runs a part, ``--sample 50`` a random one.
``survivors.md`` beside this file names every mutant that may survive, with its reason; others fail the command.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from .mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent.parent
# What answers for what: source files, and the tests that must notice a change there, quickest first.
TARGETS: dict[str, tuple[str, ...]] = {
    "sdeadjoint/predictions.py": ("test_predictions",),
    "sdeadjoint/frames.py": ("test_frames", "test_samplers"),
    "sdeadjoint/guidance.py": ("test_denoiser",),
    "sdeadjoint/grids.py": ("test_grids",),
    "sdeadjoint/schedules/*.py": ("test_schedules",),
    "sdeadjoint/solvers/*.py": ("test_theory", "test_solvers", "test_reversible_solvers", "test_samplers"),
    "sdeadjoint/noise/*.py": ("test_noise", "test_shifted_noise"),
    "sdeadjoint/discretization.py": ("test_sample", "test_samplers", "test_hooked", "test_encode"),
    "sdeadjoint/adjoints/**/*.py": (
        "test_checkpoint", "test_checkpoint_memory", "test_truncated", "test_hooked", "test_reversible",
        "test_continuous",
    ),
    "sdeadjoint/encode.py": ("test_encode",),
}  # fmt: skip
SECONDS = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose path contains this")
    parser.add_argument("--sample", type=int, metavar="N", help="N mutants drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    planted = [
        (mutant, tests)
        for pattern, tests in TARGETS.items()
        for path in sorted(ROOT.glob(pattern))
        if arguments.only in str(path.relative_to(ROOT))
        for mutant in mutants(path)
    ]
    if arguments.sample is not None:
        planted = random.Random(arguments.seed).sample(planted, min(arguments.sample, len(planted)))
    survivors = campaign(planted, arguments.jobs)
    excused = (Path(__file__).parent / "survivors.md").read_text()
    unexplained = [name for name in survivors if f"`{name}`" not in excused]
    caught = len(planted) - len(survivors)
    print(f"{caught} of {len(planted)} caught; {len(survivors)} survived, {len(unexplained)} of them without a reason")
    for name in survivors:
        print(f"  survived{' (no reason given)' if name in unexplained else ''}: {name}")
    return 1 if unexplained else 0


def campaign(planted: list[tuple[Mutant, tuple[str, ...]]], jobs: int) -> list[str]:
    """The names of the mutants that no test caught."""
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        copies: Queue[Path] = Queue()
        for k in range(jobs):
            copies.put(_copy(Path(scratch) / str(k)))

        def tried(job: tuple[Mutant, tuple[str, ...]]) -> str | None:
            tree = copies.get()
            try:
                return None if caught(*job, tree) else name_of(job[0])
            finally:
                copies.put(tree)

        survivors = []
        for k, survivor in enumerate(pool.map(tried, planted), start=1):
            if survivor is not None:
                survivors.append(survivor)
                print(f"survived: {survivor}", file=sys.stderr)
            print(f"{k}/{len(planted)}, {len(survivors)} survived", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return survivors


def caught(mutant: Mutant, tests: tuple[str, ...], tree: Path) -> bool:
    """Whether a test fails, or hangs, on the tree with this fault in it."""
    place = tree / mutant.path.relative_to(ROOT)
    files = [str(path) for name in tests if (path := tree / "tests" / f"{name}.py").exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *files]
    environment = os.environ | {
        "CI": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tree),
    }
    place.write_text(mutant.text())
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=SECONDS, check=False)
        return run.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        shutil.copy(mutant.path, place)


def name_of(mutant: Mutant) -> str:
    """A name that does not change when lines above are added."""
    return f"{mutant.path.relative_to(ROOT)}: {' '.join(mutant.old.split())} -> {' '.join(mutant.new.split())}"


def _copy(tree: Path) -> Path:
    for folder in ("sdeadjoint", "tests", "theory"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile"):
        shutil.copy(ROOT / file, tree / file)
    return tree


if __name__ == "__main__":
    sys.exit(main())

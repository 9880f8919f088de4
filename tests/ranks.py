"""Programs of several processes (gloo, on the CPU): one import serves all processes, and one start many programs.

Each program is called in every process with its rank and the number of processes. What it returns is collected from all
of them; an error is returned as its sentence.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Program = Callable[[int, int], dict[str, Any]]


def parent() -> Executor:
    """One fresh process, without threads, from which those of ``run_ranks`` and ``torchrun`` are forked.

    They find imported what it has imported: the seconds that PyTorch takes for that are spent once.
    """
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def run_ranks(programs: Mapping[str, Program], world: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each program returns in each of ``world`` processes, by its name; to be called in a ``parent``."""
    import torch._dynamo  # DistributedDataParallel asks for it

    gc.freeze()  # what is imported need not be looked through, each time, by each process
    torch.multiprocessing.start_processes(_rank, (world, programs, str(folder)), nprocs=world, start_method="fork")
    found = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]
    return {name: [results[name] for results in found] for name in programs}


def _rank(rank: int, world: int, programs: Mapping[str, Program], folder: str) -> None:
    torch.set_num_threads(1)
    # What torchrun sets, for libraries that ask.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    store = dist.FileStore(f"{folder}/store", world)
    # A process that waits for one that has failed.
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    found = {}
    for name, program in programs.items():
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's wrappers, which are many
            try:
                found[name] = program(rank, world)
            except Exception as error:
                found[name] = {"raised": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        print(name, found[name], flush=True)  # pytest shows it where a later program hangs
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def torchrun(arguments: list[str], script: Path) -> str:
    """What the script's first process prints where torchrun starts it; to be called in a ``parent``."""
    here, logs = str(script.parent), script.parent / "logs"
    forked = ["--run-path", "--start-method=fork", "--redirects=3", f"--log-dir={logs}"]
    sys.path.insert(0, here)  # where a script finds the modules beside it
    try:
        with contextlib.chdir(here):
            torch.distributed.run.main([*arguments, *forked, str(script)])
    finally:
        sys.path.remove(here)
    (printed,) = logs.glob("*/*/0/stdout.log")
    return printed.read_text()


class Reductions(TorchDispatchMode):
    """Counts the floating-point numbers that collective operations were given to sum over the processes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "reduce" in func.__name__:
            # Of a reduce-scatter, the outputs come first; an all-reduce has one list, of both.
            given = args[1] if "scatter" in func.__name__ and func.namespace == "c10d" else args[0]
            tensors = [given] if isinstance(given, Tensor) else given
            self.numbers += sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
        return func(*args, **(kwargs or {}))

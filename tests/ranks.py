"""Programs of several processes (gloo, on the CPU): one spawn runs many of them.

Each program is called in every process with its rank and the number of processes. What it returns is collected from all
of them; an error is returned as its sentence.
"""

from __future__ import annotations

import datetime
import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Program = Callable[[int, int], dict[str, Any]]


def run_ranks(programs: Mapping[str, Program], world: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each program returns in each of ``world`` processes, by its name."""
    torch.multiprocessing.spawn(_rank, (world, programs, str(folder)), nprocs=world)
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

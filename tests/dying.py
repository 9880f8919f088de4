"""A solver whose worker dies, for the tests of executors; in a module that a spawned process can import quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdeadjoint as sa


@dataclass(frozen=True)
class Dying(sa.Euler):
    """Euler's method that kills its process, if that is a child, where ``path`` exists and holds ``lives``.

    Each process that dies takes the file away; so later ones live.
    """

    path: str = ""

    def step(self, drift: Any, interval: sa.Interval, y: Any, state: Any) -> Any:
        marker = Path(self.path)
        if multiprocessing.parent_process() is not None and marker.exists() and len(y) == 11:
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(drift, interval, y, state)

"""What a study has finished, in a JSON file that a later run continues."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1


@dataclass
class Record:
    """Finished pieces of a study by name, kept in ``path`` (if any) after each: numbers and seconds.

    Numbers are written with all their digits, so a continued study gives the same numbers as an uninterrupted one.
    """

    fingerprint: str
    path: Path | None = None
    pieces: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, fingerprint: str) -> Record:
        """The record at ``path``, or an empty one; ``ValueError`` if what is there belongs to another study."""
        if path is None or not path.exists():
            return cls(fingerprint, path)
        try:
            found = json.loads(path.read_text())
            known = found["format"] == FORMAT and found["fingerprint"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"resume: {path} holds no study ({error}); pass another file, or delete it") from None
        if known != fingerprint:
            raise ValueError(
                f"resume: {path} holds another study (another solver, setting, steps, seed, or version of "
                "their code or of torch); pass another file, or delete it"
            )
        return cls(fingerprint, path, found["pieces"])

    def __contains__(self, name: str) -> bool:
        return name in self.pieces

    def values(self, name: str) -> Tensor:
        return torch.tensor(self.pieces[name]["values"], dtype=torch.float64, device="cpu")

    def seconds(self, name: str) -> float:
        return float(self.pieces[name]["seconds"])

    def add(self, name: str, values: Tensor, seconds: float) -> None:
        self.pieces[name] = {"seconds": seconds, "values": values.double().cpu().tolist()}
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(self.path.name + ".partial")
            content = {"format": FORMAT, "fingerprint": self.fingerprint, "pieces": self.pieces}
            partial.write_text(json.dumps(content))
            os.replace(partial, self.path)  # an interruption leaves the old file or the new one, never half of one

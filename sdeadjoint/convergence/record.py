"""The finished solves of a study, in a file of one JSON line each, which a later run continues."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT = 2


class Piece(NamedTuple):
    """One solve of one batch of paths: ``values`` (units, numbers), and the seconds that it took.

    ``seconds`` is ``None`` where other solves may have run at the same time.
    """

    batch: int
    name: str
    values: NDArray[np.float64]
    seconds: float | None


@dataclass
class Record:
    """The pieces of a study by batch and name, each written to ``path`` (if any) as soon as it is added.

    The first line is the study's fingerprint. Numbers are written with all their digits, so a continued study gives
    the same numbers as an uninterrupted one. An interruption costs at most the line that was being written.
    """

    fingerprint: str
    path: Path | None = None
    pieces: dict[tuple[int, str], Piece] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, fingerprint: str) -> Record:
        """Read the record at ``path``; ``ValueError`` if the file belongs to another study or to none."""
        record = cls(fingerprint, path)
        if path is None or not path.exists():
            return record
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        if not whole and record._head().encode().startswith(torn):  # not even the head was written
            os.truncate(path, 0)
            return record
        try:
            head, *rows = [json.loads(line) for line in whole.splitlines()] or [{}]
            known = head["format"] == FORMAT and head["fingerprint"]
            pieces = [_piece(row) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"resume: {path} holds no study ({error}); pass another file, or delete it") from None
        if known != fingerprint:
            raise ValueError(
                f"resume: {path} holds another study (another solver, setting, steps, seed, or version of "
                "their code or of torch); pass another file, or delete it"
            )
        if torn:
            os.truncate(path, len(whole) + 1)
        record.pieces = {(piece.batch, piece.name): piece for piece in pieces}
        return record

    def add(self, piece: Piece) -> None:
        """Keep a piece, and have it on the disk before anything else is done."""
        self.pieces[piece.batch, piece.name] = piece
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            if file.tell() == 0:
                file.write(self._head() + "\n")
            row = {"batch": piece.batch, "name": piece.name, "seconds": piece.seconds}
            file.write(json.dumps({**row, "values": piece.values.tolist()}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _head(self) -> str:
        return json.dumps({"format": FORMAT, "fingerprint": self.fingerprint})


def _piece(row: dict[str, object]) -> Piece:
    batch, name, seconds = row["batch"], row["name"], row["seconds"]
    values = np.array(row["values"], dtype=np.float64)
    if not isinstance(batch, int) or not isinstance(name, str) or not isinstance(seconds, float | None):
        raise TypeError("a line does not hold a solve of a study")
    if values.ndim != 2:
        raise TypeError("a line's values are not a table")
    return Piece(batch, name, values, seconds)

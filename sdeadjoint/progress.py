"""The progress bar that entry points share."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int | None, description: str, unit: str = "step") -> Any:
    """A tqdm bar, or an error that says how to get one."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True shows a bar by tqdm; pip install 'sdeadjoint[progress]'") from error
    return tqdm(total=total, desc=description, unit=unit)

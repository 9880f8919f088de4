"""The faces' network: its training can be repeated, and what it keeps is what the demo loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from examples.faces import train
from sdeadjoint.demo.faces import unet

pytest.importorskip("skimage")


def test_training_is_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    first, losses = train.train(iterations=3)
    again, losses_again = train.train(iterations=3)
    assert losses == losses_again
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_saved_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "unet.npz"
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(out), "--iterations", "1"])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    train.main()
    loaded, (made, _) = unet.load(out).network.state_dict(), train.train(iterations=1)
    for name, value in made.state_dict().items():
        assert torch.equal(loaded[name], value.half().float())
    with pytest.raises(SystemExit):
        train.main()  # it does not write over a file

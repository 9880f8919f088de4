"""Gradients of a solve's inputs, summed over its steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import nests
from ...discretization import Discretization
from ...noise import BoundNoise


class Totals:
    """Gradients of the inputs of a solve, summed over its steps."""

    def __init__(self, inputs: Sequence[Tensor], recursion: Discretization) -> None:
        self.grads: list[Tensor | None] = [None] * len(inputs)
        self.noise = () if recursion.noise is None else recursion.noise.tensors
        self._bound = recursion.noise
        self.slots = {id(tensor): k for k, tensor in enumerate(inputs)}

    def add(self, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Add one step's gradients of inputs."""
        for tensor, grad in zip(tensors, grads, strict=True):
            if grad is None:
                continue
            k = self.slots[id(tensor)]
            total = self.grads[k]
            if total is None:
                # Autograd may hand out one tensor for two inputs: a copy, before anything is added to it.
                self.grads[k] = grad.clone()
            elif total.is_sparse and not grad.is_sparse:
                self.grads[k] = grad + total
            else:
                total.add_(grad)

    def add_noise(self, n: int, grads: Sequence[Tensor | None]) -> None:
        """Add the gradients of step n's noise, given those of its increment and its Levy area."""
        if self._bound is not None and not self._bound.slotted:
            self._pull_back_noise(self._bound, n, grads)
            return
        for tensor, grad in zip(self.noise, grads, strict=False):
            k = self.slots.get(id(tensor))
            if k is not None and grad is not None:
                total = self.grads[k]
                if total is None:
                    total = self.grads[k] = torch.zeros_like(tensor)
                total[n] += grad.to(total)

    def _pull_back_noise(self, bound: BoundNoise, n: int, grads: Sequence[Tensor | None]) -> None:
        with torch.enable_grad():
            increment = bound.increment(n)
        pairs = [
            (part, grad.to(part))
            for part, grad in zip(nests.tensors(increment), grads, strict=False)
            if grad is not None and part.requires_grad
        ]
        wanted = [tensor for tensor in self.noise if id(tensor) in self.slots]
        if pairs and wanted:
            parts, seeds = zip(*pairs, strict=True)
            # Retained: the noise may have computed something for all of its steps at once.
            self.add(wanted, torch.autograd.grad(parts, wanted, seeds, allow_unused=True, retain_graph=True))

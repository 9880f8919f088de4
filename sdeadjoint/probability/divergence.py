"""The trace of a network's Jacobian: exactly, or estimated by random probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import is_integer

KINDS = ("rademacher", "normal")


class Divergence(ABC):
    """How ``tr dF/dx`` is had from vector-Jacobian products. The same for all steps of a solve, so it stays smooth."""

    @property
    @abstractmethod
    def columns(self) -> int:
        """How many estimates there are of each trace."""

    @abstractmethod
    def probes_for(self, x: Tensor) -> Tensor | None:
        """The probes for a batch like x, (batch, columns, ...), drawn once for a whole solve; None for none."""

    @abstractmethod
    def trace(self, F: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
        """``tr dF/dx`` of each sample, (batch, columns), float64, differentiable; samples are independent in F."""

    @abstractmethod
    def error(self, integrals: Tensor) -> Tensor | None:
        """The standard error of the mean of some integrals, (batch, columns); None if one cannot tell."""


@dataclass(frozen=True)
class ExactDivergence(Divergence):
    """The trace itself, by one vector-Jacobian product per number of a sample.

    Cost: D products per network call for samples of D numbers, where ``Hutchinson()`` takes one: for small samples.
    With gradients the graph of a step holds all D. ``python -m tests.benchmarks.likelihood_cost`` measures both.
    """

    @property
    def columns(self) -> int:
        return 1

    def probes_for(self, x: Tensor) -> Tensor | None:
        return None

    def trace(self, F: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        units = torch.eye(x[0].numel(), dtype=F.dtype, device=F.device).reshape(-1, *x.shape[1:])
        for i, unit in enumerate(units):
            row = product(F, unit.expand_as(F), x)
            total = total + row.reshape(x.shape[0], -1)[:, i].double()
        return total[:, None]

    def error(self, integrals: Tensor) -> Tensor | None:
        return torch.zeros_like(integrals[:, 0])


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """``E[v^T (dF/dx) v] = tr dF/dx`` for probes v with independent entries of mean 0 and variance 1.

    Unbiased, and so are its gradients. For A the symmetric part of the Jacobian the variance of one probe is ``2 (|A|^2
    - sum_i A_ii^2)`` for Rademacher probes (entries -1 or 1) and ``2 |A|^2`` for normal ones (Frobenius norm).

    Args:
        probes: how many; the estimates are averaged, and two or more give a standard error. Each costs one
            vector-Jacobian product per network call.
        seed: one integer, or a list with one for each sample. Probes are replayed like noise: drawn once for a solve
            by generators of their own, in float64 on the CPU. A sample's do not depend on how many samples follow it
            in the batch, or with a list, on any.
        kind: "rademacher", which is never worse, or "normal".

    Source: Hutchinson (1990); Grathwohl et al. (2019), FFJORD, section 3.1.
    """

    probes: int = 1
    seed: int | Sequence[int] = 0
    kind: str = "rademacher"

    def __post_init__(self) -> None:
        if not is_integer(self.probes, 1):
            raise ValueError(f"probes: got {self.probes!r}; pass an integer >= 1")
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}; pass one of {KINDS}")
        if not isinstance(self.seed, int):
            object.__setattr__(self, "seed", tuple(self.seed))
        seeds = [self.seed] if isinstance(self.seed, int) else self.seed
        if not seeds or not all(is_integer(seed, 0) for seed in seeds):
            raise ValueError(f"seed: got {self.seed!r}; pass an integer >= 0, or a list with one for each sample")

    @property
    def columns(self) -> int:
        return self.probes

    def probes_for(self, x: Tensor) -> Tensor:
        shape = (self.probes, *x.shape[1:])
        drawn = torch.stack([self._draw(shape, generator) for generator in generators(self.seed, len(x))])
        return drawn.to(x.device)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        if self.kind == "normal":
            return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return 2.0 * torch.randint(2, shape, generator=generator, device="cpu").double() - 1.0

    def trace(self, F: Tensor, x: Tensor, probes: Tensor | None) -> Tensor:
        assert probes is not None
        found = []
        for v in probes.unbind(1):
            row = product(F, v.to(F), x)
            found.append((row.double() * v).reshape(len(x), -1).sum(1))
        return torch.stack(found, 1)

    def error(self, integrals: Tensor) -> Tensor | None:
        return None if self.probes == 1 else integrals.std(1) / self.probes**0.5


def generators(seed: int | Sequence[int], batch: int) -> list[torch.Generator]:
    """A generator for each sample: all the same one for one seed, which they use one after another."""
    if isinstance(seed, int):
        return [torch.Generator(device="cpu").manual_seed(seed)] * batch
    if len(seed) != batch:
        raise ValueError(f"seed: lists {len(seed)} seeds, but there are {batch} samples; pass one for each, or one")
    return [torch.Generator(device="cpu").manual_seed(one) for one in seed]


def product(F: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """``v^T dF/dx``, with a graph of its own where gradients are on."""
    wanted = torch.is_grad_enabled()
    (row,) = torch.autograd.grad(F, x, v, create_graph=wanted, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if row is None else row

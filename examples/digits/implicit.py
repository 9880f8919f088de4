"""Implicit models of the digits, which differ in what is solved: an equilibrium, or an equation from 0 to 1.

All have one network f with a hidden layer, a linear read-out of the state, and as many weights as each other to within
two per cent. They differ in what is done with an image x, of 64 pixels:

- a neural ODE starts at the image, ``z(0) = x, z' = f(z)``, and reads z(1) (Chen et al., 2018);
- an augmented one adds dimensions that start at zero (Dupont, Doucet and Teh, 2019);
- a deep equilibrium model reads the solution of ``z = f(z; x)`` (Bai, Kolter and Koltun, 2019);
- HomoODE starts at the same point for all images, ``z(0) = z0, z' = f(z; x)``, and reads z(1) (Ding et al., 2023).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa
from sdeadjoint import equilibria

PIXELS, CLASSES = 64, 10
WIDTH = 32  # of states that are not images
AUGMENTED = 16
CLOCK = torch.linspace(0, 1, 5, dtype=torch.float64)
TOL = 1e-3
UNROLLED = 2000
BATCH, ITERATIONS, RATE = 128, 100, 5e-3


class Counted(nn.Module):
    """A network that counts its evaluations, and the cotangents that are pulled back through it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Not attributes that are numbers: such are put back where a step is recomputed.
        self.tally = Counter[str]()

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        self.tally["evaluations"] += 1
        out: Tensor = self.network(z, x)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, cotangent: Tensor) -> None:
        self.tally["products"] += 1


class Perceptron(nn.Module):
    """``W2 tanh(W1 z + U x + b1) + b2``, without x where ``inputs`` is 0."""

    def __init__(self, width: int, hidden: int, inputs: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.read = nn.Linear(inputs, hidden, bias=False) if inputs else None

    def forward(self, z: Tensor, x: Tensor | None) -> Tensor:
        inner: Tensor = self.inner(z)
        if self.read is not None:
            inner = inner + self.read(x)
        out: Tensor = self.outer(torch.tanh(inner))
        return out


class Model(nn.Module):
    """Logits (batch, 10) of images (batch, 64)."""

    def __init__(self, width: int, hidden: int, inputs: int) -> None:
        super().__init__()
        self.width, self.f = width, Counted(Perceptron(width, hidden, inputs))
        self.head = nn.Linear(width, CLASSES)

    @abstractmethod
    def state(self, x: Tensor) -> Tensor:
        """What is read out, (batch, width)."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.state(x))
        return logits

    def start(self, x: Tensor) -> Tensor:
        """Where the search or the trajectory begins."""
        return x.new_zeros(len(x), self.width)


class Trajectory(Model):
    """A model that reads z(1), solved in four steps of Heun's method."""

    def __init__(self, width: int, hidden: int, inputs: int) -> None:
        super().__init__(width, hidden, inputs)
        self.homotopy = equilibria.Homotopy(self.f, CLOCK, solver=sa.Heun())

    def cond(self, x: Tensor) -> dict[str, Tensor]:
        """What f is told besides its state."""
        return {}

    def state(self, x: Tensor) -> Tensor:
        end: Tensor = self.homotopy(self.start(x), self.cond(x))
        return end

    def path(self, x: Tensor) -> Tensor:
        """All states, (steps + 1, batch, width)."""
        states: Tensor = self.homotopy(self.start(x), self.cond(x), trajectory=True)
        return states


class NeuralODE(Trajectory):
    """From the image to z(1)."""

    def __init__(self) -> None:
        super().__init__(PIXELS, 64, 0)

    def start(self, x: Tensor) -> Tensor:
        return x


class AugmentedNeuralODE(Trajectory):
    """From the image and zeros to z(1)."""

    def __init__(self) -> None:
        super().__init__(PIXELS + AUGMENTED, 50, 0)

    def start(self, x: Tensor) -> Tensor:
        return functional.pad(x, (0, AUGMENTED))


class HomoODE(Trajectory):
    """From one point for all images to z(1), the image as condition; the point is zero, or learned."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__(WIDTH, 67, PIXELS)
        self.shared = equilibria.SharedStart(WIDTH, every=5) if shared else None

    def cond(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}

    def start(self, x: Tensor) -> Tensor:
        zeros = super().start(x)
        return zeros if self.shared is None else self.shared(zeros)

    def state(self, x: Tensor) -> Tensor:
        end = super().state(x)
        if self.shared is not None and self.training:
            self.shared.fit(end)
        return end


class DeepEquilibrium(Model):
    """The solution of ``z = f(z; x)``."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 67, PIXELS)
        self.method: equilibria.Method = equilibria.Broyden(max_iterations=60)
        self.gradient: equilibria.Gradient = equilibria.Implicit()
        self.missed = 0  # samples, in the forward or the backward pass, that did not reach the tolerance

    def state(self, x: Tensor) -> Tensor:
        z: Tensor = equilibria.solve(
            self.f,
            self.start(x),
            {"x": x},
            tol=TOL,
            method=self.method,
            gradient=self.gradient,
            watch=self._note,
        )
        return z

    def _note(self, report: equilibria.Report) -> None:
        self.missed += int((report.residual > TOL).sum())

    def unrolled(self, x: Tensor) -> Tensor:
        """The equilibrium by damped iteration under plain autograd, ``z' = (z + f(z; x)) / 2``.

        Until it does not move any more, to 1e-10, or ``UNROLLED`` times.
        """
        z = self.start(x)
        for _ in range(UNROLLED):
            before, z = z, (z + self.f.network(z, x)) / 2
            if float((z - before).detach().norm(dim=1).max()) < 1e-10:
                break
        return z


def train(model: Model, images: Tensor, labels: Tensor, seed: int) -> None:
    """Adam on the cross-entropy of random batches, with a rate that falls to zero."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
    for _ in range(ITERATIONS):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        decay.step()
    model.eval()

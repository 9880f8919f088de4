"""A start that all inputs share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..arguments import is_integer, is_number


class SharedStart(nn.Module):
    """Learn one value per channel, where every search or homotopy starts, whatever the input.

        start = SharedStart(channels=32, every=20)
        z0 = start(torch.empty(16, 32, 8, 8))      # (batch, channels, ...), no gradient
        z = homotopy(z0, {"x": x})
        start.fit(z)                               # every 20th call moves the values towards z

    The values have no part in the main loss. They minimise ``smooth_l1(value, z)``, averaged over
    everything but the channels, to the end points z, which are constants here: every ``every``-th
    call of ``fit`` takes one step of gradient descent. They are a buffer and not a parameter, so
    that no optimiser or gradient clipping sees them, that distributed training has no parameter
    without a gradient, and that they are saved with the module, together with the number of calls:
    an interrupted run goes on as it would have.

    The gradient of smooth L1 is at most 1: a value moves by no more than ``rate`` at a time,
    towards the median where end points are far, and to the mean where they are within ``beta``.

    Under data parallelism each process fits to its own end points: broadcast the buffers
    (``DistributedDataParallel`` does so by default). Source: Ding, Cui, Wang and Ye (2023), section
    4.

    Args:
        channels: size of dimension 1 of the states.
        every: calls of ``fit`` per step.
        rate: of the descent.
        beta: where smooth L1 turns from square to absolute value.
    """

    value: Tensor
    calls: Tensor

    def __init__(
        self, channels: int, *, every: int = 20, rate: float = 0.1, beta: float = 1.0
    ) -> None:
        super().__init__()
        for name, count in (("channels", channels), ("every", every)):
            if not is_integer(count, 1):
                raise ValueError(f"{name}: got {count!r}; pass an integer >= 1")
        for name, number in (("rate", rate), ("beta", beta)):
            if not (is_number(number) and number > 0):
                raise ValueError(f"{name}: got {number!r}; pass a number > 0")
        self.every, self.rate, self.beta = every, rate, beta
        self.register_buffer("value", torch.zeros(channels))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"channels={len(self.value)}, every={self.every}, rate={self.rate}, beta={self.beta}"

    def forward(self, like: Tensor) -> Tensor:
        """The start (batch, channels, ...): a new tensor of ``like``'s shape, dtype and device."""
        return self._spread(like).to(like).clone()

    def loss(self, end: Tensor) -> Tensor:
        """``smooth_l1(value, end)``: the sum over channels of means over all else, a number."""
        end = end.detach().to(self.value)
        mean = functional.smooth_l1_loss(self._spread(end), end, beta=self.beta)
        return mean * len(self.value)

    @torch.no_grad()
    def fit(self, end: Tensor) -> None:
        """Count end points (batch, channels, ...); every ``every``-th call moves towards them."""
        apart = (self._spread(end) - end.to(self.value)) / self.beta
        if not bool(apart.isfinite().all()):
            raise ValueError(
                "end: it holds NaN or infinite values; pass end points that are finite"
            )
        self.calls += 1
        if int(self.calls) % self.every == 0:
            slope = apart.clamp(-1, 1).transpose(0, 1).flatten(1).mean(1)
            self.value -= self.rate * slope

    def _spread(self, like: Tensor) -> Tensor:
        if like.ndim < 2 or like.shape[1] != len(self.value):
            raise ValueError(
                f"like, end: got shape {tuple(like.shape)}; pass (batch, {len(self.value)}, ...), "
                "one channel for each of the start's values"
            )
        return self.value.reshape(-1, *[1] * (like.ndim - 2)).expand(like.shape)

"""Networks as people wrap and break them: a table of cases for ``test_exact_or_refused``."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import sdeadjoint as sa

from .loops import DOUBLE, sampled
from .networks import LowRank, Mlp


@dataclass
class Case:
    """A network, the leaves that it reads, and what is done between the two passes.

    ``module``: whose state is compared afterwards; ``refused``: the sentence; ``repeated``: that of a recomputation;
    ``inverse``: that of ``Reversible()``; ``digits``: how many digits a way back that rounds anew leaves.
    """

    network: Callable[..., Tensor]
    leaves: Sequence[Tensor] = ()
    between: Callable[[], object] = lambda: None
    module: nn.Module | None = None
    cond: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    repeated: str = ""
    inverse: str = ""
    digits: int = 10

    @classmethod
    def of(cls, module: nn.Module, network: Callable[..., Tensor] | None = None, **options: Any) -> Case:
        leaves = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return cls(module if network is None else network, leaves, module=module, **options)


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def weight(*shape: int, seed: int = 1, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return (scale * drawn).requires_grad_()


class Layers(nn.Module):
    """A few layers, of which the inner ones are given."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed writes down the whole stack, slowly
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *inner, nn.Linear(8, 4)).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(x + t[:, None])
        return out


# Wrapped.


@case
def plain() -> Case:
    return Case.of(Mlp(4))


@case
def in_a_function() -> Case:
    network = Mlp(4)
    return Case.of(network, lambda x, t: network(x, t))


@case
def partial() -> Case:
    network, factor = Mlp(4), weight(4)
    made = Case.of(network, functools.partial(lambda c, x, t: network(x, t) * c, factor))
    return Case(made.network, [*made.leaves, factor], module=network)


@case
def bound_method() -> Case:
    network = Mlp(4)
    return Case.of(network, network.forward)


@case
def data_parallel() -> Case:
    return Case.of(nn.DataParallel(Mlp(4)))


@case
def averaged_model() -> Case:
    return Case.of(torch.optim.swa_utils.AveragedModel(Mlp(4)))


@case
def functional_weights() -> Case:
    network, shared = Mlp(4), weight(8, seed=4)
    return Case(lambda x, t: functional_call(network, {"shared": shared.tanh()}, (x, t)), [shared])


@case
def traced() -> Case:
    network = torch.jit.trace(Layers(), (torch.zeros(3, 4, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)))
    return Case(network, list(network.parameters()))


@case
def low_rank() -> Case:
    network = Layers()
    network.layers[0] = LowRank(network.layers[0])
    return Case.of(network)


@case
def weight_norm() -> Case:
    network = Layers()
    parametrizations.weight_norm(network.layers[0])
    return Case.of(network)


@case
def spectral_norm_with_its_iteration() -> Case:
    network = Layers()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parametrizations.spectral_norm(network.layers[0])
    return Case.of(network, inverse="its forward pass changes '_[uv]'")


@case
def frozen_and_tied() -> Case:
    network = Layers(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    network.layers[4].weight = network.layers[2].weight
    network.layers[0].requires_grad_(False)
    return Case.of(network)


@case
def activations_saved_elsewhere() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            out: Tensor = network(x, t)
            return out

    return Case.of(network, forward)


@case
def checkpoints_inside() -> Case:
    network = Mlp(4)
    return Case.of(network, lambda x, t: checkpoint(network, x, t, use_reentrant=False))


@case
def reentrant_checkpoints_inside() -> Case:
    network, gain = Mlp(4), weight(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = checkpoint(network, x * gain, t, use_reentrant=True)
        return out

    return Case(forward, [gain], refused="use_reentrant=True, which works with .backward")


@case
def threads_inside() -> Case:
    network, gain = Mlp(4), weight(4)
    pool = ThreadPoolExecutor(1)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        def work() -> Tensor:
            with torch.enable_grad():
                return network(x, t) * gain

        return pool.submit(work).result() + x

    return Case(forward, [gain, network.shared])


@case
def another_sampler_inside() -> Case:
    network, gain = Mlp(4), weight(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        inner = sampled(network, torch.tanh(x), sa.Checkpoint(), nodes=[0.5, 0.4, 0.3])
        return inner * gain + 0.1 * x

    return Case(forward, [gain, network.shared])


# Counting, caching, drawing.


class Counting(Layers):
    """Its counter scales a branch of zeros, and cuts off the fourth call: the values say nothing of either."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.count += 1
        out = super().forward(x, t)
        return (out.detach() if self.count == 4 else out) + self.count * self.zero


@case
def counter_of_a_module() -> Case:
    return Case.of(Counting(), inverse="its forward pass changes 'count'")


@case
def counter_in_a_function() -> Case:
    network, calls = Layers(), 0

    def forward(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        out: Tensor = network(x, t)
        return out.detach() if calls == 4 else out

    return Case.of(network, forward, repeated="built another graph")


@case
def counter_that_does_not_matter() -> Case:
    network, calls = Layers(), [0]

    def forward(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        out: Tensor = network(x, t)
        return out

    return Case.of(network, forward)


class Averaging(Layers):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        self.mean = torch.lerp(self.mean, x.detach().mean(0), 0.5)
        return super().forward(x - self.mean, t) + self.calls.double() * self.zero


class Sized(Layers):
    """Takes the size of its first batch down."""

    count: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = super().forward(x, t) + self.zero * (1 if self.count is None else 2)
        self.count = len(x)
        return out


@case
def a_number_that_the_first_call_sets() -> Case:
    return Case.of(Sized())


@case
def running_statistics() -> Case:
    return Case.of(Averaging(), inverse="its forward pass changes ")


class AveragingAside(Layers):
    """The average is a plain attribute, another tensor after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.calls = torch.zeros(4, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    @property
    def count(self) -> float:
        return float(self.calls)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.mean = torch.lerp(self.mean, x.detach().mean(0), 0.5)
        self.calls += 1
        return super().forward(x - self.mean, t) + self.calls.clone() * self.zero


@case
def an_average_that_is_no_buffer() -> Case:
    return Case.of(AveragingAside(), inverse="its forward pass changes '(mean|calls)'")


@case
def statistics_of_a_module_in_cond() -> Case:
    network, norm = Layers(), nn.BatchNorm1d(4).double()
    return Case(
        lambda x, t, z: network(z(x), t),
        list(norm.parameters()),
        module=norm,
        cond={"z": norm},
        inverse="its forward pass changes 'running_mean'",
    )


ANOTHER_NUMBER = "it multiplies by another number"


def scaling(factor: Callable[[], Any], repeated: str = ANOTHER_NUMBER) -> Case:
    """A branch of zeros that is multiplied by what each call finds."""
    network, zero = Layers(), weight(4, scale=0.0)
    return Case(lambda x, t: network(x, t) + factor() * zero, [zero], repeated=repeated)


@case
def a_counter_that_scales_zeros() -> Case:
    return scaling(itertools.count(1).__next__)


@case
def numbers_that_scale_zeros() -> Case:
    return scaling(random.Random(0).random)


@case
def a_generator_that_scales_zeros() -> Case:
    generator = torch.Generator().manual_seed(0)
    return scaling(lambda: torch.rand((), generator=generator, dtype=DOUBLE), "it draws from a generator of its own")


class Changing(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))
        self.factor = nn.Parameter(torch.ones(4, dtype=DOUBLE), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.factor.add_(1)
        return super().forward(x, t) + self.factor.clone() * self.zero


@case
def a_frozen_weight_that_is_changed() -> Case:
    return Case.of(Changing(), repeated="its forward pass changes its weight 'factor'")


@case
def dropout() -> Case:
    return Case.of(Layers(nn.Dropout(0.5)), inverse="it draws from torch's global generators")


@case
def its_own_seed() -> Case:
    network = Layers()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(int(1000 * float(t[0])))
            return network(x + 0.1 * torch.randn(x.shape, dtype=x.dtype), t)

    return Case.of(network, forward)


@case
def private_generator() -> Case:
    network, generator = Layers(), torch.Generator().manual_seed(0)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        return network(x + 0.1 * torch.randn(x.shape, dtype=x.dtype, generator=generator), t)

    return Case.of(network, forward, repeated="gave another state than the forward pass")


@case
def numbers_of_python() -> Case:
    network, numbers = Layers(), random.Random(0)
    return Case.of(network, lambda x, t: network(x, t) * numbers.random(), repeated="gave another state")


@case
def table_of_times() -> Case:
    network, table = Layers(), dict[float, Tensor]()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        entry = table.setdefault(float(t[0]), torch.sin(t))
        return network(x, entry)

    return Case.of(network, forward)


@case
def cached_weights() -> Case:
    network, gain, cache = Layers(), weight(4), list[Tensor]()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        if not cache:
            cache.append(gain.exp())
        return network(x, t) * cache[0]

    return Case(forward, [gain, *network.parameters()], repeated="an earlier evaluation")


@case
def the_last_output() -> Case:
    network, last = Layers(), list[Tensor]()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(x, t)
        mixed = out + 0.1 * last[-1] if last else out
        last.append(out)
        return mixed

    return Case.of(network, forward, refused="an earlier evaluation")

"""More cases for ``test_exact_or_refused``: networks that differentiate inside, hooks, changes between the passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from .awkward import CASES, Case, Layers, case, weight
from .loops import DOUBLE
from .networks import Mlp

# Differentiating inside.


@case
def an_energy() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        point = x if x.requires_grad else x.detach().requires_grad_()
        energy = network(point, t).square().sum()
        return x - 0.1 * torch.autograd.grad(energy, point, create_graph=True)[0]

    # Weights of whose derivative nothing is known have none, in plain autograd too.
    return Case(forward, [network.shared, network.inward.weight])


@case
def an_energy_at_a_leaf_of_its_own() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        point = x.detach().requires_grad_()
        energy = network(point, t).square().sum()
        return x - 0.1 * torch.autograd.grad(energy, point, create_graph=True)[0] * point

    return Case(forward, [network.shared, network.inward.weight])


@case
def an_energy_by_torch_func() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            return network(x, t).square().sum()

        return x - 0.1 * grad(energy)(x)

    return Case(forward, [network.shared, network.inward.weight])


@case
def samples_one_by_one() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        one = vmap(lambda x, t: network(x[None], t[None])[0])
        out: Tensor = one(x, t)
        return out

    return Case.of(network, forward)


@case
def an_energy_of_a_weight() -> Case:
    network, gain = Mlp(4), weight(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad((network(x, t) * gain).sum(), gain, create_graph=True)
        return network(x, t) * gain + 0.1 * slope

    return Case(forward, [gain, network.shared], refused="computed inside of the sampler")


@case
def backward_inside() -> Case:
    network = Layers()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        point = x.detach().requires_grad_()
        network(point, t).square().sum().backward()
        assert point.grad is not None
        return network(x, t) - 0.1 * point.grad

    return Case.of(network, forward, refused=r"it calls backward\(\)")


@case
def without_gradients_at_first() -> Case:
    network = Mlp(4)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        with torch.set_grad_enabled(bool(t[0] < 0.5)):
            return network(x, t)

    return Case.of(network, forward)


@case
def asks_whether_a_gradient_is_wanted() -> Case:
    network, gain = Mlp(4), weight(4)
    return Case(lambda x, t: network(x, t) * (gain if x.requires_grad else 2 * gain), [gain, network.shared])


# Tensors of other kinds.


@case
def changes_its_arguments() -> Case:
    network, z = Mlp(4), weight(4)

    def forward(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        x.mul_(0.5)
        t.add_(0.1)
        return network(x, t) * z

    return Case(forward, [z, network.shared], cond={"z": z})


@case
def returns_its_argument() -> Case:
    return Case(lambda x, t: x, [])


@case
def returns_one_buffer() -> Case:
    network, out = Mlp(4), torch.empty(3, 4, dtype=DOUBLE)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return out.copy_(network(x, t))

    return Case(forward, [])


@case
def spectra_and_single_precision() -> Case:
    network, gain = Layers().float(), weight(3, seed=2)

    def forward(x: Tensor, t: Tensor) -> Tensor:
        single = network(x.float(), t.float()).double()
        return torch.fft.irfft(torch.fft.rfft(x) * gain, n=4) + single

    return Case(forward, [gain], digits=5)


@case
def under_autocast() -> Case:
    layer, gain = nn.Linear(4, 4), weight(4)
    with torch.no_grad():
        layer.weight.copy_(weight(4, 4, seed=3))

    def forward(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x.float()).double() * gain

    return Case(forward, [gain], digits=1)


@case
def sparse_gradients() -> Case:
    table = nn.Embedding(5, 4, sparse=True).double()
    with torch.no_grad():
        table.weight.copy_(weight(5, 4))
    return Case(lambda x, t: torch.tanh(x * table((t * 4).long())), [table.weight])


@case
def a_table_that_is_scaled_at_every_look_up() -> Case:
    table = nn.Embedding(5, 4, max_norm=1.0).double()
    with torch.no_grad():
        table.weight.copy_(weight(5, 4))
    return Case(lambda x, t: torch.tanh(x * table((t * 4).long())), [table.weight])


@case
def a_leaf_for_each_step() -> Case:
    """Graphs that differ from step to step by their leaves alone."""
    tokens = [weight(4, seed=k) for k in range(4)]
    return Case(lambda x, t: torch.tanh(x) + tokens[int(3 * float(t[0]))], [tokens[k] for k in (0, 1, 2, 3)])


@case
def operations_that_differ_from_step_to_step() -> Case:
    gain = weight(4)
    return Case(lambda x, t: gain * (torch.sin(x) if int(4 * float(t[0])) % 2 else torch.cos(x)), [gain])


class Experts(Layers):
    """Takes one of three experts by the time, twice at late times, and leaves early at the earliest one."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            self.experts = nn.ModuleList(nn.Linear(4, 4).double() for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = float(t[0])
        if time > 0.9:
            return torch.tanh(self.experts[0](x))
        out = torch.tanh(self.experts[int(3 * time)](x))
        for _ in range(2 if time < 0.3 else 1):
            out = out + super().forward(out, t)
        return out


@case
def experts_and_early_exits() -> Case:
    """Steps whose graphs have the same operations and other weights, and some that have more operations."""
    return Case.of(Experts())


@case
def experts_that_nobody_declares() -> Case:
    made = Experts()
    get = {0: made}.__getitem__  # nothing that can be looked into
    return Case(lambda x, t: get(0)(x, t), list(made.parameters()))


@case
def computed_outside() -> Case:
    gain = weight(4)
    made = gain.exp()
    return Case(lambda x, t: torch.tanh(x) * made, [gain])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * grad * x.cos()


@case
def a_function_of_ones_own() -> Case:
    gain = weight(4)
    return Case(lambda x, t: Doubled.apply(x) * gain, [gain])


# Hooks.


@case
def hooks_of_modules() -> Case:
    network = Layers()
    network.layers[0].register_forward_hook(lambda module, given, out: 1.1 * out)
    network.layers[1].register_full_backward_hook(lambda module, given, out: (0.5 * given[0],))
    network.layers[2].register_forward_pre_hook(lambda module, given: (given[0] * 0.9,))
    return Case.of(network)


@case
def hooks_of_activations() -> Case:
    network = Layers()

    def forward(x: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(network(x, t))
        h.register_hook(lambda grad: 0.5 * grad)
        if x.requires_grad:
            x.register_hook(lambda grad: 2 * grad)
        out: Tensor = network(h + x, t)
        return out

    return Case.of(network, forward)


@case
def hooks_of_weights() -> Case:
    network = Layers()
    network.layers[0].weight.register_hook(lambda grad: grad / (1 + grad.norm()))
    return Case.of(network)


def watched(watch: Callable[[Tensor], object]) -> Case:
    network, gain = Layers(), weight(4)
    made = gain.exp()
    watch(made)
    return Case(lambda x, t: network(x, t) * made, [gain], refused="computed outside of it and has a hook")


@case
def hooks_of_what_was_computed_outside() -> Case:
    return watched(lambda made: made.register_hook(lambda grad: grad / grad.norm()))


@case
def gradients_retained_outside() -> Case:
    return watched(lambda made: made.retain_grad())


# Changed between the passes.


def changed(between: Callable[[Layers], object], *inner: Callable[[], nn.Module], **refusal: str) -> Callable[[], Case]:
    def make() -> Case:
        network = Layers(*(part() for part in inner))
        # Leaves that no case changes.
        return Case(network, [network.layers[-1].weight], lambda: between(network), **refusal)

    return make


class Scaled(nn.Module):
    """A branch of zeros with a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.zero = 2.0, nn.Parameter(torch.zeros(8, dtype=DOUBLE))
        self.branch = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.factor * self.branch(self.zero)
        return out


def scaled(network: Layers) -> Any:
    return network.layers[2]


class Environment:
    """Variables of the process's environment."""

    def __getitem__(self, name: str) -> str:
        return os.environ[f"SDEADJOINT_TEST_{name}"]

    def __setitem__(self, name: str, value: object) -> None:
        os.environ[f"SDEADJOINT_TEST_{name}"] = str(value)

    def update(self, factor: float) -> None:
        self["factor"] = factor


def rescaled(where: Environment) -> Callable[[], Case]:
    """A factor of a branch of zeros that stands where nobody looks."""

    def make() -> Case:
        network, zero = Layers(), weight(4, scale=0.0)
        where["factor"] = 2.0

        def forward(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = network(x, t) + float(where["factor"]) * zero
            return out

        return Case(forward, [zero], lambda: where.update(factor=3.0), repeated="it multiplies by another number")

    return make


BETWEEN = "was changed between the forward and the backward pass"
CASES |= {
    "another variable of the environment": rescaled(Environment()),
    "eval": changed(lambda n: n.eval(), lambda: nn.Dropout(0.0), refused=r"train\(\) or eval\(\) was called"),
    "frozen": changed(lambda n: n.layers[0].requires_grad_(False), refused="requires_grad of a parameter"),
    "other values": changed(lambda n: n.layers[0].bias.data.mul_(1.01), repeated="gave another state"),
    "another weight": changed(lambda n: setattr(n.layers[0], "bias", nn.Parameter(weight(8))), refused=BETWEEN),
    "another layer": changed(lambda n: setattr(scaled(n), "branch", nn.Tanh()), Scaled, refused=BETWEEN),
    "another factor": changed(lambda n: setattr(scaled(n), "factor", 3.0), Scaled, refused=BETWEEN),
    "another forward": changed(lambda n: setattr(scaled(n), "forward", torch.tanh), Scaled, refused=BETWEEN),
    "a hook more": changed(
        lambda n: scaled(n).branch.register_forward_hook(lambda module, given, out: 2 * out), Scaled, refused=BETWEEN
    ),
}

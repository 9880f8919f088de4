"""Data-parallel wrappers inside of a drift, which count passes: a step that is recomputed must not count as one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Parallel:
    """The wrappers among the modules of a drift.

    A backward pass of ours calls the network in its middle, once more per step, and hands the sums of the gradients to
    autograd at its end. So the wrappers are told of one forward and one backward pass, that of the whole solve:

    * ``DistributedDataParallel`` prepares a reduction in each forward pass. Recomputed ones are as under ``no_sync``.
    * ``fully_shard`` gathers the weights of a module before each of its passes, and reduces their gradients after a
      backward one. Passes of single steps find no gradients; the reduction is left to the end of the outer pass.

    Args:
        replicas: modules wrapped by ``DistributedDataParallel``.
        shards: modules to which ``fully_shard`` was applied.
    """

    replicas: tuple[DistributedDataParallel, ...]
    shards: tuple[Any, ...]

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> Parallel:
        """Those among ``modules``; refuses ``FullyShardedDataParallel``."""
        found = list(modules)
        if any(isinstance(module, _fsdp("FullyShardedDataParallel")) for module in found):
            _refuse_flat_parameters()
        replicas = tuple(module for module in found if isinstance(module, DistributedDataParallel))
        return cls(replicas, tuple(module for module in found if isinstance(module, _fsdp("FSDPModule"))))

    def prepare(self, outputs: Sequence[Tensor]) -> None:
        """Tell wrappers that look for unused parameters what the solve used, and not its last step alone."""
        for module in self.replicas:
            if module.find_unused_parameters and not module.static_graph and module.require_backward_grad_sync:
                module.reducer.prepare_for_backward(list(outputs))

    @contextmanager
    def sweeping(self) -> Iterator[None]:
        """In the forward sweep, whose steps have the graphs that their recomputations will have."""
        static = [module for module in self.replicas if module.static_graph]
        before = [module._static_graph_delay_allreduce_enqueued for module in static]
        for module in static:
            # So that it puts nothing into the graph that asks for the first reduction: ``recomputing`` does.
            module._static_graph_delay_allreduce_enqueued = True
        try:
            yield
        finally:
            for module, enqueued in zip(static, before, strict=True):
                module._static_graph_delay_allreduce_enqueued = enqueued

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Inside of a backward pass, for as long as steps are recomputed and pulled back."""
        before = [
            (module, module.require_backward_grad_sync, module.require_forward_param_sync) for module in self.replicas
        ]
        for module in self.replicas:
            _reduce_at_the_end(module)
            module.require_backward_grad_sync = module.require_forward_param_sync = False
        for state in self._states:
            state._register_root_post_backward_final_callback()
        outer = torch._C._current_graph_task_id()
        handles = [module.register_forward_hook(partial(_reshard, outer)) for module in self.shards]
        self.settle()
        try:
            yield
        finally:
            self.settle()
            for handle in handles:
                handle.remove()
            for module, backward, forward in before:
                module.require_backward_grad_sync, module.require_forward_param_sync = backward, forward

    def settle(self) -> None:
        """After a backward pass through a step: it was none, for the wrappers."""
        for state in self._states:
            idle = type(state._training_state).IDLE
            state._training_state = idle
            for group in _groups(state):
                group._training_state = idle

    @property
    def _states(self) -> list[Any]:
        return [module._get_fsdp_state() for module in self.shards]


def refuse_flat_parameters(leaves: Iterable[Tensor]) -> None:
    """Raise for weights that ``FullyShardedDataParallel`` holds, wherever it wraps them."""
    if any(isinstance(leaf, _fsdp("FlatParameter")) for leaf in leaves):
        _refuse_flat_parameters()


def _refuse_flat_parameters() -> NoReturn:
    raise RuntimeError(
        "network: FullyShardedDataParallel (FSDP1) holds its weights, and frees them behind the back of a step that is "
        "recomputed; apply fully_shard (FSDP2) to the network's blocks and to the whole Sampler in its place, or pass "
        "adjoint=Direct()"
    )


def _fsdp(name: str) -> type[Any]:
    """A class of ``torch.distributed.fsdp``; one without instances where nobody has imported it yet."""
    found: type[Any] = getattr(sys.modules.get("torch.distributed.fsdp"), name, _Nothing)
    return found


class _Nothing:
    """Has no instances."""


def _reduce_at_the_end(module: DistributedDataParallel) -> None:
    """With ``static_graph`` the first reduction waits for the end of the outermost backward pass: ask for it there."""
    if module.static_graph and not module._static_graph_delay_allreduce_enqueued:
        engine: Any = torch.autograd.Variable._execution_engine
        reducer: Any = module.reducer
        engine.queue_callback(reducer._delay_all_reduce)
        module._static_graph_delay_allreduce_enqueued = True


def _groups(state: Any) -> Sequence[Any]:
    """The parameters that are gathered together; in earlier releases a module has one such group."""
    several = vars(state).get("_fsdp_param_groups")
    if several is not None:
        return tuple(several)
    return () if state._fsdp_param_group is None else (state._fsdp_param_group,)


def _reshard(outer: int, module: Any, args: Any, output: Any) -> None:
    """Free gathered weights after a recomputed pass, as after a forward one; not within activation checkpoints."""
    groups = _groups(module._get_fsdp_state())
    if torch._C._current_graph_task_id() == outer and any(group._reshard_after_forward for group in groups):
        module.reshard()

"""Hooks that users registered on leaves: they are for a gradient's total, and not for the part of a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

Hook = Callable[[Tensor], Tensor | None]
Hooks = MutableMapping[int, Hook]

_LOCK = threading.Lock()
_PASSES: set[int] = set()
"""Numbers of the backward passes, of any thread, that go through a step."""
_SWEEPS: dict[int, int] = {}
"""How many backward sweeps want the hooks in a dictionary to be muted, by its identity."""


@dataclass(frozen=True)
class _Muted:
    """A hook that is silent in backward passes through a step, and as ever in all others."""

    hook: Hook

    def __call__(self, grad: Tensor) -> Tensor | None:
        return None if torch._C._current_graph_task_id() in _PASSES else self.hook(grad)


@dataclass(frozen=True)
class Summed:
    """A hook that gives a leaf's gradient away at once, in the passes of one sweep, for what ``add`` returns."""

    add: Callable[[Tensor], Tensor | None]
    passes: set[int]

    def __call__(self, grad: Tensor) -> Tensor | None:
        return self.add(grad) if torch._C._current_graph_task_id() in self.passes else None


class MutedHooks:
    """Inside, ``differentiate`` does not call the hooks of these leaves; backward passes of other threads do.

    The hooks are muted where they stand, in the dictionaries of their leaves: users may register and remove others.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        leaves = [tensor for tensor in tensors if tensor.is_leaf]
        self._hooks: list[Hooks] = [hooks for tensor in leaves if (hooks := tensor._backward_hooks)]
        accumulated = (getattr(tensor, "_post_accumulate_grad_hooks", None) for tensor in leaves)
        self._all: list[MutableMapping[int, Any]] = [*self._hooks, *(hooks for hooks in accumulated if hooks)]
        self._passes = set[int]()
        self._summed = list[RemovableHandle]()

    def sum_at_once(self, leaf: Tensor, add: Callable[[Tensor], Tensor | None]) -> None:
        """Until the exit, call ``add`` with each part of a leaf's gradient as soon as it is there."""
        self._summed.append(leaf.register_hook(Summed(add, self._passes)))

    def __enter__(self) -> MutedHooks:
        with _LOCK:
            for hooks in self._hooks:
                _SWEEPS[id(hooks)] = _SWEEPS.get(id(hooks), 0) + 1
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._summed:
            handle.remove()
        with _LOCK:
            for hooks in self._hooks:
                _SWEEPS[id(hooks)] -= 1
                if _SWEEPS[id(hooks)] == 0:
                    del _SWEEPS[id(hooks)]
                    hooks.update({key: hook.hook for key, hook in hooks.items() if isinstance(hook, _Muted)})

    def registered(self) -> list[set[int]]:
        """The keys of all hooks, for ``forget_others``."""
        return [set(hooks) for hooks in self._all]

    def forget_others(self, known: Sequence[set[int]]) -> None:
        """Drop hooks that a recomputation has registered, as the forward pass did before."""
        for hooks, keys in zip(self._all, known, strict=True):
            for key in hooks.keys() - keys:
                del hooks[key]

    def differentiate(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        seeds: Sequence[Tensor],
        *,
        retain_graph: bool,
        create_graph: bool = False,
        at_once: bool = False,
    ) -> tuple[Tensor | None, ...]:
        """``torch.autograd.grad`` through a step, None for what the outputs do not depend on.

        ``at_once``: gradients are summed by ``sum_at_once``, and what that returns is found in their place.
        """
        if not inputs:
            return ()
        with _LOCK:
            for hooks in self._hooks:
                others = {key: hook for key, hook in hooks.items() if not isinstance(hook, _Muted | Summed)}
                hooks.update({key: _Muted(hook) for key, hook in others.items()})

        passes = self._passes if at_once else set[int]()

        def begin(_: Any) -> None:
            passes.add(number := torch._C._current_graph_task_id())
            _PASSES.add(number)

        told = self._hooks or self._summed
        nodes = {output.grad_fn for output in outputs if output.grad_fn is not None} if told else set()
        handles = [node.register_prehook(begin) for node in nodes]
        try:
            return torch.autograd.grad(
                outputs, inputs, seeds, allow_unused=True, retain_graph=retain_graph, create_graph=create_graph
            )
        finally:
            for handle in handles:
                handle.remove()
            _PASSES.difference_update(passes)
            passes.clear()

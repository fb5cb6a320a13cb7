"""The one way to hang something on an optimizer's step, whatever holds or wraps the optimizer."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from torchridge.training.sums import local

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
# All wrappers that torch puts around a `step` share one code object, by which a call within a call is found.
_WRAPPER = Optimizer.profile_hook_step(lambda self: None).__code__

HookT = TypeVar("HookT", bound="StepHook")


class StepHook:
    """Work done before (and after) every step of an optimizer, until it is removed.

    It acts once per step, also if a subclass's `step` calls that of its parent and torch runs the hooks of both; not
    at the step with learning rate 0 that torch takes to make the states of a fresh optimizer. It goes with the
    optimizer through `load_state_dict`, `add_param_group`, `copy.deepcopy` and pickle.

    Attributes:
        optimizer: The optimizer whose own `step` calls it, which may lie within the one that was given.
        moves_weights: Whether it changes the weights themselves, past what the optimizer keeps of them.
        holds_decay: Whether it has taken the weight decay of the groups over.
    """

    optimizer: Optimizer
    moves_weights: bool = False
    holds_decay: bool = False

    def attach(self, optimizer: Optimizer, *, first: bool = False) -> None:
        """Begin to act on an optimizer that :func:`steppable` returned, `first` ahead of the hooks on it."""
        self.optimizer = optimizer
        handle = optimizer.register_step_pre_hook(self._enter)
        if first:
            hooks = optimizer._optimizer_step_pre_hooks
            hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]  # an OrderedDict
        optimizer.register_step_post_hook(self._leave)
        optimizer.register_state_dict_post_hook(self._saved)
        optimizer.register_load_state_dict_post_hook(self._loaded)
        _carry_hooks(optimizer)

    def remove(self) -> None:
        """Take the hook off the optimizer."""
        for name in _HOOKS:
            hooks = getattr(self.optimizer, name)
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Act before a step; may return other arguments for it."""

    def _after_step(self, optimizer: Optimizer) -> None:
        """Act after a step."""

    def _saved(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Act on what `optimizer.state_dict()` is about to return."""

    def _loaded(self, optimizer: Optimizer) -> None:
        """Act after `optimizer.load_state_dict()`, which replaces the groups."""

    def _enter(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (
            None
            if _within_its_step(optimizer) or makes_states(optimizer)
            else self._before_step(optimizer, args, kwargs)
        )

    def _leave(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _within_its_step(optimizer):
            self._after_step(optimizer)


def installed(optimizer: Optimizer, kind: type[HookT]) -> list[HookT]:
    """The hooks of one kind on an optimizer."""
    hooks = getattr(optimizer, _HOOKS[0], {}).values()
    return [hook.__self__ for hook in hooks if isinstance(getattr(hook, "__self__", None), kind)]


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure that a step was called with; `args` begin with the optimizer."""
    closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
    return closure


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a step with another closure."""
    return ((args[0], closure, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closure})


def steppable(optimizer: Any) -> Optimizer:
    """Find the optimizer whose step calls hooks: the given one, or the one that it holds.

    A wrapper over the groups of another (`accelerator.prepare`, Lookahead, SAM) only passes the step on, and a hook
    on the inner one acts as that one's own `weight_decay`. One with groups of its own (`ZeroRedundancyOptimizer`)
    copies them to the inner one at each step, and is hooked itself.

    Raises:
        TypeError: If it is not an optimizer.
        ValueError: If its step would never call a hook, and it holds no optimizer, or several, whose step would.
    """
    inner = _held(optimizer)
    if len(inner) == 1 and _shares_groups(optimizer, inner[0]):
        return steppable(inner[0])
    if _calls_hooks(optimizer):
        found: Optimizer = optimizer
        return found
    if len(inner) == 1:
        return steppable(inner[0])
    name = type(optimizer).__name__
    if len(inner) > 1:
        raise ValueError(
            f"`optimizer` is {name}, which holds {len(inner)} optimizers and calls no hook of its own; expected one. "
            f"Pass each of those that it holds."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {name}.")
    raise ValueError(
        f"`optimizer` is {name}, whose `step` would never call a hook: its `__init__` does not call that of "
        f"torch.optim.Optimizer, and it holds no optimizer that would. Pass the optimizer that it was made from, or "
        f"add `penalty(model)` to the loss."
    )


def holds_optimizer(optimizer: Any) -> bool:
    """Whether this is an optimizer, or something that holds one."""
    return isinstance(optimizer, Optimizer) or bool(_held(optimizer))


def innermost(optimizer: Any) -> Any:
    """The optimizer that a wrapper with the same groups passes its step on to."""
    inner = _held(optimizer)
    return innermost(inner[0]) if len(inner) == 1 and _shares_groups(optimizer, inner[0]) else optimizer


def makes_states(optimizer: Optimizer) -> bool:
    """Whether this step is not training: torch steps a fresh optimizer on zero gradients at lr 0 to make its states.

    `torch.distributed.checkpoint.state_dict` does, to have something to save or to load into.
    """
    if torch.compiler.is_compiling() or optimizer.state:
        return False
    if any(_moves(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(grads) and not any(grad.is_sparse or bool(local(grad).any()) for grad in grads)


def _moves(lr: Any) -> bool:
    # The zero that torch puts in place of a tensor lies on the CPU, so none on another device needs to be read.
    return lr.device.type != "cpu" or bool(lr != 0) if isinstance(lr, torch.Tensor) else lr != 0


def _held(optimizer: Any) -> list[Any]:
    """The optimizers among an object's attributes, each once."""
    values = getattr(optimizer, "__dict__", {}).values() if not isinstance(optimizer, type) else ()
    return list({id(v): v for v in values if v is not optimizer and _is_optimizer(v)}.values())


def _is_optimizer(value: Any) -> bool:
    if isinstance(value, Optimizer):
        return True
    return not isinstance(value, type) and hasattr(value, "param_groups") and callable(getattr(value, "step", None))


def _shares_groups(outer: Any, inner: Any) -> bool:
    groups = {id(group) for group in inner.param_groups}
    return any(id(group) in groups for group in getattr(outer, "param_groups", ()))


def _calls_hooks(optimizer: Any) -> bool:
    # `Optimizer.__init__` wraps the class's `step` and makes the dictionaries of hooks.
    if not isinstance(optimizer, Optimizer) or any(name not in vars(optimizer) for name in _HOOKS):
        return False
    return bool(getattr(type(optimizer).step, "hooked", False))


def _within_its_step(optimizer: Optimizer) -> bool:
    if torch.compiler.is_compiling():
        return False
    return sum(1 for _ in _running(optimizer)) > 1


def _running(optimizer: Optimizer) -> Iterator[None]:
    """One for each call of a wrapped `step` of the optimizer that is under way."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _WRAPPER and frame.f_locals.get("self") is optimizer:
            yield
        frame = frame.f_back  # type: ignore[assignment]


def _carry_hooks(optimizer: Optimizer) -> None:
    """Let copies and pickles of the optimizer take our hooks along; torch leaves all hooks behind."""
    if "__getstate__" not in vars(optimizer):
        optimizer.__getstate__ = partial(_state_with_hooks, optimizer)  # type: ignore[method-assign]


def _state_with_hooks(optimizer: Optimizer) -> Any:
    state = type(optimizer).__getstate__(optimizer)
    ours: dict[str, Any] = {name: _ours(getattr(optimizer, name)) for name in _HOOKS}
    return {**state, **ours, "__getstate__": optimizer.__getstate__} if ours[_HOOKS[0]] else state


def _ours(hooks: dict[int, Any]) -> OrderedDict[int, Any]:
    return OrderedDict((key, h) for key, h in hooks.items() if isinstance(getattr(h, "__self__", None), StepHook))

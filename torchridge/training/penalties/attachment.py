"""What a module carries: the regularizers of its own tensors and of its output, and the penalties of its outputs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from torchridge.training.penalties.regularizers import Penalty
from torchridge.training.sums import accumulation_dtype

_ATTRIBUTE = "_torchridge_attachment"


class Attachment:
    """The regularizers on one module. Copied and pickled with it, but for the penalties of past outputs.

    Attributes:
        weights: Name of a tensor on the module -> its regularizer.
        activity: The regularizer of the module's output.
        values: One penalty for each call of the module since they were cleared.
        in_loss: The tensors whose penalty has been differentiated as part of a loss since a step last asked.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Penalty] = {}
        self.activity: Penalty | None = None
        self.values: list[Tensor] = []
        self.in_loss: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # A penalty of an output hangs on an autograd graph, which can be neither copied nor pickled.
        return {**self.__dict__, "values": [], "in_loss": set()}


def attachment(module: nn.Module) -> Attachment | None:
    """What the module itself carries; not what a wrapper's `__getattr__` would fetch from within."""
    found: Attachment | None = module.__dict__.get(_ATTRIBUTE)
    return found


def attach_weight(module: nn.Module, name: str, regularizer: Penalty | None) -> None:
    """Put a regularizer on one tensor of a module in place of any earlier one; None takes it off."""
    carried = _ensured(module)
    carried.weights.pop(name, None)
    if regularizer is not None:
        carried.weights[name] = regularizer


def attach_activity(module: nn.Module, regularizer: Penalty | None) -> None:
    """Put a regularizer on the output of a module in place of any earlier one; None takes it off."""
    carried = _ensured(module)
    carried.activity = regularizer
    carried.values = []
    _unhook(module._forward_hooks, record_activity)
    if regularizer is not None:
        module.register_forward_hook(record_activity)


def clear_at_forward(root: nn.Module) -> None:
    """Let each forward of `root`, and of no module within, begin by clearing the penalties of past outputs."""
    for module in root.modules():
        _unhook(module._forward_pre_hooks, clear_activities)
    root.register_forward_pre_hook(clear_activities)


def detach_all(root: nn.Module) -> None:
    """Take every regularizer and hook off a module and all modules within."""
    for module in root.modules():
        _unhook(module._forward_pre_hooks, clear_activities)
        _unhook(module._forward_hooks, record_activity)
        module.__dict__.pop(_ATTRIBUTE, None)


def carriers(root: nn.Module) -> Iterator[tuple[str, nn.Module, Attachment]]:
    """Yield name, module and attachment of every module that carries one, each once."""
    for name, module in root.named_modules():
        carried = attachment(module)
        if carried is not None:
            yield name, module, carried


def forget_backward(attachments: Iterable[Attachment]) -> None:
    """Forget which penalties were differentiated as part of a loss."""
    for carried in attachments:
        carried.in_loss.clear()


def record_activity(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: keep the penalty of the output, divided by the batch size."""
    carried = attachment(module)
    if carried is None or carried.activity is None:
        return
    _refuse_reentrant_checkpoint(module)
    first = _first_tensor(output)
    value = carried.activity(first.to(accumulation_dtype(first.dtype)) if first.is_floating_point() else first)
    value = value / max(1, _batch_size(module, first))
    if not _recomputing():
        carried.values.append(value)


def clear_activities(root: nn.Module, args: Any) -> None:
    """Forward pre-hook: forget the penalties of past outputs, of the module and of all within."""
    if _recomputing():
        return
    for module in root.modules():
        carried = attachment(module)
        if carried is not None:  # not whether there are values: that would be one more thing to recompile for
            carried.values = []


def _ensured(module: nn.Module) -> Attachment:
    carried = attachment(module)
    if carried is None:
        carried = module.__dict__[_ATTRIBUTE] = Attachment()
    return carried


def _unhook(hooks: dict[int, Any], hook: Any) -> None:
    for key in [key for key, value in hooks.items() if value is hook]:
        del hooks[key]


def _first_tensor(output: Any) -> Tensor:
    """The output itself: not the states or attention weights that recurrent and attention modules return with it."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    raise TypeError(
        f"`activity` needs a module whose output is a tensor, or a tuple that begins with one, got "
        f"{type(output).__name__}. Attach it to a module within."
    )


def _batch_size(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Linear):
        return output.shape[0] if output.ndim > 1 else 1
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return output.shape[0 if module.batch_first else 1] if output.ndim > 2 else 1
    return output.shape[0] if output.ndim else 1


def _recomputing() -> bool:
    """Whether this forward runs within a backward pass: activation checkpointing computes it a second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _refuse_reentrant_checkpoint(module: nn.Module) -> None:
    """Raise under reentrant checkpointing, whose forward keeps no graph: the penalty's gradient would be lost."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            raise RuntimeError(
                f"{type(module).__name__} has an `activity` regularizer and was called under "
                f"`torch.utils.checkpoint` with `use_reentrant=True`, which would lose the penalty's gradient; "
                f"expected `use_reentrant=False`. Pass that, or call `clear_regularizers(model)`."
            )
        frame = frame.f_back  # type: ignore[assignment]

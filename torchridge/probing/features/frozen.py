"""A model lent for reading: evaluated without gradients, and handed back exactly as it was found."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Hook = Callable[[nn.Module, Any, Any], None]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` without gradients; give back modes, buffers and the state of every random generator."""
    with ExitStack() as stack:
        stack.enter_context(_same_random_state(model))
        stack.enter_context(_same_buffers(model))
        stack.enter_context(_evaluation(model))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    try:
        # The flag, not `eval()`: some models override that method and merge weights in it.
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    found = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, copy in found:
                module._buffers[name] = buffer
                if not torch.equal(buffer, copy):
                    buffer.copy_(copy)


@contextmanager
def _same_random_state(model: nn.Module) -> Iterator[None]:
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], hook: Callable[[str], Hook]) -> Iterator[None]:
    """Watch the outputs of modules; the hooks are gone afterwards, whatever happened."""
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def to_device(value: Any, device: torch.device) -> Any:
    """Return tensors in nested lists, tuples and mappings on another device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_device(v, device) for v in value]
    return value


def call(model: nn.Module, inputs: Any) -> Any:
    """Run the model on a tensor, a tuple of arguments, or a mapping of named ones, moved to its device."""
    first = next(model.parameters(), None)
    moved = inputs if first is None else to_device(inputs, first.device)
    if isinstance(moved, Mapping):
        return model(**moved)
    return model(*moved) if isinstance(moved, (list, tuple)) else model(moved)

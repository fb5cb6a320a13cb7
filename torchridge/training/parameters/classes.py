"""The class that a module was written as, even if `fully_shard`, `torch.jit` or `torch.export` replaced it."""

from __future__ import annotations

import sys
from functools import lru_cache

import torch
from torch import nn

_DERIVED = ("torch.nn.utils.param", "torch.distributed")


def exported_classes(model: nn.Module) -> dict[int, type]:
    """The classes of the plain modules that `torch.export` leaves, by `id`: the graph still knows them."""
    found: dict[int, type] = {}
    graphs = [m for m in model.modules() if isinstance(m, torch.fx.GraphModule)]
    for graph in graphs:
        modules = dict(graph.named_modules())
        for node in graph.graph.nodes:
            for path, cls in (node.meta.get("nn_module_stack") or {}).values():
                module = modules.get(path)
                if module is not None and type(module) is nn.Module:
                    found[id(module)] = cls if isinstance(cls, type) else _resolve(str(cls))
    return found


def class_of(module: nn.Module) -> type:
    """The class as its author called it; for a module that only kept the name, torch's of that name or a stand-in."""
    if isinstance(module, torch.jit.ScriptModule):
        return _resolve(str(getattr(module, "original_name", type(module).__name__)))
    unflattened = getattr(type(module), "type_name", None)
    if callable(unflattened) and type(module).__module__.startswith("torch.export"):
        return _resolve(str(module.type_name() or "Module"))  # type: ignore[operator]
    return next((cls for cls in type(module).__mro__ if not cls.__module__.startswith(_DERIVED)), nn.Module)


@lru_cache(maxsize=1024)
def _resolve(qualified: str) -> type:
    place, _, name = qualified.rpartition(".")
    found = getattr(sys.modules.get(place) if place else nn, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else type(name, (nn.Module,), {})

"""Regularizers by name and by config: `get`, `serialize`, `deserialize`, in the manner of Keras 3."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torchridge.training.penalties.regularizers import L1, L1L2, L2, OrthogonalRegularizer, Regularizer

_PUBLIC_MODULE = "torchridge.regularizers"

# A new regularizer is a class and a line here, for each name that it goes by.
CLASSES: dict[str, type[Regularizer]] = {
    "Regularizer": Regularizer,
    "regularizer": Regularizer,
    "L1": L1,
    "l1": L1,
    "L2": L2,
    "l2": L2,
    "L1L2": L1L2,
    "l1l2": L1L2,
    "l1_l2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
    "orthogonal_regularizer": OrthogonalRegularizer,
    "orthogonal": OrthogonalRegularizer,
}


def get(identifier: object) -> Any:
    """Return a regularizer from a name, a config, a class or a callable; None stays None.

    `"l1_l2"` has both strengths at 0.01, as Keras documents. `"l1l2"` is `L1L2()`, as in Keras: it penalizes nothing.

    Args:
        identifier: A name such as `"l2"` or `"L1L2"`, a dict as `serialize` writes it, a subclass of `Regularizer`
            (called without arguments), or anything callable, which is returned as it is.

    Raises:
        ValueError: If `identifier` is none of these.

    Example:
        >>> get("l2"), get("l1_l2"), get({"class_name": "L1", "config": {"l1": 0.1}})
        (L2(l2=0.01), L1L2(l1=0.01, l2=0.01), L1(l1=0.1))
    """
    if identifier is None:
        return None
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    if isinstance(identifier, str) and identifier == "l1_l2":
        return L1L2(l1=0.01, l2=0.01)
    found = CLASSES.get(identifier) if isinstance(identifier, str) else identifier
    if not callable(found):
        raise ValueError(
            f"Could not interpret regularizer identifier: {identifier!r}. Expected `None`, one of "
            f"{sorted(CLASSES)}, a config dict, or a callable such as `L2(0.01)`."
        )
    return found() if inspect.isclass(found) else found


def serialize(regularizer: object) -> Any:
    """Return a regularizer as a dict of plain values, which `deserialize` and Keras's own read back.

    Args:
        regularizer: A regularizer, or a function by name; None and names are returned as they are.

    Raises:
        NotImplementedError: If a subclass of `Regularizer` does not define `get_config`.
        TypeError: If `regularizer` is neither a regularizer nor a named function.

    Example:
        >>> serialize(L2(0.1))
        {'module': 'torchridge.regularizers', 'class_name': 'L2', 'config': {'l2': 0.1}, 'registered_name': None}
    """
    if regularizer is None or isinstance(regularizer, str):
        return regularizer
    if isinstance(regularizer, FunctionType) and regularizer.__name__ != "<lambda>":
        name = regularizer.__name__
        return _described(regularizer.__module__, "function", name, name)
    if not hasattr(regularizer, "get_config"):
        raise TypeError(
            f"`regularizer` should be a Regularizer or a named function, got {regularizer!r}. "
            f"Subclass `Regularizer` and define `get_config`."
        )
    cls = type(regularizer)
    if CLASSES.get(cls.__name__) is cls:
        return _described(_PUBLIC_MODULE, cls.__name__, regularizer.get_config(), None)
    return _described(cls.__module__, cls.__name__, regularizer.get_config(), cls.__name__)


def deserialize(config: object, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Return the regularizer that a dict describes, be it from `serialize` or from Keras. Nothing is imported.

    Args:
        config: A dict with `class_name` and `config`, a name, or None.
        custom_objects: Classes of your own, and functions, by the name under which they were serialized.

    Raises:
        ValueError: If `config` names no class, or one that is neither built in nor among `custom_objects`.

    Example:
        >>> deserialize(serialize(L1L2(0.1, 0.2)))
        L1L2(l1=0.1, l2=0.2)
    """
    custom = dict(custom_objects or {})
    if config is None or isinstance(config, str):
        return custom[config] if config in custom else get(config)
    if not isinstance(config, Mapping) or "class_name" not in config:
        raise ValueError(
            f"Unknown `config`, got {config!r}; expected a dict with 'class_name' and 'config', as `serialize` writes."
        )
    name = config["config"] if config["class_name"] == "function" else config["class_name"]
    found = custom.get(name, CLASSES.get(name))
    if found is None:
        raise ValueError(
            f"`config` describes {name!r}, which is not built in (got module {config.get('module')!r}). "
            f"Pass it, e.g. `custom_objects={{{name!r}: {name}}}`."
        )
    return found if config["class_name"] == "function" else found.from_config(config.get("config") or {})


def _described(module: str, class_name: str, config: Any, registered_name: str | None) -> dict[str, Any]:
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}

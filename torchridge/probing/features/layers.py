"""Which modules of a model are probed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy

_WRAPPERS = ("_orig_mod.", "module.")


def find_layers(model: nn.Module, layers: str | Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules whose dotted name matches a pattern, in the model's order.

    `*` stands for anything within one part of the name, `**` for any number of parts: "encoder.layer.*" names the
    layers and not what is inside them. Wrappers of `torch.compile` and DDP are left out of the names.

    Raises:
        TypeError: if `model` is not a module or `layers` does not hold strings.
        ValueError: if a pattern matches nothing, or the model has parameters that are not initialized.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` should be a torch.nn.Module, got {type(model).__name__}.")
    patterns = [layers] if isinstance(layers, str) else list(layers) if isinstance(layers, Iterable) else []
    if not patterns or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"`layers` should be a pattern or several, e.g. 'encoder.layer.*', got {layers!r}.")
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("`model` has lazy parameters, which a first forward would change. Run one batch beforehand.")
    named = {_plain(name): module for name, module in model.named_modules() if name}
    if not named:
        raise ValueError(
            f"`model` is a single {type(model).__name__} with no modules within; expected layers to probe. Pass "
            f"`nn.Sequential(model)`, or give its outputs to `LinearProbe`."
        )
    rules = [_compiled(p) for p in patterns]
    for pattern, rule in zip(patterns, rules, strict=True):
        if not any(rule.fullmatch(name) for name in named):
            known = ", ".join(list(named)[:12])
            raise ValueError(f"`layers`: {pattern!r} matches no module. The model has {known}{_more(named)}.")
    return {name: module for name, module in named.items() if any(r.fullmatch(name) for r in rules)}


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    return re.compile("".join(wild.get(p, re.escape(p)) for p in parts))


def _more(named: dict[str, nn.Module]) -> str:
    return f" and {len(named) - 12} more" if len(named) > 12 else ""

"""What is a weight: the one judgement that weight decay and penalties share.

The type of the module that a parameter serves decides first, then what it is called there, then its shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from torchridge.training.parameters.classes import class_of
from torchridge.training.parameters.names import (
    Kind,
    is_bias_class,
    is_embedding_class,
    is_norm_class,
    is_projection_class,
    is_weight_name,
    kind_of_leaf,
    kind_of_table,
)
from torchridge.training.parameters.sites import Site, sites

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.CrossMapLRN2d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WEIGHT_LEAVES: tuple[tuple[tuple[type[nn.Module], ...], re.Pattern[str]], ...] = (
    ((nn.Linear, nn.Bilinear, _ConvNd), re.compile("weight")),
    ((nn.MultiheadAttention,), re.compile("(in|q|k|v)_proj_weight")),
    ((nn.RNNBase, nn.RNNCellBase), re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?")),
)

_HEADS = ("num_heads", "n_heads", "n_head", "nheads", "heads", "num_attention_heads", "num_v_heads", "num_kv_heads")
_HEAD_SIZES = (
    "head_dim",
    "head_size",
    "dim_head",
    "headdim",
    "d_head",
    "attention_head_size",
    "head_k_dim",
    "head_v_dim",
)


class _Verdict(NamedTuple):
    kind: Kind
    reason: str


@dataclass(frozen=True, eq=False)
class Judgement:
    """What one parameter of a model is, and whether L2 applies to it.

    Attributes:
        name: The name in the model's state dict, without the prefixes of wrappers (`_orig_mod.`, `module.`, ...).
        parameter: The parameter.
        owner: The module that it serves.
        leaf: What that module calls it, e.g. `weight`.
        decay: Whether it is a weight, which L2 applies to. Frozen parameters are judged alike: see `trainable`.
        reason: Why, in words.
        kind: `weight` and `embedding` are decayed; `bias`, `norm`, `scale`, `token`, `vector` and `exempt` are not.
        sites: Every place where the model holds it, the one of `name` first.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    leaf: str
    decay: bool
    reason: str
    kind: Kind
    sites: tuple[Site, ...]

    @property
    def aliases(self) -> tuple[str, ...]:
        """The other names of a tied parameter."""
        return tuple(site.name for site in self.sites[1:])

    @property
    def trainable(self) -> bool:
        """Whether the parameter requires a gradient now."""
        return self.parameter.requires_grad


def judge(model: nn.Module) -> list[Judgement]:
    """Judge every parameter of a model once, tied ones too, in the order of `model.named_parameters()`.

    A tied parameter that is a weight in one of its places is a weight. Nothing is changed on the model. A module's own
    `no_weight_decay()` counts at any depth, and so do `_no_weight_decay` and `_optim = {"weight_decay": ...}` on a
    parameter; `fully_shard` makes new parameters and loses both, so set them again after sharding.

    Args:
        model: Any module, also one under `torch.compile`, DDP, FSDP2 or activation-checkpoint wrappers.

    Returns:
        One judgement a parameter.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If the model holds FSDP1's flat parameters, or a lazy parameter that only its shape could judge.

    Cost: one walk over the modules; no tensor is read.

    Example:
        >>> for j in judge(nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1))):
        ...     print(j.name, j.decay, j.reason)
        0.weight True weight of Linear
        0.bias False bias of Linear
        1.weight False parameter of LayerNorm, a normalization
        1.bias False parameter of LayerNorm, a normalization
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` should be a torch.nn.Module, got {type(model).__name__}. "
            f"Pass the model itself, not `model.parameters()`: the modules are needed to judge."
        )
    found: dict[int, list[Site]] = {}
    for site in sites(model):
        found.setdefault(id(site.parameter), []).append(site)
    declared = _Declared(model)
    return [_judge_parameter(tuple(places), declared) for places in found.values()]


class _Declared:
    """What the modules say themselves, by `no_weight_decay()` and `no_weight_decay_keywords()` as timm calls them."""

    def __init__(self, model: nn.Module) -> None:
        self._by_module: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for module in model.modules():
            names = _declaration(module, "no_weight_decay")
            keywords = _declaration(module, "no_weight_decay_keywords")
            if names or keywords:
                self._by_module[id(module)] = (names, keywords)

    def __call__(self, site: Site) -> str | None:
        """The class whose declaration covers the parameter."""
        if not self._by_module:
            return None
        for depth, module in enumerate(site.enclosing):
            names, keywords = self._by_module.get(id(module), ((), ()))
            relative = _relative_names(site, depth) if names or keywords else ()
            if any(fnmatchcase(name, pattern) for name in relative for pattern in names) or any(
                word in name for name in relative for word in keywords
            ):
                return class_of(module).__name__
        return None


def _declaration(module: nn.Module, method: str) -> tuple[str, ...]:
    # On the class, not the instance: wrappers that forward attributes would declare the same twice.
    if not callable(getattr(type(module), method, None)):
        return ()
    return tuple(getattr(module, method)())


def _relative_names(site: Site, depth: int) -> tuple[str, ...]:
    """The parameter's names as seen from the enclosing module at `depth`."""
    prefix = site.enclosing_names[depth]
    return tuple(name[len(prefix) + 1 if prefix else 0 :] for name in (site.name, site.short_name))


def _judge_parameter(places: tuple[Site, ...], declared: _Declared) -> Judgement:
    first = places[0]
    kind, reason = _combine([_judge_site(site, declared) for site in places])
    if len(places) > 1:
        reason += "; tied with " + ", ".join(f"`{site.name}`" for site in places[1:])
    return Judgement(
        name=first.name,
        parameter=first.parameter,
        owner=first.owner,
        leaf=first.leaf,
        decay=kind in ("weight", "embedding"),
        reason=reason,
        kind=kind,
        sites=places,
    )


def _combine(verdicts: list[_Verdict]) -> _Verdict:
    """A declaration outranks all; then a weight in one place is a weight."""
    for kind in ("exempt", "weight", "embedding"):
        for verdict in verdicts:
            if verdict.kind == kind:
                return verdict
    return verdicts[0]


def _judge_site(site: Site, declared: _Declared) -> _Verdict:
    _refuse_flat(site)
    said = _by_declaration(site, declared)
    return said or _by_owner(site) or _by_leaf(site) or _by_shape(site)


def _refuse_flat(site: Site) -> None:
    if getattr(site.parameter, "_is_flat_param", False) or type(site.parameter).__name__ == "FlatParameter":
        raise ValueError(
            f"`model` holds `{site.name}`, a flat parameter of FSDP1, which mixes weights and biases in one tensor; "
            f"expected separate parameters. Shard with `torch.distributed.fsdp.fully_shard` instead."
        )


def _by_declaration(site: Site, declared: _Declared) -> _Verdict | None:
    if getattr(site.parameter, "_no_weight_decay", False):
        return _Verdict("exempt", "marked `_no_weight_decay` on the parameter")
    if asked_weight_decay(site.parameter) == 0.0:
        return _Verdict("exempt", "`_optim` on the parameter has weight_decay 0")
    owner = declared(site)
    return _Verdict("exempt", f"listed by `no_weight_decay()` of {owner}") if owner else None


def asked_weight_decay(parameter: nn.Parameter) -> float | None:
    """The strength in the `_optim` that a parameter carries, as state-space models write it."""
    optim = getattr(parameter, "_optim", None)
    asked = optim.get("weight_decay") if isinstance(optim, Mapping) else None
    return None if asked is None else float(asked)


def _by_owner(site: Site) -> _Verdict | None:
    owner, leaf, name = site.served, site.leaf, site.served.__name__
    if issubclass(owner, _NORMS) or (not issubclass(owner, _weighted_types()) and is_norm_class(name)):
        return _Verdict("norm", f"parameter of {name}, a normalization")
    if issubclass(owner, nn.PReLU):
        return _Verdict("scale", "slope of PReLU")
    if _is_weight_norm_magnitude(site):
        return _Verdict("scale", f"magnitude of weight_norm on {name}, a gain")
    if leaf == "weight" and (issubclass(owner, _EMBEDDINGS) or is_embedding_class(name)):
        return _table(site)
    if _serves_as_weight(site):
        return _Verdict("weight", f"weight of {name}")
    return None


def _table(site: Site) -> _Verdict:
    """An embedding, or biases and gains that are looked up: then what it is called, or what it is part of, says so."""
    called = next((part for part in reversed(site.owner_name.split(".")) if not part.isdigit()), "")
    around = site.classes[-2].__name__ if len(site.classes) > 1 else ""
    kind = kind_of_table(called)
    if kind is not None:
        return _Verdict(kind, f"table of {site.served.__name__} that is named `{called}`, {_MEANING[kind]}")
    if is_norm_class(around):
        return _Verdict("norm", f"table of gains in {around}, a normalization")
    if is_bias_class(around):
        return _Verdict("bias", f"table of {around}, a bias")
    return _Verdict("embedding", f"table of {site.served.__name__}")


def _weighted_types() -> tuple[type[nn.Module], ...]:
    return tuple(t for types, _ in _WEIGHT_LEAVES for t in types)


def _serves_as_weight(site: Site) -> bool:
    leaf = "weight" if _is_weight_norm_direction(site) else site.leaf
    if any(issubclass(site.served, types) and pattern.fullmatch(leaf) for types, pattern in _WEIGHT_LEAVES):
        return True
    many_axes = is_lazy(site.parameter) or site.sharded_flat or site.parameter.ndim > 1
    return leaf in ("weight", "kernel") and many_axes and _is_projection(site)


def _is_projection(site: Site) -> bool:
    """Whether a class that torch does not know maps features to features, by what it records or is called."""
    for ends in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if all(isinstance(getattr(site.owner, end, None), int) for end in ends):
            return True
    return is_projection_class(site.served.__name__)


def _is_weight_norm_magnitude(site: Site) -> bool:
    new = site.part == "original0" and any(type(p).__name__ == "_WeightNorm" for p in site.parametrizations)
    return new or (site.leaf.endswith("_g") and f"{site.leaf[:-2]}_v" in site.owner._parameters)


def _is_weight_norm_direction(site: Site) -> bool:
    return site.leaf == "weight_v" and "weight_g" in site.owner._parameters


_MEANING: dict[Kind, str] = {
    "bias": "a bias",
    "norm": "a normalization's parameter",
    "scale": "a scale or shift",
    "token": "a learned token or position",
    "embedding": "a table of embeddings",
    "exempt": "a parameter of a recurrence",
}


def _by_leaf(site: Site) -> _Verdict | None:
    leaf, name = site.leaf, site.served.__name__
    kind = kind_of_leaf(leaf)
    siblings = site.owner._parameters
    if leaf in ("D", "Ds", "B", "P", "Q") and any(kind_of_leaf(other) == "exempt" for other in siblings):
        kind = "exempt"
    if leaf in ("query", "queries") and {"key", "value", "keys", "values"} & set(siblings):
        kind = None  # the matrices of an attention
    if kind is None:
        return None
    if kind == "bias" and leaf in ("bias", "biases"):
        return _Verdict("bias", f"bias of {name}")
    return _Verdict(kind, f"`{leaf}` of {name} is named as {_MEANING[kind]}")


def _by_shape(site: Site) -> _Verdict:
    parameter, name = site.parameter, site.served.__name__
    if is_lazy(parameter) or site.sharded_flat:
        state, remedy = (
            ("a lazy parameter without a shape yet", "Run one forward pass first")
            if is_lazy(parameter)
            else ("sharded by FSDP1, which hides its shape", "Shard with `fully_shard` instead")
        )
        raise ValueError(
            f"`{site.name}` of {name} is {state}; expected a shape, since neither the module's type nor the "
            f"name `{site.leaf}` tells whether it is a weight. {remedy}."
        )
    shape = tuple(parameter.shape)
    if sum(size > 1 for size in shape) <= 1:
        return _Verdict("vector", f"`{site.leaf}` of {name} has shape {shape}, at most one axis longer than 1")
    if _is_per_head(site):
        return _Verdict("vector", f"`{site.leaf}` of {name} has shape {shape}, a vector for each head")
    return _Verdict("weight", f"`{site.leaf}` of {name} has shape {shape}, a matrix")


def _is_per_head(site: Site) -> bool:
    """Whether the shape is (heads, size of a head), as the module records them, and the name not that of a weight."""
    axes = tuple(size for size in site.parameter.shape if size > 1)
    if len(axes) != 2 or is_weight_name(site.leaf):
        return False
    recorded = [{getattr(site.owner, name, None) for name in names} for names in (_HEADS, _HEAD_SIZES)]
    return axes[0] in recorded[0] and axes[1] in recorded[1]

"""What the owner of a parameter, its name and its shape say about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

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
from torchridge.training.parameters.sites import Site

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


class Verdict(NamedTuple):
    """The kind of a parameter, and what says so."""

    kind: Kind
    reason: str


def by_owner(site: Site) -> Verdict | None:
    """Judge by the type of the owner, or return None."""
    owner, leaf, name = site.served, site.leaf, site.served.__name__
    if issubclass(owner, _NORMS) or (not issubclass(owner, _weighted_types()) and is_norm_class(name)):
        return Verdict("norm", f"parameter of {name}, a normalization")
    if issubclass(owner, nn.PReLU):
        return Verdict("scale", "slope of PReLU")
    if _is_weight_norm_magnitude(site):
        return Verdict("scale", f"magnitude of weight_norm on {name}, a gain")
    if leaf == "weight" and (issubclass(owner, _EMBEDDINGS) or is_embedding_class(name)):
        return _table(site)
    if _serves_as_weight(site):
        return Verdict("weight", f"weight of {name}")
    return None


def _table(site: Site) -> Verdict:
    """An embedding, or biases and gains that are looked up: then what it is called, or what it is part of, says so."""
    called = next((part for part in reversed(site.owner_name.split(".")) if not part.isdigit()), "")
    around = site.classes[-2].__name__ if len(site.classes) > 1 else ""
    kind = kind_of_table(called)
    if kind is not None:
        return Verdict(kind, f"table of {site.served.__name__} that is named `{called}`, {_MEANING[kind]}")
    if is_norm_class(around):
        return Verdict("norm", f"table of gains in {around}, a normalization")
    if is_bias_class(around):
        return Verdict("bias", f"table of {around}, a bias")
    return Verdict("embedding", f"table of {site.served.__name__}")


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


def by_leaf(site: Site) -> Verdict | None:
    """Judge by the name of the parameter, or return None."""
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
        return Verdict("bias", f"bias of {name}")
    return Verdict(kind, f"`{leaf}` of {name} is named as {_MEANING[kind]}")


def by_shape(site: Site) -> Verdict:
    """Judge by the shape."""
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
        return Verdict("vector", f"`{site.leaf}` of {name} has shape {shape}, at most one axis longer than 1")
    if _is_per_head(site):
        return Verdict("vector", f"`{site.leaf}` of {name} has shape {shape}, a vector for each head")
    return Verdict("weight", f"`{site.leaf}` of {name} has shape {shape}, a matrix")


def _is_per_head(site: Site) -> bool:
    """Whether the shape is (heads, size of a head), as the module records them, and the name not that of a weight."""
    axes = tuple(size for size in site.parameter.shape if size > 1)
    if len(axes) != 2 or is_weight_name(site.leaf):
        return False
    recorded = [{getattr(site.owner, name, None) for name in names} for names in (_HEADS, _HEAD_SIZES)]
    return axes[0] in recorded[0] and axes[1] in recorded[1]

"""Weights on which L2 does nothing to the function, because the model divides their scale out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from torchridge.exceptions import InertPenaltyWarning, warn
from torchridge.training.parameters.classify import Judgement
from torchridge.training.parameters.sites import Site

_PARAMETRIZED = {"_SpectralNorm": "under spectral_norm", "_Orthogonal": "under orthogonal"}


def inert_weights(model: nn.Module, judgements: Sequence[Judgement]) -> dict[str, str]:
    """Find the weights whose scale does not matter, with the cause: name -> `followed by BatchNorm`, ...

    The L2 norm of such a weight can shrink while the model computes the same; what changes is the effective learning
    rate (van Laarhoven 2017, https://arxiv.org/abs/1706.05350; Zhang et al. 2019, https://arxiv.org/abs/1810.12281).
    A linear or convolution layer counts as followed by a batch or instance normalization if that is the next module
    registered next to it with as many features; what `forward` does is not looked at.

    Cost: one walk over the modules.
    """
    normalized = {id(layer): norm for layer, norm in _normalized_layers(model)}
    found: dict[str, str] = {}
    for judgement in judgements:
        if judgement.decay:
            cause = _cause(judgement.sites[0], normalized)
            if cause:
                found[judgement.name] = cause
    return found


def warn_inert(model: nn.Module, judgements: Sequence[Judgement]) -> None:
    """Warn once, naming the first few, if any weight that is decayed is inert."""
    found = inert_weights(model, judgements)
    if not found:
        return
    shown = ", ".join(f"`{name}` ({cause})" for name, cause in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    warn(
        f"L2 on {shown}{more} does not change what the model computes, only the effective learning rate. If this is "
        f"meant, pass `inert='keep'`; otherwise `inert='skip'` leaves them out.",
        InertPenaltyWarning,
    )


def _cause(site: Site, normalized: dict[int, str]) -> str | None:
    for parametrization in site.parametrizations:
        if type(parametrization).__name__ in _PARAMETRIZED:
            return _PARAMETRIZED[type(parametrization).__name__]
    if site.part == "original1" and type(site.parametrizations[0]).__name__ == "_WeightNorm":
        return "the direction of weight_norm"
    hooks = {type(hook).__name__ for hook in site.owner._forward_pre_hooks.values()}
    if site.leaf == "weight" and "SpectralNorm" in hooks:
        return "under spectral_norm"
    if site.leaf == "weight_v" and "WeightNorm" in hooks:
        return "the direction of weight_norm"
    norm = normalized.get(id(site.owner)) if site.leaf == "weight" else None
    return f"followed by {norm}" if norm else None


def _normalized_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        children = [child for child in module._modules.values() if child is not None]
        for layer, norm in pairwise(children):
            if isinstance(norm, _NormBase) and _out_features(layer) == norm.num_features:
                yield layer, type(norm).__name__


def _out_features(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, _ConvNd) else None

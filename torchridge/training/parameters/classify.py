"""What is a weight: the one judgement that weight decay and penalties share.

The type of the module that a parameter serves decides first, then what it is called there, then its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from torchridge.training.parameters.classes import class_of
from torchridge.training.parameters.evidence import Verdict, by_leaf, by_owner, by_shape
from torchridge.training.parameters.names import (
    Kind,
)
from torchridge.training.parameters.sites import Site, sites


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


def _combine(verdicts: list[Verdict]) -> Verdict:
    """A declaration outranks all; then a weight in one place is a weight."""
    for kind in ("exempt", "weight", "embedding"):
        for verdict in verdicts:
            if verdict.kind == kind:
                return verdict
    return verdicts[0]


def _judge_site(site: Site, declared: _Declared) -> Verdict:
    _refuse_flat(site)
    said = _by_declaration(site, declared)
    return said or by_owner(site) or by_leaf(site) or by_shape(site)


def _refuse_flat(site: Site) -> None:
    if getattr(site.parameter, "_is_flat_param", False) or type(site.parameter).__name__ == "FlatParameter":
        raise ValueError(
            f"`model` holds `{site.name}`, a flat parameter of FSDP1, which mixes weights and biases in one tensor; "
            f"expected separate parameters. Shard with `torch.distributed.fsdp.fully_shard` instead."
        )


def _by_declaration(site: Site, declared: _Declared) -> Verdict | None:
    if getattr(site.parameter, "_no_weight_decay", False):
        return Verdict("exempt", "marked `_no_weight_decay` on the parameter")
    if asked_weight_decay(site.parameter) == 0.0:
        return Verdict("exempt", "`_optim` on the parameter has weight_decay 0")
    owner = declared(site)
    return Verdict("exempt", f"listed by `no_weight_decay()` of {owner}") if owner else None


def asked_weight_decay(parameter: nn.Parameter) -> float | None:
    """The strength in the `_optim` that a parameter carries, as state-space models write it."""
    optim = getattr(parameter, "_optim", None)
    asked = optim.get("weight_decay") if isinstance(optim, Mapping) else None
    return None if asked is None else float(asked)

"""What is done with each parameter: the judgement of what it is, and the caller's rules upon it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import nn

from torchridge import _check
from torchridge.training.parameters.classify import Judgement, asked_weight_decay, judge
from torchridge.training.parameters.inert import inert_weights
from torchridge.training.parameters.layerwise import layer_indices
from torchridge.training.parameters.selectors import Rules, match_rules, rule_pairs, spell

Inert: TypeAlias = Literal["warn", "keep", "skip"]
DecayRules: TypeAlias = "Rules[float | Mapping[str, float | bool]]"


@dataclass(frozen=True)
class _Setting:
    """What one rule says."""

    spelled: str = field(compare=False)
    weight_decay: float | None = None
    lr_scale: float = 1.0
    decay: bool | None = None


@dataclass(frozen=True, eq=False)
class Decision:
    """What is done with one parameter."""

    judgement: Judgement
    decay: bool
    weight_decay: float
    lr_scale: float
    layer: int | None
    group: str
    reason: str


def decide(
    model: nn.Module,
    weight_decay: float,
    *,
    rules: DecayRules,
    embeddings: bool,
    layer_decay: float | None,
    layer_of: Callable[[str], int] | None,
    inert: Inert,
) -> list[Decision]:
    """Decide on every parameter, in the model's order."""
    strength = _check.number(weight_decay, "weight_decay")
    _check.option(inert, "inert", ("warn", "keep", "skip"))
    settings = [(selector, _setting(selector, value)) for selector, value in rule_pairs(rules)]
    judgements = judge(model)
    chosen = match_rules(judgements, settings)
    layers, scales = _layers(model, judgements, layer_decay, layer_of)
    skipped = inert_weights(model, judgements) if inert == "skip" else {}
    decisions = [
        _decide(judgement, strength, setting, embeddings, layer, scale, skipped.get(judgement.name))
        for judgement, setting, layer, scale in zip(judgements, chosen, layers, scales, strict=True)
    ]
    _refuse_idle(settings, chosen, decisions)
    return decisions


def _setting(selector: Any, value: float | Mapping[str, float | bool]) -> _Setting:
    spelled = spell(selector)
    if not isinstance(value, Mapping):
        return _Setting(spelled, weight_decay=_check.number(value, f"rules[{selector!r}]"))
    known = {"weight_decay", "lr_scale", "decay"}
    for key in value:
        _check.option(key, f"rules[{selector!r}]", sorted(known))
    decay = value.get("decay")
    if decay is not None and not isinstance(decay, bool):
        raise TypeError(f"`rules[{selector!r}]['decay']` should be a bool, got {decay!r}.")
    given = value.get("weight_decay")
    return _Setting(
        spelled,
        weight_decay=None if given is None else _check.number(given, f"rules[{selector!r}]['weight_decay']"),
        lr_scale=_check.number(value.get("lr_scale", 1.0), f"rules[{selector!r}]['lr_scale']"),
        decay=decay,
    )


def _layers(
    model: nn.Module,
    judgements: Sequence[Judgement],
    layer_decay: float | None,
    layer_of: Callable[[str], int] | None,
) -> tuple[list[int | None], list[float]]:
    """The layer and the learning-rate factor of each parameter."""
    if layer_decay is None:
        return [None] * len(judgements), [1.0] * len(judgements)
    factor = _check.number(layer_decay, "layer_decay", strict=True)
    if factor > 1:
        raise ValueError(f"`layer_decay` should be at most 1, got {factor}: lower layers learn more slowly.")
    indices = layer_indices(model, judgements, layer_of)
    top = max(indices, default=0)
    return list(indices), [factor ** (top - index) for index in indices]


def _decide(
    judgement: Judgement,
    strength: float,
    setting: _Setting | None,
    embeddings: bool,
    layer: int | None,
    scale: float,
    inert: str | None,
) -> Decision:
    decay, reason = judgement.decay, judgement.reason
    if judgement.kind == "embedding" and not embeddings:
        decay, reason = False, f"{reason}; `embeddings=False`"
    if decay and inert:
        decay, reason = False, f"{reason}; {inert}, `inert='skip'`"
    asked = asked_weight_decay(judgement.parameter) if judgement.decay else None
    own = strength if asked is None else asked
    if asked is not None:
        reason = f"{reason}; `_optim` on the parameter has weight_decay {asked:g}"
    if setting is not None:
        own = own if setting.weight_decay is None else setting.weight_decay
        decay = decay if setting.decay is None else setting.decay
        decay = decay and setting.weight_decay != 0.0
        scale *= setting.lr_scale
        if decay or judgement.decay or setting.lr_scale != 1.0:
            reason = f"{reason}; by {setting.spelled}"
    name = _group_name(decay, own, strength, scale, layer) if judgement.trainable else "frozen"
    return Decision(judgement, decay, own if decay else 0.0, scale, layer, name, reason)


def _group_name(decay: bool, own: float, strength: float, scale: float, layer: int | None) -> str:
    name = ("decay" if own == strength else f"decay={own:g}") if decay else "no_decay"
    if layer is not None:
        name = f"layer_{layer}/{name}"
    return name if scale == 1.0 or layer is not None else f"{name}/lr×{scale:g}"


def _refuse_idle(
    settings: Sequence[tuple[Any, _Setting]], chosen: Sequence[_Setting | None], decisions: Sequence[Decision]
) -> None:
    """Refuse a rule that gives a strength to biases and gains alone: it would do nothing."""
    for _, setting in settings:
        if not setting.weight_decay:
            continue
        taken = [d for d, c in zip(decisions, chosen, strict=True) if c is setting]
        if taken and not any(d.decay for d in taken) and any(d.judgement.trainable for d in taken):
            first = taken[0]
            raise ValueError(
                f"`rules` has {setting.spelled} with weight_decay {setting.weight_decay:g}, but nothing it applies to "
                f"is a weight: `{first.judgement.name}` is not ({first.judgement.reason}). To decay it all the same, "
                f'write {{"weight_decay": {setting.weight_decay:g}, "decay": True}}.'
            )

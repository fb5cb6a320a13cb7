"""Regularizers on the weights and outputs of any model, and the sum of their penalties for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge.training.parameters.classify import Judgement, judge
from torchridge.training.parameters.decisions import Inert
from torchridge.training.parameters.inert import inert_weights, warn_inert
from torchridge.training.parameters.selectors import Rules, match_rules, rule_pairs, spell
from torchridge.training.parameters.sites import sites
from torchridge.training.penalties.attachment import (
    attach_activity,
    attach_weight,
    carriers,
    clear_at_forward,
    detach_all,
)
from torchridge.training.penalties.identifiers import get
from torchridge.training.penalties.regularizers import L2, Penalty, RegularizerLike
from torchridge.training.penalties.strengths import Strength, validate_float_arg
from torchridge.training.penalties.weights import (
    attribute_of,
    note_backward,
    weight_penalties,
    weight_penalty,
    weights_of,
)

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def regularize(
    model: ModuleT,
    weight: RegularizerLike = None,
    *,
    bias: RegularizerLike = None,
    activity: RegularizerLike = None,
    rules: Rules[Any] = (),
    embeddings: bool = True,
    inert: Inert = "warn",
) -> ModuleT:
    """Attach regularizers to a model, in place: `loss + penalty(model)` is then penalized.

    The objective is loss + Σ regularizer(W) over the weights that
    :func:`~torchridge.training.parameters.classify.judge` finds, the same that `weight_decay_groups` decays: no
    bias, no normalization, no scale. For `L2(λ)` that is λ Σ W²,
    Keras's convention: the same as `weight_decay = 2 * λ` in SGD and Adam. A tied weight counts once. Under a
    parametrization (`weight_norm`, pruning) the weight that the module computes with is penalized.

    Nothing is added to the state dict. Call it before `torch.compile`, before or after DDP and FSDP2.

    Args:
        model: Any module. A second call replaces what an earlier one attached to the same tensors.
        weight: Regularizer of the weights: an instance, a callable, a name as for `get`, or None for none.
        bias: Regularizer of the biases, in the same forms.
        activity: Regularizer of the outputs of the modules that own a weight, divided by the batch size and taken in
            at least float32. Of a tuple the first tensor counts. Every forward of `model` forgets the last one's.
        rules: Ordered, from selector to regularizer for the weights that match; the first match wins over `weight`.
            A number λ means `L2(λ)`; None or 0 means no penalty. For selectors see
            :func:`~torchridge.training.parameters.selectors.match_rules`.
        embeddings: Whether tables of `Embedding` and `EmbeddingBag` count as weights.
        inert: What to do about weights whose scale the model divides out (before BatchNorm, under `spectral_norm`):
            `"warn"` and penalize, `"keep"` penalizing silently, or `"skip"` them.

    Returns:
        The model.

    Raises:
        TypeError: If `model` is not a module, or an argument is of the wrong type.
        ValueError: If a regularizer is not one, a strength is negative or NaN, a rule matches no weight or is never
            reached, rules disagree on a tied parameter, or parameters are flat ones of FSDP1. Nothing is changed then.

    Cost: one walk over the modules; no tensor is read.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = regularize(model, L2(1e-4), rules=[("2.*", L2(1e-2))])
        >>> list(penalties(model))
        ['0.weight', '2.weight']
    """
    _check.option(inert, "inert", ("warn", "keep", "skip"))
    judgements = judge(model)
    chosen = _chosen(model, judgements, get(weight), get(bias), _rules(rules), embeddings, inert)
    output = get(activity)
    owners = dict.fromkeys(j.owner for j in judgements if j.decay)
    for judgement, regularizer in chosen:
        for site in judgement.sites:  # all of them: a tie may break, as `to_empty` breaks it
            attach_weight(site.owner, attribute_of(site), regularizer)
    if output is not None:
        for owner in owners:
            attach_activity(owner, output)
    clear_at_forward(model)
    return model


def penalty(model: nn.Module, *, weights: bool = True, activity: bool = True) -> Tensor:
    """Compute the sum of all penalties attached to a model: what to add to the loss, once per optimizer step.

    For `L2(λ)` on every weight it is λ Σ W², and its gradient is 2λW to the last bit. As in Keras, it is the same in
    training and evaluation mode, and a frozen weight (`requires_grad=False`) adds nothing.

    With gradient accumulation over k micro-batches, divide it by k as the loss, or use `penalize_step`. Clipping of
    gradients sees the penalty's gradient too. Under DDP and FSDP2 every rank gets the full value and gradient.

    Args:
        model: The model, or a wrapper of it (`torch.compile`, DDP, FSDP2).
        weights: Whether to count the penalties of weights and biases.
        activity: Whether to count the penalties of the outputs of the last forward.

    Returns:
        0-d, at least float32, on the device of the first weight; 0 if nothing is attached, so that one loop serves
        models with and without a penalty. (`penalize_step` refuses such a model.)

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If a weight is still lazy.

    Cost: all `L2` penalties of one strength are one node of the graph: one read of the weights forward, one read and
    one write backward. One all-reduce a strength and mesh for DTensors.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> _ = nn.init.ones_(model.weight)
        >>> penalty(regularize(model, L2(0.5)))
        tensor(1., grad_fn=<MulBackward0>)
    """
    _check_model(model)
    counted = weights_of(model) if weights else []
    parts = weight_penalties(counted)
    if parts:
        parts = [_sum(parts)]
        note_backward(parts[0], counted)
    if activity:
        parts += [value for _, _, carried in carriers(model) for value in carried.values]
    return _sum(parts) if parts else _zero(model)


def penalties(model: nn.Module) -> dict[str, Tensor]:
    """Compute each penalty attached to a model by name: `0.weight`, `0.bias`, and `0.activity` for an output.

    Their sum is `penalty(model)`. Names are those of the bare model, without the prefixes of wrappers.

    Args:
        model: Any module.

    Returns:
        0-d tensors by name, in the graph.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If a weight is still lazy.

    Cost: as `penalty`, but for one node of the graph a weight.

    Example:
        >>> from torchridge.training.penalties.regularizers import L2
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
        >>> for layer in (model[0], model[2]):
        ...     _ = nn.init.ones_(layer.weight)
        >>> {name: round(value.item(), 2) for name, value in penalties(regularize(model, L2(0.1))).items()}
        {'0.weight': 0.2, '2.weight': 0.1}
    """
    _check_model(model)
    bare = {id(site.owner): site.owner_name for site in reversed(list(sites(model)))}
    found: dict[str, Tensor] = {}
    for weight in weights_of(model):
        value = weight_penalty(weight)
        note_backward(value, [weight])
        found[_named(bare, weight.module, weight.name.rpartition(".")[2])] = value
    for _, module, carried in carriers(model):
        if carried.values:
            found[_named(bare, module, "activity")] = torch.stack(carried.values).sum()
    return found


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part.to(total.device)
    return total


def _named(names: dict[int, str], module: nn.Module, leaf: str) -> str:
    prefix = names.get(id(module), "")
    return f"{prefix}.{leaf}" if prefix else leaf


def clear_regularizers(model: ModuleT) -> ModuleT:
    """Take every regularizer off a model and its layers, those of `L2Linear` too, and return it.

    Args:
        model: Any module; changed in place.

    Raises:
        TypeError: If `model` is not a module.

    Example:
        >>> from torchridge.training.penalties.layers import L2Linear
        >>> penalties(clear_regularizers(L2Linear(2, 1, l2=0.1)))
        {}
    """
    _check_model(model)
    detach_all(model)
    return model


def _chosen(
    model: nn.Module,
    judgements: Sequence[Judgement],
    weight: Penalty | None,
    bias: Penalty | None,
    rules: Sequence[tuple[Any, Penalty | None]],
    embeddings: bool,
    inert: Inert,
) -> list[tuple[Judgement, Penalty | None]]:
    """The regularizer of every parameter that one was asked for, None if a rule takes it off."""
    eligible = _eligible(model, judgements, embeddings, inert)
    ruled = match_rules(judgements, [(selector, (regularizer,)) for selector, regularizer in rules])
    _refuse_idle(rules, [(j, rule) for j, rule in zip(judgements, ruled, strict=True) if rule is not None], eligible)
    chosen: list[tuple[Judgement, Penalty | None]] = []
    for judgement, rule in zip(judgements, ruled, strict=True):
        if id(judgement) in eligible and (rule is not None or weight is not None):
            chosen.append((judgement, rule[0] if rule is not None else weight))
        elif judgement.kind == "bias" and bias is not None:
            chosen.append((judgement, bias))
    if inert == "warn":
        warn_inert(model, _stored([j for j, regularizer in chosen if isinstance(regularizer, L2)]))
    return chosen


def _eligible(model: nn.Module, judgements: Sequence[Judgement], embeddings: bool, inert: Inert) -> set[int]:
    skipped = inert_weights(model, _stored(judgements)) if inert == "skip" else {}
    return {id(j) for j in judgements if j.decay and j.name not in skipped and (embeddings or j.kind != "embedding")}


def _stored(judgements: Sequence[Judgement]) -> list[Judgement]:
    """All but the directions of weight_norm: inert when decayed, but penalized as the weight that they make."""
    return [j for j in judgements if j.sites[0].part != "original1" and not j.leaf.endswith("_v")]


def _rules(rules: Rules[Any]) -> list[tuple[Any, Penalty | None]]:
    return [(selector, _regularizer(value, selector)) for selector, value in rule_pairs(rules)]


def _regularizer(value: Any, selector: Any) -> Penalty | None:
    if isinstance(value, (int, float, Tensor)):
        strength: Strength = validate_float_arg(value, f"rules[{selector!r}]")
        return L2(strength) if isinstance(strength, Tensor) or strength > 0 else None
    regularizer: Penalty | None = get(value)
    return regularizer


def _refuse_idle(
    rules: Sequence[tuple[Any, Penalty | None]], hit: Sequence[tuple[Judgement, Any]], eligible: set[int]
) -> None:
    """Refuse a rule that gives a regularizer to biases and gains alone: it would do nothing."""
    for selector, regularizer in rules:
        mine = [judgement for judgement, rule in hit if rule[0] is regularizer]
        if regularizer is not None and mine and not any(id(judgement) in eligible for judgement in mine):
            raise ValueError(
                f"`rules` has {spell(selector)} with {regularizer!r}, but nothing it applies to is a weight: "
                f"`{mine[0].name}` is not ({mine[0].reason}). Pass `bias=` for biases, or drop the rule."
            )


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` should be a torch.nn.Module, got {type(model).__name__}. Pass the model, not its parameters."
        )


def _zero(model: nn.Module) -> Tensor:
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)

"""Hidden matrices for Muon, and the rest for AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from torchridge.training.parameters.classify import Judgement
from torchridge.training.parameters.decisions import DecayRules, Decision, decide
from torchridge.training.parameters.layerwise import repeated_blocks
from torchridge.training.parameters.selectors import Selector, match_rules
from torchridge.training.weight_decay.gather import gathered


def muon_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    head: Selector | None = None,
    rules: DecayRules = (),
    embeddings: bool = True,
    lr: float | None = None,
    adamw_lr: float | None = None,
    param_names: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split the trainable parameters for `torch.optim.Muon` and for AdamW, each in weight-decay groups.

    Muon takes the real matrices of hidden layers. Embeddings, the output layer, convolutions, biases and gains go to
    AdamW (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). Both decay decoupled: by lr · weight_decay.

    Args:
        model: The model. Not changed.
        weight_decay: Strength for the weights in both; change it by `rules`.
        head: Selector of the output layer. By default the last linear layer, if it lies outside the repeated blocks;
            a model without an output layer of its own has none.
        rules: As for :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`.
        embeddings: Likewise.
        lr: Learning rate of Muon; put in its groups.
        adamw_lr: Learning rate of AdamW; put in its groups.
        param_names: As for :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`.

    Returns:
        The groups for Muon and those for AdamW. Every trainable parameter is in exactly one of all of them.

    Raises:
        ValueError: As :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`, if there is no hidden
            matrix, or if a weight is lazy.

    Cost: as :func:`~torchridge.training.weight_decay.groups.weight_decay_groups`.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 9))
        >>> muon, adamw = muon_groups(model, 0.1)
        >>> [group["param_names"] for group in muon], [group["param_names"] for group in adamw]
        ([['1.weight']], [['0.weight', '3.weight'], ['1.bias', '3.bias']])
    """
    decisions = decide(
        model, weight_decay, rules=rules, embeddings=embeddings, layer_decay=None, layer_of=None, inert="keep"
    )
    trainable = [decision for decision in decisions if decision.judgement.trainable]
    heads = _heads(model, [decision.judgement for decision in decisions], head)
    hidden = [decision for decision in trainable if _is_hidden_matrix(decision.judgement, heads)]
    if not hidden:
        raise ValueError("`model` has no hidden matrix for Muon; expected a linear layer besides the output layer.")
    taken = {id(decision) for decision in hidden}
    rest: list[Decision] = [decision for decision in trainable if id(decision) not in taken]
    return gathered(hidden, lr, param_names), gathered(rest, adamw_lr, param_names)


def _heads(model: nn.Module, judgements: Sequence[Judgement], head: Selector | None) -> set[int]:
    """The parameters of the output layer, by identity."""
    if head is not None:
        marks = match_rules(judgements, [(head, True)], argument="head")
        return {id(j.parameter) for j, mark in zip(judgements, marks, strict=True) if mark}
    linear = [j for j in judgements if j.kind == "weight" and isinstance(j.sites[-1].owner, nn.Linear)]
    if not linear:
        return set()
    inside = {id(module) for blocks in repeated_blocks(model) for block in blocks for module in block.modules()}
    last = linear[-1]
    return set() if id(last.sites[-1].owner) in inside else {id(last.parameter)}


def _is_hidden_matrix(judgement: Judgement, heads: set[int]) -> bool:
    parameter = judgement.parameter
    if judgement.kind != "weight" or id(parameter) in heads:
        return False
    if is_lazy(parameter):
        raise ValueError(
            f"`{judgement.name}` is a lazy parameter without a shape yet; expected a shape, since Muon takes matrices "
            f"only. Run one forward pass first."
        )
    embeds = any(isinstance(site.owner, (nn.Embedding, nn.EmbeddingBag)) for site in judgement.sites)
    return parameter.ndim == 2 and not parameter.is_complex() and not embeds

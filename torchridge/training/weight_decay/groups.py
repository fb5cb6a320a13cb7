"""Which parameter is decayed, how strongly and why: parameter groups for `torch.optim`, and the report on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from torchridge.training.parameters.decisions import DecayRules, Decision, Inert, decide
from torchridge.training.parameters.inert import inert_weights, warn_inert
from torchridge.training.weight_decay.gather import gathered
from torchridge.training.weight_decay.optimizers import check_optimizer
from torchridge.training.weight_decay.table import DecayRow, DecayTable


def weight_decay_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    rules: DecayRules = (),
    embeddings: bool = True,
    lr: float | None = None,
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
    inert: Inert = "warn",
    optimizer: type[Any] | None = None,
    param_names: bool = True,
) -> list[dict[str, Any]]:
    """Split the trainable parameters into groups for `torch.optim`: weights are decayed, biases and gains are not.

    `weight_decay` is torch's: the gradient of weight_decay/2 · ‖w‖² in SGD and Adam, so 2λ for the penalty λ‖w‖²;
    a shrinkage by lr · weight_decay a step in AdamW and Muon, which is another problem with another solution.
    Biases, normalizations and scales are never decayed unless a rule says so, nor learned tokens and positions under
    the names that are usual for them (`cls_token`, `pos_embed`, …): for other names give a rule.

    Args:
        model: Any module, also under `torch.compile`, DDP, FSDP2 or activation-checkpoint wrappers. Not changed.
        weight_decay: Strength for the weights.
        rules: Ordered, from selector to setting; the first match wins. A selector is a glob, a compiled regular
            expression, a module type or a predicate, see
            :func:`~torchridge.training.parameters.selectors.match_rules`. A setting is a strength, or a mapping with
            `weight_decay`, `lr_scale` and `decay`. A strength acts on the weights among
            what a rule matches, so that `("encoder.*", 0.1)` decays no bias; `decay=True` overrules the judgement.
        embeddings: Whether tables of `Embedding` and `EmbeddingBag` count as weights. One that is tied to a linear
            layer does in any case.
        lr: Base learning rate; put in the groups, and required if any learning rate is scaled.
        layer_decay: Multiply the learning rate by layer_decay^(depth from the top), as ELECTRA
            (https://arxiv.org/abs/2003.10555) and BEiT (https://arxiv.org/abs/2106.08254) do.
        layer_of: Name -> layer index, 0 at the input, for a model whose layers cannot be found.
        inert: What to do about weights whose scale the model divides out (before BatchNorm, under `spectral_norm`):
            `"warn"` and decay, `"keep"` decaying silently, or `"skip"` them.
        optimizer: The class that will take the groups; refuse now what it would ignore or fail on later.
        param_names: Whether the groups name their parameters. Torch then refuses a group without names in
            `add_param_group`, as Lightning's `BackboneFinetuning` adds it: pass False for such loops.

    Returns:
        Plain dicts with `params`, `param_names` unless left out, `weight_decay`, `name`, and `lr`, `lr_scale` if
        they apply. Every trainable parameter is in exactly one, and their order depends on the model alone, so a
        checkpoint resumes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: For a negative or NaN strength, a rule that matches nothing, decays nothing or is never reached,
            rules that disagree on a tied parameter, FSDP1's flat parameters, lazy parameters that cannot be judged,
            or a model without trainable parameters.

    Cost: one walk over the modules, no tensor is read; 1,000 modules take some 50 ms.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        >>> groups = weight_decay_groups(model, 0.1)
        >>> [(group["name"], group["weight_decay"], group["param_names"]) for group in groups]
        [('decay', 0.1, ['0.weight', '2.weight']), ('no_decay', 0.0, ['0.bias', '1.weight', '1.bias', '2.bias'])]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    decisions = decide(
        model, weight_decay, rules=rules, embeddings=embeddings, layer_decay=layer_decay, layer_of=layer_of, inert=inert
    )
    chosen = [decision for decision in decisions if decision.judgement.trainable]
    if not chosen:
        raise ValueError("`model` has no trainable parameter; expected at least one. Is all of it frozen?")
    if inert == "warn":
        warn_inert(model, [d.judgement for d in chosen if d.decay and d.weight_decay > 0])
    groups = gathered(chosen, lr, param_names)
    if optimizer is not None:
        check_optimizer(optimizer, groups=groups, model=model)
    return groups


def explain_weight_decay(
    model: nn.Module,
    weight_decay: float = 0.01,
    *,
    rules: DecayRules = (),
    embeddings: bool = True,
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
    inert: Inert = "keep",
) -> DecayTable:
    """Say for every parameter in which group :func:`weight_decay_groups` puts it, and why.

    Frozen parameters are listed too. What is inert is noted in the reason, so nothing is warned of.

    Args:
        model: As for :func:`weight_decay_groups`.
        weight_decay: As for :func:`weight_decay_groups`.
        rules: As for :func:`weight_decay_groups`.
        embeddings: As for :func:`weight_decay_groups`.
        layer_decay: As for :func:`weight_decay_groups`.
        layer_of: As for :func:`weight_decay_groups`.
        inert: As for :func:`weight_decay_groups`, but for warnings.

    Returns:
        A table to print, iterate over, or turn into JSON; its `groups()` are those of :func:`weight_decay_groups`.

    Raises:
        TypeError: As :func:`weight_decay_groups`.
        ValueError: As :func:`weight_decay_groups`.

    Cost: as :func:`weight_decay_groups`.

    Example:
        >>> table = explain_weight_decay(nn.Sequential(nn.Linear(3, 1), nn.LayerNorm(1)))
        >>> print(table["0.weight"].reason)
        weight of Linear
    """
    decisions = decide(
        model, weight_decay, rules=rules, embeddings=embeddings, layer_decay=layer_decay, layer_of=layer_of, inert=inert
    )
    causes = inert_weights(model, [d.judgement for d in decisions if d.decay])
    rows = tuple(_row(decision, causes.get(decision.judgement.name)) for decision in decisions)
    return DecayTable(rows, tuple(decisions))


def _row(decision: Decision, inert: str | None) -> DecayRow:
    judgement = decision.judgement
    frozen = not judgement.trainable
    return DecayRow(
        name=judgement.name,
        shape=None if is_lazy(judgement.parameter) else tuple(judgement.parameter.shape),
        group=decision.group,
        decay=decision.decay and not frozen,
        weight_decay=0.0 if frozen else decision.weight_decay,
        lr_scale=decision.lr_scale,
        reason="frozen; " * frozen + decision.reason + (f"; inert: {inert}" if inert else ""),
        aliases=judgement.aliases,
    )

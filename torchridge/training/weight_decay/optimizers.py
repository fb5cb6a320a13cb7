"""What each optimizer does with weight decay and with groups: refused before training, not noticed after it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchridge.training.hooks import StepHook, innermost, installed
from torchridge.training.parameters.classify import judge
from torchridge.training.sums import local

_TAKES_SPARSE = ("SGD", "Adagrad", "SparseAdam")
_MASTER = re.compile("master|fp32_(from|groups|params)")


def check_optimizer(
    optimizer: Optimizer | type[Any],
    *,
    groups: Sequence[Mapping[str, Any]] | None = None,
    model: nn.Module | None = None,
) -> None:
    """Raise if an optimizer would ignore the weight decay of its groups, or fail on them.

    LBFGS takes neither groups nor `weight_decay`; SparseAdam and Rprop ignore it; SGD and Adagrad fail on sparse
    gradients with it, and the others on sparse gradients at all; Muon takes real matrices only. What trains another
    copy of the weights (schedule-free, master weights) undoes `DecoupledWeightDecay` unless that is coupled.

    Args:
        optimizer: An optimizer, or its class together with `groups`.
        groups: The parameter groups; by default those of the optimizer.
        model: The model, to find embeddings with sparse gradients. Without it, only gradients that are there are seen.

    Raises:
        TypeError: If `optimizer` is neither an optimizer nor a class, or a class without `groups`.
        ValueError: For each of the above, with the remedy.

    Cost: one walk over the modules and groups; no tensor is read.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> check_optimizer(torch.optim.AdamW(layer.parameters(), weight_decay=0.1))
        >>> check_optimizer(torch.optim.Rprop, groups=[{"params": [layer.weight], "weight_decay": 0.1}])
        Traceback (most recent call last):
        ...
        ValueError: ...
    """
    optimizer = innermost(optimizer)
    cls = optimizer if isinstance(optimizer, type) else type(optimizer)
    if not issubclass(cls, Optimizer):
        raise TypeError(f"`optimizer` should be a torch.optim.Optimizer or its class, got {cls.__name__}.")
    found = _groups(optimizer, groups)
    if issubclass(cls, torch.optim.LBFGS):
        _refuse_lbfgs(found)
    _refuse_ignored(cls, found)
    _refuse_sparse(cls, found, model)
    if not isinstance(optimizer, type) and any(hook.moves_weights for hook in installed(optimizer, StepHook)):
        refuse_other_copy(optimizer)
    if cls.__name__ == "Muon":
        _refuse_no_matrix(found)


def refuse_other_copy(optimizer: Optimizer) -> None:
    """Raise if the optimizer trains another copy of the weights, so that moving the parameters moves half of it.

    Raises:
        ValueError: If so, with the remedy.
    """
    copied = _other_copy(optimizer)
    if copied:
        raise ValueError(
            f"`optimizer` is {type(optimizer).__name__}, which {copied}, so that decay of the parameters alone would "
            f"be undone or halved; expected one that trains the parameters themselves. Leave the decay to its own "
            f"`weight_decay`, or pass `coupled=True`, which goes through the gradient."
        )


def _other_copy(optimizer: Optimizer) -> str | None:
    groups = optimizer.param_groups
    if any("train_mode" in group for group in groups):
        return "is schedule-free: it steps another point than the parameters hold"
    marks = [vars(optimizer), *groups]
    if any(_MASTER.search(name) and _is_set(value) for mark in marks for name, value in mark.items()):
        return "keeps master weights"
    narrow = (p for group in groups for p in group["params"] if p.dtype in (torch.bfloat16, torch.float16))
    if any(_is_copy(kept, p) for p in narrow for kept in optimizer.state.get(p, {}).values()):
        return "keeps master weights in its state"
    return None


def _is_set(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None and not isinstance(value, Tensor) and bool(value)


def _is_copy(kept: Any, parameter: Tensor) -> bool:
    if not isinstance(kept, Tensor) or kept.dtype is not torch.float32 or kept.shape != parameter.shape:
        return False
    return torch.equal(local(kept).to(parameter.dtype), local(parameter.detach())) and bool(local(kept).any())


def _groups(
    optimizer: Optimizer | type[Any], groups: Sequence[Mapping[str, Any]] | None
) -> Sequence[Mapping[str, Any]]:
    if groups is not None:
        return groups
    if isinstance(optimizer, type):
        raise TypeError(f"`groups` is needed with the class {optimizer.__name__}, got None. Pass the parameter groups.")
    return optimizer.param_groups


def _decayed(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [group for group in groups if float(group.get("weight_decay", 0.0)) != 0.0]


def _refuse_lbfgs(groups: Sequence[Mapping[str, Any]]) -> None:
    if len(groups) > 1 or _decayed(groups):
        raise ValueError(
            f"`optimizer` is LBFGS, which takes no parameter groups and no `weight_decay`, got {len(groups)} groups. "
            f"Give it `model.parameters()`, and add the penalty to the loss inside the closure."
        )


def _refuse_ignored(cls: type[Any], groups: Sequence[Mapping[str, Any]]) -> None:
    arguments = inspect.signature(cls).parameters
    known = "weight_decay" in arguments or any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    if not known and _decayed(groups):
        raise ValueError(
            f"`optimizer` is {cls.__name__}, which ignores `weight_decay`, got a group with "
            f"{_decayed(groups)[0]['weight_decay']:g}. Add the penalty to the loss, or take an optimizer that decays."
        )


def _refuse_sparse(cls: type[Any], groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> None:
    sparse = _sparse_parameters(model)
    for group in groups:
        decayed = bool(_decayed([group]))
        for index, parameter in enumerate(group["params"]):
            is_sparse = id(parameter) in sparse or (parameter.grad is not None and parameter.grad.is_sparse)
            if not is_sparse or (cls.__name__ in _TAKES_SPARSE and not decayed):
                continue
            names = group.get("param_names")
            name = sparse.get(id(parameter)) or (names[index] if names else f"parameter {index}")
            fails = "with weight decay" if cls.__name__ in _TAKES_SPARSE else "whether or not it is decayed"
            raise ValueError(
                f"`{name}` has sparse gradients, on which {cls.__name__} fails {fails}; expected dense ones. Build "
                f"the embedding with `sparse=False`, or give it to SparseAdam or SGD with `weight_decay=0`."
            )


def _sparse_parameters(model: nn.Module | None) -> dict[int, str]:
    if model is None:
        return {}
    return {
        id(j.parameter): j.name for j in judge(model) if any(getattr(s.owner, "sparse", False) is True for s in j.sites)
    }


def _refuse_no_matrix(groups: Sequence[Mapping[str, Any]]) -> None:
    for group in groups:
        names = group.get("param_names", ())
        for index, parameter in enumerate(group["params"]):
            if parameter.ndim == 2 and not parameter.is_complex():
                continue
            name = names[index] if names else f"parameter {index}"
            raise ValueError(
                f"`{name}` has shape {tuple(parameter.shape)} and {parameter.dtype}, but Muon takes real matrices "
                f"only. Split the parameters with `muon_groups` and give the rest to AdamW."
            )

"""The tensors under a regularizer, as the model computes with them, and the values of their penalties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from torchridge.training.parameters.sites import Site
from torchridge.training.penalties.attachment import attachment, carriers
from torchridge.training.penalties.regularizers import L1, L1L2, L2, Penalty
from torchridge.training.penalties.strengths import Strength, weigh
from torchridge.training.sums import sum_squares, whole


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor that counts now.

    Attributes:
        name: Its name in the model, wrappers included.
        module: The module that computes with it.
        tensor: The parameter, or what a parametrization computes from parameters.
        regularizer: Its regularizer.
    """

    name: str
    module: nn.Module
    tensor: Tensor
    regularizer: Penalty

    @property
    def in_loss(self) -> bool:
        """Whether its penalty has been differentiated as part of a loss since a step last asked."""
        carried = attachment(self.module)
        return carried is not None and self.name.rpartition(".")[2] in carried.in_loss


def weights_of(model: nn.Module) -> list[Weight]:
    """List the tensors under a regularizer, tied ones once and frozen ones not at all, in the model's order."""
    found: list[Weight] = []
    seen: set[tuple[int, ...]] = set()
    for prefix, module, carried in carriers(model):
        for attribute, regularizer in carried.weights.items():
            name = f"{prefix}.{attribute}" if prefix else attribute
            if _is_frozen(module, attribute):
                continue
            tensor = _effective(module, attribute)
            _refuse_lazy(tensor, name)
            sources = tuple([id(p) for p in _sources(module, attribute)]) or (id(tensor),)
            if sources not in seen:  # what is computed from the same parameters counts once, as they do
                seen.add(sources)
                found.append(Weight(name, module, tensor, regularizer))
    return found


def parameters_of(model: nn.Module) -> set[Tensor]:
    """Return the parameters behind every tensor under a regularizer: frozen and lazy ones too, which may yet count."""
    return {p for _, module, carried in carriers(model) for name in carried.weights for p in _sources(module, name)}


def note_backward(total: Tensor, weights: Sequence[Weight]) -> None:
    """Note on the modules when a penalty is differentiated as part of a loss, for `penalize_step` to see."""
    if not total.requires_grad or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return
    places = [(carried, w.name.rpartition(".")[2]) for w in weights if (carried := attachment(w.module)) is not None]

    def note(_: Tensor) -> None:
        for carried, name in places:
            carried.in_loss.add(name)

    total.register_hook(note)  # type: ignore[no-untyped-call]


def weight_penalties(weights: Sequence[Weight]) -> list[Tensor]:
    """Compute the penalties of the weights, those under a plain `L2` of one strength at once."""
    plain, others = split_plain(weights)
    fused = [weigh(strength, sum_squares([w.tensor for w in group])) for strength, group in plain]
    return fused + [weight_penalty(weight) for weight in others]


def weight_penalty(weight: Weight) -> Tensor:
    """Compute the penalty of one weight, in full on every rank."""
    regularizer = weight.regularizer
    sharded = isinstance(regularizer, (L1, L2, L1L2))
    return torch.as_tensor(regularizer(weight.tensor if sharded else whole(weight.tensor)))


def split_plain(weights: Sequence[Weight]) -> tuple[list[tuple[Strength, list[Weight]]], list[Weight]]:
    """Split off the weights under `L2` itself, by strength (a tensor by identity), from all others."""
    groups: dict[Any, tuple[Strength, list[Weight]]] = {}
    others: list[Weight] = []
    for weight in weights:
        if type(weight.regularizer) is not L2:  # a subclass may compute something else
            others.append(weight)
            continue
        strength = weight.regularizer.l2
        key = id(strength) if isinstance(strength, Tensor) else strength
        groups.setdefault(key, (strength, []))[1].append(weight)
    return list(groups.values()), others


def attribute_of(site: Site) -> str:
    """The attribute under which a module finds the tensor it computes with: `weight` also for `weight_v`."""
    if site.part:
        return site.leaf
    stored = site.full_name.rpartition(".")[2]
    stem = stored.rpartition("_")[0]
    return stem if stored.endswith(("_v", "_g", "_orig")) and _computing_hook(site.owner, stem) is not None else stored


def _effective(module: nn.Module, attribute: str) -> Tensor:
    tensor: Tensor
    hook = None if attribute in module._parameters else _computing_hook(module, attribute)
    if hook is None:
        tensor = getattr(module, attribute)
    elif hasattr(hook, "apply_mask"):  # torch.nn.utils.prune
        tensor = hook.apply_mask(module)
    else:  # the older weight_norm and spectral_norm, whose attribute is as old as the last forward
        tensor = hook.compute_weight(module, *(() if hasattr(module, f"{attribute}_v") else (False,)))
    return tensor


def _computing_hook(module: nn.Module, attribute: str) -> Any:
    """The forward pre-hook that computes an attribute from parameters, in the manner before parametrizations."""
    for hook in module._forward_pre_hooks.values():
        if attribute in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            return hook
    return None


def _is_frozen(module: nn.Module, attribute: str) -> bool:
    """Whether none of the parameters behind a tensor is trained; `functional_call` puts plain tensors, which count."""
    own = module._parameters.get(attribute)
    if own is not None:
        return isinstance(own, nn.Parameter) and not own.requires_grad
    sources = _sources(module, attribute)
    return bool(sources) and not any(source.requires_grad for source in sources)


def _sources(module: nn.Module, attribute: str) -> list[Tensor]:
    """The parameters behind a tensor: itself, or what it is computed from."""
    if is_parametrized(module, attribute):
        return list(module.get_submodule(f"parametrizations.{attribute}").parameters())
    ends = ("", "_g", "_v", "_orig")
    return [p for end in ends if (p := module._parameters.get(attribute + end)) is not None]


def _refuse_lazy(tensor: Tensor, name: str) -> None:
    if not torch.compiler.is_compiling() and is_lazy(tensor):
        raise ValueError(
            f"`{name}` is lazy and has no values yet; expected an initialized weight. Run one forward pass first."
        )

"""Weight decay as an operation of its own beside the optimizer: toward a reference, cautious, free of the lr."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchridge import _check
from torchridge.training.sums import is_dtensor, local

Reference: TypeAlias = "Literal['initial'] | Mapping[str, Tensor] | None"

KEY = "weight_decay_tensor"


def shrink_(params: Sequence[Tensor], strength: Tensor) -> None:
    """Multiply in place by 1 − `strength`, a 0-d tensor."""
    torch._foreach_mul_(list(params), 1 - strength)


def shrink_toward_(params: Sequence[Tensor], references: Sequence[Tensor], strength: Tensor) -> None:
    """Move in place toward `references` by the share `strength`, a 0-d tensor."""
    distances = torch._foreach_sub(list(references), list(params))
    torch._foreach_mul_(distances, strength)
    torch._foreach_add_(list(params), distances)


def shrink_where_aligned_(
    params: Sequence[Tensor], before: Sequence[Tensor], references: Sequence[Tensor] | None, strength: Tensor
) -> None:
    """Subtract `strength` times the distance from the reference, where the step that was taken shortened it.

    With old values x, new values x − ηu and distances z: x − ηu − strength · 1[u ⊙ z ≥ 0] ⊙ z.
    """
    distances = list(before) if references is None else torch._foreach_sub(list(before), list(references))
    updates = torch._foreach_sub(list(before), list(params))
    masks = [(u * z >= 0).to(z.dtype) for u, z in zip(updates, distances, strict=True)]
    decays = torch._foreach_mul(distances, masks)
    torch._foreach_mul_(decays, strength)
    torch._foreach_sub_(list(params), decays)


class _Snapshot(NamedTuple):
    group: dict[str, Any]
    weights: list[Tensor]
    before: list[Tensor]
    references: list[Tensor] | None


class DecoupledWeightDecay:
    """Take the weight decay of an optimizer's groups over and apply it at each step, from a tensor.

    With learning rate η, strength s = `weight_decay` of the group, reference w₀ and update u, one step is

    * w ← w − η s (w − w₀) − η u, as AdamW's with w₀ = 0;
    * `coupled`: the gradient gets s (w − w₀), the gradient of s/2 ‖w − w₀‖²; the penalty λ‖w − w₀‖² has s = 2λ.
      With pretrained values as reference this is L2-SP (Li et al. 2018, https://arxiv.org/abs/1802.01483), with the
      values at the start L2-init (Kumar et al. 2023, https://arxiv.org/abs/2308.11958);
    * `cautious`: w ← w − η u − η s 1[u ⊙ (w − w₀) ≥ 0] ⊙ (w − w₀), decay only where the update goes the same way
      (Chen et al. 2025, https://arxiv.org/abs/2510.12402);
    * `independent_of_lr`: the η of the decay is the group's learning rate when this was made, whatever it becomes.

    As in torch, a parameter without a gradient is left alone. The strength lies in the group as the 0-d tensor
    `weight_decay_tensor`, so a schedule that changes it makes `torch.compile` recompile nothing, and the
    optimizer's `state_dict` holds it; the group's own `weight_decay` becomes 0.

    Args:
        optimizer: Any optimizer with `weight_decay` and `lr` in its groups, e.g. on `weight_decay_groups(...)`.
        reference: None for zero, `"initial"` for the values now, or tensors by name such as a `state_dict`; then the
            groups need `param_names`, and parameters not in it are decayed toward zero.
        coupled: Add the decay to the gradient instead of taking it from the weight.
        cautious: Decay only where the update's sign agrees. Needs a copy of the decayed weights during each step.
        independent_of_lr: Do not follow the learning-rate schedule.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: If no group has any weight decay, if `reference` has no parameter of the optimizer or one of another
            shape, or if `coupled` is combined with `cautious` or `independent_of_lr`. A step with a closure is refused.

    Cost: one pass over the decayed weights a step; with a reference, a second copy of them is kept.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=0.2)
        >>> decay = DecoupledWeightDecay(optimizer, reference="initial")
        >>> for _ in range(100):
        ...     weight.grad = torch.tensor([0.1, 0.0])
        ...     optimizer.step()
        >>> print(weight.data)  # w₀ − gradient / weight_decay
        tensor([0.5000, 2.0000])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        reference: Reference = None,
        coupled: bool = False,
        cautious: bool = False,
        independent_of_lr: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        if coupled and (cautious or independent_of_lr):
            raise ValueError(
                "`coupled` decay goes through the gradient, got it with `cautious` or `independent_of_lr`; expected "
                "one of them at most. Leave `coupled` out."
            )
        groups = [group for group in optimizer.param_groups if float(group.get("weight_decay", 0.0)) != 0.0]
        if not groups:
            raise ValueError(
                "`optimizer` has no group with `weight_decay` above 0; expected one at least. "
                "Build it on `weight_decay_groups(model, weight_decay)`."
            )
        self.coupled, self.cautious, self.independent_of_lr = coupled, cautious, independent_of_lr
        self.optimizer = optimizer
        self.references = _references(groups, reference)
        self._before: list[_Snapshot] = []
        for group in groups:
            _take_over(group, independent_of_lr)
        self._hooks = [optimizer.register_step_pre_hook(self._before_step)]
        if cautious:
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        """Hand the weight decay back to the optimizer."""
        for hook in self._hooks:
            hook.remove()
        for group in self.optimizer.param_groups:
            if KEY in group:
                group["weight_decay"] = float(group.pop(KEY))

    def state_dict(self) -> dict[str, Any]:
        """The references, by group and position; the strengths are in the optimizer's `state_dict`."""
        return {"references": [[self.references.get(id(p)) for p in g["params"]] for g in self.optimizer.param_groups]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the references.

        Raises:
            ValueError: If the optimizer has other groups.
        """
        groups = self.optimizer.param_groups
        saved = state_dict["references"]
        if [len(row) for row in saved] != [len(group["params"]) for group in groups]:
            raise ValueError(
                f"`state_dict` has groups of {[len(row) for row in saved]} parameters, but the optimizer has "
                f"{[len(group['params']) for group in groups]}; expected as many. Build the optimizer as it was saved."
            )
        self.references = {
            id(p): _like(value, p)
            for row, group in zip(saved, groups, strict=True)
            for value, p in zip(row, group["params"], strict=True)
            if value is not None
        }

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(a) and not isinstance(a, Optimizer) for a in (*args, *kwargs.values())):
            raise ValueError(
                "`step` got a closure, which would see weights that are decayed already; expected none. "
                "Call `loss.backward()` before `optimizer.step()`."
            )
        self._before = []
        for group in optimizer.param_groups:
            if KEY not in group:
                continue
            for params, references in self._by_reference([p for p in group["params"] if p.grad is not None]):
                if self.cautious:
                    weights = _coordinates(params)
                    self._before.append(_Snapshot(group, weights, [w.clone() for w in weights], references))
                elif self.coupled:
                    self._add_to_gradients(group, params, references)
                else:
                    self._shrink(group, _coordinates(params), references)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for group, weights, before, references in self._before:
            shrink_where_aligned_(weights, before, references, self._strength(group))
        self._before = []

    def _add_to_gradients(self, group: dict[str, Any], params: list[Tensor], references: list[Tensor] | None) -> None:
        weights = _coordinates(params)
        distances = weights if references is None else torch._foreach_sub(weights, references)
        grads = _coordinates([p.grad for p in params if p.grad is not None])
        torch._foreach_add_(grads, list(torch._foreach_mul(distances, self._scaled(group[KEY]))))

    def _shrink(self, group: dict[str, Any], weights: list[Tensor], references: list[Tensor] | None) -> None:
        if references is None:
            shrink_(weights, self._strength(group))
        else:
            shrink_toward_(weights, references, self._strength(group))

    def _by_reference(self, params: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor] | None]]:
        """The parameters that have a reference with its coordinates, and those that have none."""
        bare = [p for p in params if id(p) not in self.references]
        held = [p for p in params if id(p) in self.references]
        pairs: list[tuple[list[Tensor], list[Tensor] | None]] = [(bare, None)] if bare else []
        return [*pairs, (held, _coordinates([self.references[id(p)] for p in held]))] if held else pairs

    def _strength(self, group: dict[str, Any]) -> Tensor:
        strength: Tensor = group[KEY] * group["decay_lr" if self.independent_of_lr else "lr"]
        # GradScaler lets a fused optimizer step even on infinite gradients and tells it here to change nothing.
        found_inf = getattr(self.optimizer, "found_inf", None)
        return strength if found_inf is None else strength * (1 - found_inf.to(strength))

    def _scaled(self, strength: Tensor) -> Tensor:
        # A fused optimizer divides the gradients itself, by what GradScaler leaves here.
        grad_scale = getattr(self.optimizer, "grad_scale", None)
        return strength if grad_scale is None else strength * grad_scale.to(strength)


def _take_over(group: dict[str, Any], independent_of_lr: bool) -> None:
    first: Tensor = group["params"][0]
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    group[KEY] = torch.tensor(float(group["weight_decay"]), dtype=dtype, device=first.device)
    group["weight_decay"] = 0.0
    if independent_of_lr:
        group["decay_lr"] = float(group.get("initial_lr", group["lr"]))


def _references(groups: Sequence[dict[str, Any]], reference: Reference) -> dict[int, Tensor]:
    if reference is None:
        return {}
    if isinstance(reference, str):
        _check.option(reference, "reference", ("initial", None))
        return {id(p): p.detach().clone() for group in groups for p in group["params"]}
    if any("param_names" not in group for group in groups):
        raise ValueError(
            "`reference` by name needs groups with `param_names`, got groups without. "
            "Build the optimizer on `weight_decay_groups(model, weight_decay)`."
        )
    named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"], strict=True)}
    known = {name: p for name, p in named.items() if name in reference}
    if not known:
        raise ValueError(
            f"`reference` has no parameter of the optimizer, got {_some(reference)}; expected some of {_some(named)}."
        )
    for name, p in known.items():
        _check.is_tensor(reference[name], f"reference[{name!r}]")
        _check.shape(reference[name], [tuple(p.shape)], f"reference[{name!r}]")
    return {id(p): _like(reference[name], p) for name, p in known.items()}


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy in the dtype and on the device of the parameter, sharded as it is."""
    value = value.detach()
    if not is_dtensor(parameter):
        return value.to(parameter, copy=True)
    if not is_dtensor(value):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(parameter.device), mesh, placements)
    return value.to(parameter.dtype, copy=True)


def _coordinates(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of the real coordinates, of this rank's shard where a tensor is sharded."""
    shards = [local(t.detach()) for t in tensors]
    return [torch.view_as_real(t) if t.is_complex() else t for t in shards]


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in list(names)[:3]) + (", ..." if len(names) > 3 else "")

"""Weight decay as an operation of its own: toward a reference, cautious, free of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchridge.training.hooks import StepHook, closure_of, holds_optimizer, installed, steppable, with_closure
from torchridge.training.sums import widened
from torchridge.training.weight_decay.optimizers import refuse_other_copy
from torchridge.training.weight_decay.references import coordinates, like, references_of
from torchridge.training.weight_decay.shrink import shrink_, shrink_toward_, shrink_where_aligned_
from torchridge.training.weight_decay.strengths import KEY, given_lr, is_taken_over, strength_tensor

Reference: TypeAlias = "Literal['initial'] | Mapping[str, Tensor] | None"


class _Snapshot(NamedTuple):
    group: dict[str, Any]
    weights: list[Tensor]
    before: list[Tensor]
    references: list[Tensor] | None


class DecoupledWeightDecay(StepHook):
    """Take the weight decay of an optimizer's groups over and apply it at each step, from a tensor.

    With learning rate η, strength s = `weight_decay` of the group, reference w₀ and update u, one step is

    * w ← w − η s (w − w₀) − η u, as AdamW's with w₀ = 0;
    * `coupled`: the gradient gets s (w − w₀), the gradient of s/2 ‖w − w₀‖²; the penalty λ‖w − w₀‖² has s = 2λ.
      With pretrained values as reference this is L2-SP (Li et al. 2018, https://arxiv.org/abs/1802.01483), with the
      values at the start L2-init (Kumar et al. 2023, https://arxiv.org/abs/2308.11958);
    * `cautious`: w ← w − η u − η s 1[u ⊙ (w − w₀) ≥ 0] ⊙ (w − w₀), decay only where the update goes the same way
      (Chen et al. 2025, https://arxiv.org/abs/2510.12402);
    * `independent_of_lr`: the η of the decay is the learning rate that the optimizer was given, whatever a scheduler
      makes of it, before or after this was made. (One trace is missing: `CyclicLR(cycle_momentum=False)` overwrites
      the learning rate of each group and leaves no sign of it. Make this before such a scheduler.)

    As in torch, a parameter without a gradient is left alone, and under `maximize=True` weights still shrink. The
    strength lies in the group as the 0-d tensor `weight_decay_tensor`, so a schedule that changes it makes
    `torch.compile` recompile nothing; the group's own `weight_decay` becomes 0. A strength that is put into
    `weight_decay` later, by a schedule or by `add_param_group`, is taken over at the next step.

    The optimizer's `state_dict` holds the strengths, as `weight_decay` too, for an optimizer without this. State saved
    without this leaves the strengths, and what they pull to, as they are here. Copies and pickles of the optimizer
    take this along.

    Args:
        optimizer: Any optimizer with `weight_decay` and `lr` in its groups, e.g. on `weight_decay_groups(...)`, or what
            wraps one.
        reference: None for zero, `"initial"` for the values now, or tensors by name such as a `state_dict`; then the
            groups need `param_names`, and parameters not in it are decayed toward zero.
        coupled: Add the decay to the gradient instead of taking it from the weight.
        cautious: Decay only where the update's sign agrees. Needs a copy of the decayed weights during each step.
        independent_of_lr: Do not follow the learning-rate schedule.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: If no group has any weight decay, or another `DecoupledWeightDecay` has it; if the optimizer's step
            would never call the hook, or would overwrite what it does, as those that train another copy of the
            weights do (schedule-free ones, master weights), unless `coupled`; if `reference` has no parameter of the
            optimizer or one of another shape; if `coupled` is combined with `cautious` or `independent_of_lr`. A step
            that evaluates its closure more than once is refused.

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

    holds_decay = True

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        reference: Reference = None,
        coupled: bool = False,
        cautious: bool = False,
        independent_of_lr: bool = False,
    ) -> None:
        if not holds_optimizer(optimizer):
            raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        if coupled and (cautious or independent_of_lr):
            raise ValueError(
                "`coupled` decay goes through the gradient, got it with `cautious` or `independent_of_lr`; expected "
                "one of them at most. Leave `coupled` out."
            )
        stepped = steppable(optimizer)
        groups = _groups_to_take(stepped)
        self.coupled, self.cautious, self.independent_of_lr = coupled, cautious, independent_of_lr
        self.moves_weights = not coupled
        if self.moves_weights:
            refuse_other_copy(stepped)
        self._wanted = reference
        self._pulled_to = references_of([group for _, group in groups], reference)
        self._before: list[_Snapshot] = []
        # What each group was given, by its index: loading a state replaces the groups themselves.
        self._held: dict[int, tuple[Tensor, float | None]] = {}
        for index, group in groups:
            self._take_over(stepped, index, group.get(KEY, 0.0) if is_taken_over(group) else group["weight_decay"])
        self.attach(stepped)

    @property
    def references(self) -> dict[int, Tensor]:
        """What each parameter is pulled to, by its `id`."""
        return {id(p): reference for p, reference in self._pulled_to.items()}

    def remove(self) -> None:
        """Hand the weight decay back to the optimizer."""
        super().remove()
        for group in self.optimizer.param_groups:
            if KEY in group:
                group["weight_decay"] = float(group.pop(KEY))

    def state_dict(self) -> dict[str, Any]:
        """The references, by group and position; the strengths are in the optimizer's `state_dict`."""
        return {"references": [[self._pulled_to.get(p) for p in g["params"]] for g in self.optimizer.param_groups]}

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
        self._pulled_to = {
            p: like(value, p)
            for row, group in zip(saved, groups, strict=True)
            for value, p in zip(row, group["params"], strict=True)
            if value is not None
        }

    def _saved(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Write the strengths as `weight_decay` too, so that an optimizer without this goes on with them."""
        for group in state_dict["param_groups"]:
            if KEY in group:
                group["weight_decay"] = float(group[KEY])

    def _loaded(self, optimizer: Optimizer) -> None:
        """Take the strengths that were loaded, or ours again if the state has none."""
        for index, group in enumerate(optimizer.param_groups):
            held = self._held.get(index)
            if KEY not in group and held is None:
                continue
            if held is not None and held[1] is not None:
                group.setdefault("decay_lr", held[1])
            self._take_over(optimizer, index, group.get(KEY, held[0] if held else 0.0))

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shrink the weights, or add to their gradients, or note where they are; after a closure if there is one."""
        if self.moves_weights:
            refuse_other_copy(optimizer)
        closure = closure_of(args, kwargs)
        if closure is None:
            self._decay(optimizer)
            return None
        # A closure may zero the gradients and fill them again, and computes its loss on the weights as they are.
        return with_closure(args, kwargs, _once(closure, partial(self._decay, optimizer)))

    @torch.no_grad()
    def _decay(self, optimizer: Optimizer) -> None:
        self._take_newly_set(optimizer)
        self._before = []
        for group in optimizer.param_groups:
            if KEY not in group:
                continue
            for params, references in self._by_reference([p for p in group["params"] if p.grad is not None]):
                if self.cautious:
                    weights = coordinates(params)
                    self._before.append(_Snapshot(group, weights, [w.clone() for w in weights], references))
                elif self.coupled:
                    self._add_to_gradients(optimizer, group, params, references)
                else:
                    self._shrink(optimizer, group, coordinates(params), references)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer) -> None:
        """Shrink where the step went the same way."""
        for group, weights, before, references in self._before:
            shrink_where_aligned_(weights, before, references, self._strength(optimizer, group))
        self._before = []

    def _take_over(self, optimizer: Optimizer, index: int, strength: float | Tensor) -> None:
        group = optimizer.param_groups[index]
        group[KEY] = strength_tensor(group, strength)
        group["weight_decay"] = 0.0
        if self.independent_of_lr:
            group.setdefault("decay_lr", given_lr(optimizer, group))
        self._held[index] = (group[KEY], group.get("decay_lr"))

    def _take_newly_set(self, optimizer: Optimizer) -> None:
        """Take over what a schedule, or a group that was added, has put into `weight_decay` since."""
        for index, group in enumerate(optimizer.param_groups):
            own = group.get("weight_decay", 0.0)
            if isinstance(own, Tensor) or own != 0.0:
                if index not in self._held:
                    self._pulled_to.update(references_of([group], self._wanted, late=True))
                self._take_over(optimizer, index, own)

    def _add_to_gradients(
        self, optimizer: Optimizer, group: dict[str, Any], params: list[Tensor], references: list[Tensor] | None
    ) -> None:
        weights = [widened(w) for w in coordinates(params)]
        references = None if references is None else [widened(r) for r in references]
        distances = weights if references is None else torch._foreach_sub(weights, references)
        pulls = torch._foreach_mul(distances, _scaled(optimizer, group[KEY]))
        grads = coordinates([p.grad for p in params if p.grad is not None])
        sign = -1 if group.get("maximize", False) else 1
        for grad, pull in zip(grads, pulls, strict=True):
            wide = widened(grad)
            wide.add_(pull, alpha=sign)
            if wide is not grad:
                grad.copy_(wide)

    def _shrink(
        self, optimizer: Optimizer, group: dict[str, Any], weights: list[Tensor], references: list[Tensor] | None
    ) -> None:
        if references is None:
            shrink_(weights, self._strength(optimizer, group))
        else:
            shrink_toward_(weights, references, self._strength(optimizer, group))

    def _by_reference(self, params: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor] | None]]:
        """The parameters that have a reference with its coordinates, and those that have none."""
        bare = [p for p in params if p not in self._pulled_to]
        held = [p for p in params if p in self._pulled_to]
        pairs: list[tuple[list[Tensor], list[Tensor] | None]] = [(bare, None)] if bare else []
        return [*pairs, (held, coordinates([self._pulled_to[p] for p in held]))] if held else pairs

    def _strength(self, optimizer: Optimizer, group: dict[str, Any]) -> Tensor:
        strength: Tensor = group[KEY] * group["decay_lr" if self.independent_of_lr else "lr"]
        # GradScaler lets a fused optimizer step even on infinite gradients and tells it here to change nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        return strength if found_inf is None else strength * (1 - found_inf.to(strength))


def _once(closure: Callable[[], Any], then: Callable[[], None]) -> Callable[[], Any]:
    """Let something follow the closure, which may be evaluated only once a step."""
    done = False

    def followed() -> Any:
        nonlocal done
        if done:
            raise ValueError(
                "`step` evaluates its closure more than once, which would see weights that are decayed already; "
                "expected once. Add `penalty(model)` to the loss in the closure instead."
            )
        loss = closure()
        then()
        done = True
        return loss

    return followed


def _groups_to_take(optimizer: Optimizer) -> list[tuple[int, dict[str, Any]]]:
    """The groups with weight decay, their own or left by a loaded state, by index."""
    if installed(optimizer, DecoupledWeightDecay):
        raise ValueError(
            "`optimizer` has its weight decay taken over by another DecoupledWeightDecay; expected at most one. Call "
            "`remove()` on that first."
        )
    groups = [
        (index, group)
        for index, group in enumerate(optimizer.param_groups)
        if KEY in group or float(group.get("weight_decay", 0.0)) != 0.0
    ]
    if not groups:
        raise ValueError(
            "`optimizer` has no group with `weight_decay` above 0; expected at least one. "
            "Build it on `weight_decay_groups(model, weight_decay)`."
        )
    return groups


def _scaled(optimizer: Optimizer, strength: Tensor) -> Tensor:
    # A fused optimizer divides the gradients itself, by what GradScaler leaves here.
    grad_scale = getattr(optimizer, "grad_scale", None)
    return strength if grad_scale is None else strength * grad_scale.to(strength)

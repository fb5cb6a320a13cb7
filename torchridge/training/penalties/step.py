"""The penalty as a gradient, added once per optimizer step rather than to each loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge.exceptions import DoublePenaltyWarning, warn
from torchridge.training.hooks import StepHook, closure_of, holds_optimizer, installed, steppable, with_closure
from torchridge.training.penalties.attachment import attachment, carriers, forget_backward
from torchridge.training.penalties.strengths import Strength
from torchridge.training.penalties.weights import Weight, parameters_of, split_plain, weight_penalties, weights_of
from torchridge.training.sums import accumulation_dtype, local, scale, widened, widened_dtype

Unused = Literal["penalize", "skip"]


class StepPenalty(StepHook):
    """The hook that :func:`penalize_step` put on an optimizer; `remove()` takes it off.

    Attributes:
        model: The model whose regularizers it reads.
        optimizer: The optimizer that it acts on, which may lie within the one that was given.

    Args:
        optimizer: As for `penalize_step`, which makes it.
        model: As for `penalize_step`.
        unused: As for `penalize_step`.

    Example:
        >>> from torchridge.training.penalties.layers import L2Linear
        >>> layer = L2Linear(2, 1, l2=0.5)
        >>> hook = penalize_step(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
        >>> hook.remove()
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, unused: Unused) -> None:
        self.model = model
        self._unused = unused
        self._warned = False
        forget_backward(weights for _, _, weights in carriers(model))
        self.attach(optimizer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the penalty's gradient, or let the closure do it."""
        closure = closure_of(args, kwargs)
        if closure is None:
            self._add(optimizer)
            return None
        # A closure zeroes and refills the gradients, so the penalty has to come after it.
        return with_closure(args, kwargs, self._penalized(optimizer, closure))

    def _penalized(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        def penalized() -> Any:
            loss = closure()
            self._add(optimizer)
            if loss is None:  # as of a trainer that skips a batch
                return None
            with torch.no_grad():
                parts = weight_penalties(_owned(optimizer, weights_of(self.model)))
            device = loss.device if isinstance(loss, Tensor) else None
            return loss + _sign(optimizer.param_groups[0]) * sum(part.to(device) for part in parts)

        return penalized

    def _add(self, optimizer: torch.optim.Optimizer) -> None:
        # `GradScaler` leaves the gradients of fused optimizers scaled, and tells them by how much.
        grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        with torch.enable_grad():
            weights = weights_of(self.model)
        signs = {p: _sign(group) for group in optimizer.param_groups for p in group["params"]}
        self._warn_double(_owned(optimizer, weights))
        plain, others = split_plain(weights)
        for strength, group in plain:
            for sign in (1, -1):
                leaves = [weight.tensor for weight in group if signs.get(weight.tensor) == sign]
                self._add_fused(leaves, sign * strength, grad_scale)
        others += [weight for _, group in plain for weight in group if not weight.tensor.is_leaf]
        if others:
            self._add_differentiated(others, signs, grad_scale)

    @torch.no_grad()
    def _add_fused(self, weights: Sequence[Tensor], strength: Strength, grad_scale: Tensor | None) -> None:
        """Add 2 · strength · W to the gradients."""
        factor = 2 * strength if grad_scale is None else 2 * strength * grad_scale
        ready = [(_dense(weight.grad), weight) for weight in weights if weight.grad is not None]
        ready.reverse()  # the first weights of the optimizer's loop are then the last ones in the cache
        wide = [pair for pair in ready if _is_wide(*pair)]
        if wide:
            grads, values = [local(g) for g, _ in wide], [w for _, w in wide]
            if isinstance(factor, Tensor):
                torch._foreach_add_(grads, [local(t) for t in scale(values, factor)])
            else:
                torch._foreach_add_(grads, [local(w) for w in values], alpha=factor)
        for grad, weight in ready:
            if not _is_wide(grad, weight):
                _add_widened(local(grad), local(weight), factor)
        fresh = [weight for weight in weights if weight.grad is None]
        if fresh and self._unused == "penalize":
            for weight, product in zip(fresh, scale(fresh, torch.as_tensor(factor, dtype=torch.float64)), strict=True):
                weight.grad = product

    def _add_differentiated(
        self, weights: Sequence[Weight], signs: Mapping[Tensor, int], grad_scale: Tensor | None
    ) -> None:
        """Add the gradient of any other penalty, through whatever computes the weight."""
        with torch.enable_grad():
            value = torch.stack([v.to(weights[0].tensor.device) for v in weight_penalties(weights)]).sum()
        value = value if grad_scale is None else value * grad_scale.to(value.device)
        trained = [p for p in signs if p.requires_grad]
        for parameter, grad in zip(trained, torch.autograd.grad(value, trained, allow_unused=True), strict=True):
            if grad is None:
                continue
            if parameter.grad is not None:
                _dense(parameter.grad).add_(grad, alpha=signs[parameter])
            elif self._unused == "penalize":
                parameter.grad = signs[parameter] * grad

    def _warn_double(self, weights: Sequence[Weight]) -> None:
        """Warn, once, of weights whose penalty came through the loss as well."""
        if torch.compiler.is_compiling():
            return
        twice = [weight.name for weight in weights if weight.in_loss]
        forget_backward(carried for weight in weights if (carried := attachment(weight.module)) is not None)
        if twice and not self._warned:
            self._warned = True
            more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
            warn(
                f"`{twice[0]}`{more} is penalized twice: by `penalty(model)` in the loss, and by `penalize_step` at "
                f"the step. Drop one of them; `penalty(model, weights=False)` leaves only the penalties of outputs.",
                DoublePenaltyWarning,
            )


def _sign(group: Mapping[str, Any]) -> int:
    """-1 if the optimizer turns the gradient around, so that the penalty still pulls to zero."""
    return -1 if group.get("maximize", False) else 1


def _is_wide(grad: Tensor, weight: Tensor) -> bool:
    return all(widened_dtype(t.dtype) == t.dtype for t in (grad, weight))


def _add_widened(grad: Tensor, weight: Tensor, factor: float | Tensor) -> None:
    # A factor, or a product, rounded to bfloat16 before the sum would be 0.4 % off.
    factor = factor.to(grad.device, accumulation_dtype(grad.dtype)) if isinstance(factor, Tensor) else factor
    grad.copy_(widened(grad) + factor * widened(weight))


def penalize_step(optimizer: torch.optim.Optimizer, model: nn.Module, *, unused: Unused = "penalize") -> StepPenalty:
    """Add the gradient of `penalty(model)` once per step of an optimizer, in place of adding the penalty to the loss.

    Before each `optimizer.step()` the gradient of every penalized parameter of the optimizer grows by that of its
    penalty: 2λW for `L2(λ)`, as `weight_decay = 2λ` would do in SGD and Adam, and with AdamW's step it is still this
    coupled L2, not decoupled decay. So it counts once however many micro-batches were accumulated, is not multiplied
    by the scale of a `GradScaler`, and is not averaged over the ranks of DDP.

    Clipping of gradients between `backward` and `step` sees the loss's gradient alone, as it does with
    `weight_decay`; with `loss + penalty(model)` it sees the sum. `parameter.grad` holds the penalty's part after the
    step. Do not add `penalty(model)` to the loss as well, but for `penalty(model, weights=False)`: penalties of
    outputs depend on the data, and belong in the loss.

    A closure is followed by the penalty at each evaluation, and its loss is returned with the penalty's value, so
    that LBFGS minimizes the penalized loss. Under `maximize=True` the sign is turned, so that weights still shrink.

    The hook stays through `load_state_dict` and `add_param_group`, and goes along with `copy.deepcopy` and pickle: copy
    model and optimizer in one call, so that the copies belong together. The step at learning rate 0 by which torch
    makes the states of a fresh optimizer for a checkpoint is left alone.

    Args:
        optimizer: Any `torch.optim` optimizer, or what wraps one (Accelerate, Lookahead, SAM, ZeRO); with several, call
            once for each that holds regularized parameters.
        model: The model that carries the regularizers, from `regularize` or `L2Linear`; read anew at each step. A
            second call for the same optimizer replaces an earlier one for this model, or for parts of it.
        unused: What to do about a penalized parameter without a gradient, as DDP leaves unused ones: `"penalize"` as
            the penalty in the loss would, or `"skip"` as `weight_decay` does.

    Returns:
        A handle, for `remove()`.

    Raises:
        TypeError: If `optimizer` is not an optimizer or `model` not a module.
        ValueError: If `unused` is unknown; if the optimizer's step would never call the hook; if `model` carries no
            regularizer of weights, or `optimizer` holds none of the parameters they are of; if an earlier call
            penalizes some of them, and others besides.

    Warns:
        DoublePenaltyWarning: At a step, once, if the gradient of a weight already holds its penalty from the loss.

    Cost: a step reads and writes each gradient once and reads each weight once, fused over the tensors.

    Example:
        >>> from torchridge.training.penalties.layers import L2Linear
        >>> layer = L2Linear(2, 1, l2=0.5)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> hook = penalize_step(optimizer, layer)
        >>> before = layer.weight.detach().clone()
        >>> layer(torch.zeros(1, 2)).sum().backward(); optimizer.step()
        >>> torch.allclose(layer.weight, before * (1 - 0.1 * 2 * 0.5))
        True
    """
    if not holds_optimizer(optimizer):
        raise TypeError(f"`optimizer` should be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` should be a torch.nn.Module, got {type(model).__name__}. Pass the model itself.")
    _check.option(unused, "unused", ("penalize", "skip"))
    stepped = steppable(optimizer)
    _refuse_idle(stepped, model)
    for earlier in _replaced(stepped, model):
        earlier.remove()
    return StepPenalty(stepped, model, unused)


def _refuse_idle(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse a penalty that no step would ever add."""
    penalized = parameters_of(model)
    if not penalized:
        raise ValueError(
            "`model` carries no regularizer of weights, so that no step would be penalized; expected at least one. "
            "Call `regularize(model, L2(...))` first; for a strength of zero, `L2(0.0)`."
        )
    if penalized.isdisjoint(p for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"`optimizer` holds none of the {len(penalized)} regularized parameters of `model`. Build it from this "
            f"model's parameters, after moving or sharding it."
        )


def _replaced(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[StepPenalty]:
    """Return the earlier hooks on the optimizer that one for `model` stands in for."""
    penalized, replaced = parameters_of(model), []
    for earlier in installed(optimizer, StepPenalty):
        if penalized.isdisjoint(theirs := parameters_of(earlier.model)):
            continue
        if not theirs <= penalized:
            raise ValueError(
                f"`model` shares some regularized parameters with an earlier `penalize_step` on this optimizer, but "
                f"not all of its {len(theirs)}: those shared would be penalized twice. Call `remove()` on what it "
                f"returned, or pass the whole model once."
            )
        replaced.append(earlier)
    return replaced


def _owned(optimizer: torch.optim.Optimizer, weights: Sequence[Weight]) -> list[Weight]:
    """The weights that the optimizer trains, or that are computed from parameters."""
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [w for w in weights if id(w.tensor) in parameters or not w.tensor.is_leaf]


def _dense(grad: Tensor) -> Tensor:
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"a penalized weight has a gradient of layout {grad.layout}; expected a dense one, since the penalty acts "
            f"on every row. Build the embedding with `sparse=False`, or leave it out by a rule."
        )
    return grad

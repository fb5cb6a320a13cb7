"""Optimizers that wrap others, as they are met in the wild."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Lookahead(Optimizer):
    """As in many repositories: no `super().__init__`, and the groups of the optimizer within."""

    def __init__(self, base_optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        self.base_optimizer, self.k, self.alpha, self.count = base_optimizer, k, alpha, 0
        self.param_groups, self.defaults, self.state = (
            base_optimizer.param_groups,
            base_optimizer.defaults,
            base_optimizer.state,
        )
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    def step(self, closure: Any = None) -> Any:
        loss = self.base_optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for p, slow in self.slow.items():
                slow += self.alpha * (p.detach() - slow)
                p.data.copy_(slow)
        return loss


class SAM(Optimizer):
    """As https://github.com/davda54/sam: with `super().__init__`, and steps that never call its own `step`."""

    def __init__(self, params: Any, make: Callable[..., Optimizer], rho: float = 0.05, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = make(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.stack([g.norm() for g in grads]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.detach().clone()
                p.add_(p.grad, alpha=float(group["rho"] / norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p].pop("old"))
        self.base_optimizer.step()


class Holder:
    """Not an optimizer itself: passes on what an optimizer is asked for."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def step(self) -> None:
        self.inner.step()


class Several(Optimizer):
    """Two optimizers behind one step, and no `super().__init__`."""

    def __init__(self, first: Optimizer, second: Optimizer) -> None:
        self.first, self.second = first, second
        self.param_groups = first.param_groups + second.param_groups

    def step(self, closure: Any = None) -> None:
        self.first.step()
        self.second.step()


class Deaf(Optimizer):
    """No `super().__init__`, and nothing within."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1, "weight_decay": 0.1}]
        self.state = {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=-0.1)


class CallsItsParent(torch.optim.SGD):
    """Torch wraps its step and its parent's, and runs the hooks in both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


WRAPPERS: dict[str, Callable[[Optimizer], Any]] = {
    "lookahead": Lookahead,
    "lookahead around lookahead": lambda o: Lookahead(Lookahead(o)),
    "holder": Holder,
    "holder around lookahead": lambda o: Holder(Lookahead(o)),
}

"""Every optimizer of torch that couples its weight decay, in each of its forms, by each route: `weight_decay = 2λ`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.penalties.step import penalize_step
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import weight_decay_groups

LAMBDA = 0.05
STEPS = 30

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
    "Nesterov": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.01}),
    "RAdam": (torch.optim.RAdam, {"lr": 0.01}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "Adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.05}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01}),
    "decoupled NAdam": (torch.optim.NAdam, {"lr": 0.01, "decoupled_weight_decay": True}),
    "decoupled RAdam": (torch.optim.RAdam, {"lr": 0.01, "decoupled_weight_decay": True}),
}
DECOUPLED = {name for name in OPTIMIZERS if name == "AdamW" or name.startswith("decoupled")}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "maximize": {"maximize": True},
    "foreach": {"foreach": True},
    "one by one": {"foreach": False},
    "fused": {"fused": True},
    "fused, maximize": {"fused": True, "maximize": True},
    "capturable": {"capturable": True},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def train(optimizer_name: str, form: str, route: str) -> Tensor:
    cls, options = OPTIMIZERS[optimizer_name]
    model = network()
    if route in ("loss", "step"):
        regularize(model, L2(LAMBDA))
    groups = weight_decay_groups(model, 0.0 if route in ("loss", "step") else 2 * LAMBDA)
    try:
        optimizer = cls(groups, **{**options, **FORMS[form]})
    except (TypeError, ValueError, RuntimeError) as error:
        pytest.skip(f"torch does not have it: {error}")
    if route == "step":
        penalize_step(optimizer, model)
    elif route == "coupled":
        DecoupledWeightDecay(optimizer, coupled=True)
    elif route == "decoupled":
        DecoupledWeightDecay(optimizer)
    generator = torch.Generator().manual_seed(1)
    sign = -1 if FORMS[form].get("maximize") else 1
    for _ in range(STEPS):
        x = torch.randn(16, 6, dtype=torch.float64, generator=generator)
        y = torch.randn(16, 2, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        (sign * (loss + penalty(model) if route == "loss" else loss)).backward()
        try:
            optimizer.step()
        except (AssertionError, RuntimeError, NotImplementedError) as error:
            if form not in ("capturable", "differentiable"):
                raise
            pytest.skip(f"torch does not step so on this device: {error}")
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in DECOUPLED])
@pytest.mark.parametrize("route", ["loss", "step", "coupled"])
def test_coupled(name: str, form: str, route: str) -> None:
    torch.testing.assert_close(train(name, form, route), train(name, form, "own"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(DECOUPLED))
@pytest.mark.parametrize(("route", "other"), [("step", "loss"), ("decoupled", "own")])
def test_decoupled(name: str, form: str, route: str, other: str) -> None:
    """What these call weight decay is another problem: there the routes of the penalty agree among themselves."""
    ours = train(name, form, route)
    torch.testing.assert_close(ours, train(name, form, other), rtol=1e-6, atol=1e-9)
    if route == "step":
        assert float((ours - train(name, form, "own")).abs().max()) > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_matrix_is_no_row_of_skips(name: str) -> None:
    def runs(form: str) -> bool:
        try:
            train(name, form, "own")
        except BaseException as skipped:
            if type(skipped).__name__ != "Skipped":
                raise
            return False
        return True

    assert sum(runs(form) for form in FORMS) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("route", ["step", "coupled"])
@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam])
def test_a_compiled_step(cls: Any, route: str) -> None:
    def run(route: str) -> Tensor:
        torch._dynamo.reset()
        model = regularize(network(), L2(LAMBDA))
        optimizer = cls(weight_decay_groups(model, 0.0 if route == "step" else 2 * LAMBDA), lr=0.01)
        if route == "step":
            penalize_step(optimizer, model)
        if route == "coupled":
            DecoupledWeightDecay(optimizer, coupled=True)
        step = torch.compile(lambda: optimizer.step(), backend="eager")
        for i in range(4):
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(run(route), run("own"), rtol=1e-6, atol=1e-9)

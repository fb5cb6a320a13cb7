"""Accelerate itself: prepared models, optimizers and schedulers are taken as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge import (
    ConstantWeightDecay,
    CosineWeightDecay,
    DecoupledWeightDecay,
    L2Monitor,
    check_optimizer,
    penalize_step,
    penalty,
    regularize,
    weight_decay_groups,
)
from torchridge.regularizers import L2

accelerate = pytest.importorskip("accelerate", reason="the extra `integrations` is not installed")

LAMBDA = 0.05


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    """Accelerate keeps the settings of the first Accelerator for the process."""
    accelerate.state.AcceleratorState._reset_state(True)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(
    route: str, steps: int = 4, first: str = "prepare", make: Any = torch.optim.SGD, **options: Any
) -> list[Tensor]:
    """Train with accumulation over `steps`; `first` says whether objects are prepared or hooked first."""
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps, **options)
    model = network()
    if route in ("step", "loss"):
        regularize(model, L2(LAMBDA))
    optimizer = make(weight_decay_groups(model, 0.0 if route in ("step", "loss") else 2 * LAMBDA), lr=0.05)
    hook: dict[str, Any] = {
        "step": lambda o: penalize_step(o, model),
        "coupled": lambda o: DecoupledWeightDecay(o, coupled=True),
        "decoupled": DecoupledWeightDecay,
    }
    if first == "hook" and route in hook:
        hook[route](optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    if first == "prepare" and route in hook:
        hook[route](optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(24):
        x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)
        with accelerator.accumulate(model):
            loss = (model(x) - y).square().mean()
            accelerator.backward(loss + penalty(model) if route == "loss" else loss)
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def close(a: list[Tensor], b: list[Tensor]) -> None:
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("route", ["loss", "step", "coupled"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("first", ["prepare", "hook"])
def test_prepared_objects(route: str, make: Any, first: str) -> None:
    close(train(route, first=first, make=make), train("own", make=make))


@pytest.mark.parametrize("first", ["prepare", "hook"])
def test_decoupled(first: str) -> None:
    close(train("decoupled", first=first, make=torch.optim.AdamW), train("own", make=torch.optim.AdamW))


def test_mixed_precision() -> None:
    close(train("step", mixed_precision="bf16"), train("own", mixed_precision="bf16"))


def test_checkpoints_schedules_and_the_monitor(tmp_path: Any) -> None:
    class Kept(dict[str, float]):
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self[tag] = value

    accelerator = accelerate.Accelerator(cpu=True)
    inner = network()
    raw = torch.optim.AdamW(weight_decay_groups(inner, 0.4), lr=0.1)
    model, optimizer = accelerator.prepare(inner, raw)
    check_optimizer(optimizer, model=model)
    DecoupledWeightDecay(optimizer, reference="initial")
    schedule = CosineWeightDecay(optimizer, total_steps=2)
    accelerator.register_for_checkpointing(schedule)
    schedule.step()
    accelerator.save_state(str(tmp_path), safe_serialization=False)
    schedule.step()
    assert schedule.get_last_weight_decay() == pytest.approx([0.0, 0.0])
    accelerator.load_state(str(tmp_path))
    assert schedule.get_last_weight_decay() == pytest.approx([0.2, 0.0])
    assert schedule.last_step == 1
    model(torch.ones(2, 4)).sum().backward()
    L2Monitor(kept := Kept(), model, optimizer).step()
    assert kept["l2/weight_decay/decay"] == pytest.approx(0.2)
    ConstantWeightDecay(optimizer, independent_of_lr=True)
    optimizer.step()

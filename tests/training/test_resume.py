"""Strengths through checkpoints, added groups and learning-rate schedules, in any order of construction."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LinearLR, OneCycleLR, StepLR

from torchridge.training.monitor import L2Monitor
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import weight_decay_groups
from torchridge.training.weight_decay.optimizers import check_optimizer
from torchridge.training.weight_decay.schedule import ConstantWeightDecay, CosineWeightDecay
from torchridge.training.weight_decay.strengths import get_weight_decay


def weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full((3,), value, dtype=torch.float64))


def step(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()


def value(p: Tensor) -> float:
    return float(p.detach()[0])


@pytest.mark.parametrize("saved_decay", [0.5, 0.0])
@pytest.mark.parametrize("options", [{"reference": "initial"}, {"reference": "initial", "coupled": True}], ids=str)
def test_state_saved_without_it_does_not_turn_it_off(saved_decay: float, options: Any) -> None:
    pretrained = torch.optim.SGD([weight()], lr=0.1, weight_decay=saved_decay)
    p = weight()
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer, **options)
    optimizer.load_state_dict(pretrained.state_dict())
    step(optimizer)
    assert value(p) == 1.0  # it is pulled to where it is
    with torch.no_grad():
        p.fill_(3.0)
    step(optimizer)
    assert value(p) == pytest.approx(3.0 - 0.1 * 0.5 * 2.0, rel=1e-14)
    assert get_weight_decay(optimizer.param_groups[0]) == 0.5


def test_state_saved_with_it_brings_its_strength_and_resumes_it() -> None:
    def build(decay: float) -> tuple[nn.Parameter, Optimizer]:
        p = weight()
        return p, torch.optim.AdamW([p], lr=0.1, weight_decay=decay)

    _, first = build(0.5)
    DecoupledWeightDecay(first, independent_of_lr=True)
    state = first.state_dict()
    p, before = build(0.3)  # made before loading
    DecoupledWeightDecay(before)
    before.load_state_dict(state)
    step(before)
    assert value(p) == pytest.approx(0.95, rel=1e-14)
    q, after = build(0.0)  # made after loading
    after.load_state_dict(state)
    DecoupledWeightDecay(after)
    step(after)
    assert value(q) == pytest.approx(0.95, rel=1e-14)
    r, plain = build(0.0)  # never made: the strength is then the optimizer's own
    plain.load_state_dict(state)
    step(plain)
    assert value(r) == pytest.approx(0.95, rel=1e-14)
    schedule = CosineWeightDecay(plain, total_steps=1)
    schedule.step()
    step(plain)
    assert value(r) == pytest.approx(0.95, rel=1e-14)  # the schedule acts on what decays
    with pytest.raises(ValueError, match=r"another DecoupledWeightDecay.*`remove\(\)`"):
        DecoupledWeightDecay(before)


def test_the_free_rate_outlives_a_state_without_it() -> None:
    p = weight()
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer, independent_of_lr=True)
    optimizer.load_state_dict(torch.optim.SGD([weight()], lr=0.001).state_dict())
    step(optimizer)
    assert value(p) == pytest.approx(0.95, rel=1e-14)


@pytest.mark.parametrize("options", [{}, {"reference": "initial"}, {"independent_of_lr": True}], ids=str)
def test_a_group_added_later_is_decayed_alike(options: Any) -> None:
    p, q, r = weight(), weight(2.0), weight(2.0)
    optimizer = torch.optim.SGD([p], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer, **options)
    step(optimizer)
    optimizer.add_param_group({"params": [q], "lr": 0.2})
    optimizer.add_param_group({"params": [r], "weight_decay": 0.0})
    for group in optimizer.param_groups:
        group["lr"] /= 2 if "independent_of_lr" in options and len(group["params"]) == 0 else 1
    step(optimizer)
    kept = "reference" in options
    assert value(q) == pytest.approx(2.0 if kept else 2.0 * (1 - 0.2 * 0.5), rel=1e-14)
    assert value(r) == 2.0
    with torch.no_grad():
        q.fill_(4.0)
    step(optimizer)
    assert value(q) == pytest.approx(4.0 - 0.1 * (4.0 - 2.0 * kept), rel=1e-14)


def test_a_schedule_that_writes_weight_decay_itself_is_followed() -> None:
    p = weight()
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer)
    optimizer.param_groups[0]["weight_decay"] = 0.2  # as DINO's loop does
    step(optimizer)
    assert value(p) == pytest.approx(0.98, rel=1e-14)
    assert get_weight_decay(optimizer.param_groups[0]) == 0.2


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "one cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=10),
    "one cycle with another top": lambda o: OneCycleLR(o, max_lr=3.0, total_steps=10),
    "cyclic": lambda o: CyclicLR(o, base_lr=0.001, max_lr=0.1),
    "step": lambda o: StepLR(o, 1, gamma=0.5),
    "warm-up": lambda o: LinearLR(o, 0.1, 1.0, total_iters=5),
}


@pytest.mark.parametrize("make", [lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("order", ["decay first", "scheduler first"])
@pytest.mark.parametrize("how", ["decoupled", "constant", "both"])
def test_free_of_the_learning_rate_in_any_order(make: Any, scheduler: Any, order: str, how: str) -> None:
    def decay(optimizer: Optimizer) -> Any:
        if how != "constant":
            DecoupledWeightDecay(optimizer, independent_of_lr=how == "decoupled")
        return None if how == "decoupled" else ConstantWeightDecay(optimizer, independent_of_lr=True)

    p = weight()
    optimizer = make(p)
    first, second = (decay, scheduler) if order == "decay first" else (scheduler, decay)
    made = [first(optimizer), second(optimizer)]
    for _ in range(8):
        step(optimizer)
        for schedule in made:
            if schedule is not None:
                schedule.step()
    assert value(p) == pytest.approx(0.95**8, rel=1e-12)


def test_a_learning_rate_scale_is_kept_under_one_cycle() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False).double() for _ in range(2)))
    groups = weight_decay_groups(model, 0.5, lr=0.1, layer_decay=0.5, layer_of=lambda name: int(name[0]))
    optimizer = torch.optim.SGD(groups, lr=0.1)
    OneCycleLR(optimizer, max_lr=[g["lr"] for g in groups], total_steps=10)
    before = [layer.weight.detach().clone() for layer in model]
    DecoupledWeightDecay(optimizer, independent_of_lr=True)
    step(optimizer)
    for layer, start, lr in zip(model, before, (0.05, 0.1), strict=True):
        torch.testing.assert_close(layer.weight.detach(), start * (1 - lr * 0.5), rtol=1e-14, atol=0)


def test_cosine_before_a_warm_up_takes_its_full_share_at_step_zero() -> None:
    p = weight()
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    schedule = CosineWeightDecay(optimizer, total_steps=4, independent_of_lr=True)
    warmup = LinearLR(optimizer, 0.1, 1.0, total_iters=3)
    expected = 1.0
    for t in range(4):
        step(optimizer)
        expected *= 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * t / 4)) / 2
        assert value(p) == pytest.approx(expected, rel=1e-14)
        schedule.step()
        warmup.step()


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_schedule_keeps_its_own_base(taken_over: bool) -> None:
    p, q = weight(), weight()
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.4)
    if taken_over:
        DecoupledWeightDecay(optimizer)
    schedule = CosineWeightDecay(optimizer, total_steps=2, end_factor=0.5)
    optimizer.load_state_dict(torch.optim.AdamW([weight()], lr=0.1, weight_decay=0.1).state_dict())
    schedule.step()
    assert schedule.get_last_weight_decay() == pytest.approx([0.3])
    optimizer.add_param_group({"params": [q], "weight_decay": 0.8})
    schedule.step()
    assert schedule.get_last_weight_decay() == pytest.approx([0.2, 0.4])
    state = schedule.state_dict()
    other = torch.optim.AdamW([{"params": [weight()]}, {"params": [weight()]}], weight_decay=0.7)
    resumed = CosineWeightDecay(other, total_steps=2, end_factor=0.5)
    resumed.load_state_dict(state)
    assert resumed.get_last_weight_decay() == pytest.approx([0.2, 0.4])
    with pytest.raises(ValueError, match="has 2 initial weight decays, but the optimizer has 1"):
        CosineWeightDecay(torch.optim.AdamW([weight()]), 2).load_state_dict(state)


class ScheduleFree(torch.optim.Optimizer):
    """The update of https://arxiv.org/abs/2405.15682 for SGD: the parameters hold y, the state z."""

    def __init__(self, params: Any, lr: float, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay, "train_mode": True, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                grad = p.grad + group["weight_decay"] * p
                p.lerp_(z, 1 / group["k"])
                p.add_(grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(grad, alpha=group["lr"])


class MasterWeights(torch.optim.Optimizer):
    """Trains float32 copies of the parameters, made at the first step."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                copy = self.state[p].setdefault("full", p.detach().float())
                copy.sub_(p.grad.float() + group["weight_decay"] * copy, alpha=group["lr"])
                p.copy_(copy)


@pytest.mark.parametrize("options", [{}, {"cautious": True}, {"reference": "initial"}], ids=str)
def test_optimizers_that_step_another_point_are_refused_unless_coupled(options: Any) -> None:
    optimizer = ScheduleFree([weight()], lr=0.1, weight_decay=0.5)
    with pytest.raises(ValueError, match=r"is schedule-free.*own `weight_decay`, or pass `coupled=True`"):
        DecoupledWeightDecay(optimizer, **options)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    ours, theirs = weight(), weight()
    coupled = ScheduleFree([ours], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(coupled, coupled=True)
    own = ScheduleFree([theirs], lr=0.1, weight_decay=0.5)
    for _ in range(10):
        step(coupled)
        step(own)
    assert value(ours) == pytest.approx(value(theirs), rel=1e-14)
    assert value(ours) < 0.8


def test_schedule_free_itself_where_it_is_installed() -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not among the test requirements")
    for cls in (schedulefree.AdamWScheduleFree, schedulefree.SGDScheduleFree, schedulefree.RAdamScheduleFree):
        with pytest.raises(ValueError, match="is schedule-free"):
            DecoupledWeightDecay(cls([weight()], lr=0.1, weight_decay=0.5))
    p, q = weight(), weight()
    for parameter, wrapped in ((p, True), (q, False)):
        base = torch.optim.SGD([parameter], lr=0.1, weight_decay=0.5)
        optimizer = schedulefree.ScheduleFreeWrapper(base)
        if wrapped:
            DecoupledWeightDecay(optimizer)  # its base steps the parameters, which hold z by then
        optimizer.train()
        for _ in range(10):
            step(optimizer)
    assert value(p) == pytest.approx(value(q), rel=1e-12)


def test_master_weights_are_refused_by_name_or_as_soon_as_they_are_there() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterWeights([p], lr=0.1, weight_decay=0.5)
    decay = DecoupledWeightDecay(optimizer)
    step(optimizer)
    with pytest.raises(ValueError, match="keeps master weights in its state"):
        step(optimizer)
    with pytest.raises(ValueError, match="keeps master weights in its state"):
        check_optimizer(optimizer)
    decay.remove()
    check_optimizer(optimizer)
    named = MasterWeights([p], lr=0.1, weight_decay=0.5)
    named.master_weights = True  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"keeps master weights, so"):
        DecoupledWeightDecay(named)
    DecoupledWeightDecay(named, coupled=True)


def test_momentum_that_happens_to_be_zero_is_no_copy_of_a_zero_weight() -> None:
    p = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer)
    for _ in range(3):
        step(optimizer)


def test_the_monitor_reads_what_decays() -> None:
    class Tags(dict[str, float]):
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self[tag] = value

    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
    DecoupledWeightDecay(optimizer)
    other = nn.Linear(2, 1, bias=False)
    plain = torch.optim.AdamW(other.parameters(), lr=0.1)
    plain.load_state_dict(optimizer.state_dict())
    plain.param_groups[0]["weight_decay"] = 0.25  # a schedule of somebody else's
    for model, o, expected in ((layer, optimizer, 0.5), (other, plain, 0.25)):
        model(torch.ones(1, 2)).sum().backward()
        L2Monitor(tags := Tags(), model, o).step()
        assert tags["l2/weight_decay/group_0"] == expected

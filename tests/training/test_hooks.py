"""What hangs on a step acts, or is refused, whatever wraps the optimizer; torch's own `weight_decay` is the oracle."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer
from wrapped import SAM, WRAPPERS, CallsItsParent, Deaf, Lookahead, Several

from torchridge.exceptions import DoublePenaltyWarning
from torchridge.training.penalties.attach import penalties, penalty, regularize
from torchridge.training.penalties.regularizers import L1, L2
from torchridge.training.penalties.step import penalize_step
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import weight_decay_groups
from torchridge.training.weight_decay.optimizers import check_optimizer
from torchridge.training.weight_decay.schedule import ConstantWeightDecay, CosineWeightDecay

LAMBDA = 0.05


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, dtype=dtype)


def train(model: nn.Module, optimizer: Any, steps: int = 12) -> Tensor:
    x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        for p in model.parameters():
            p.grad = None
        model(x).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def decayed(wrap: Callable[[Optimizer], Any], make: Any = torch.optim.SGD, **kwargs: Any) -> Tensor:
    model = layer()
    return train(model, wrap(make(weight_decay_groups(model, 2 * LAMBDA), lr=0.1, **kwargs)))


def penalized(wrap: Callable[[Optimizer], Any], make: Any = torch.optim.SGD, **kwargs: Any) -> Tensor:
    model = regularize(layer(), L2(LAMBDA))
    optimizer = wrap(make(model.parameters(), lr=0.1, **kwargs))
    penalize_step(optimizer, model)
    return train(model, optimizer)


def taken_over(wrap: Callable[[Optimizer], Any], make: Any = torch.optim.SGD, **kwargs: Any) -> Tensor:
    options = kwargs.pop("options", {"coupled": True})
    model = layer()
    optimizer = wrap(make(weight_decay_groups(model, 2 * LAMBDA), lr=0.1, **kwargs))
    DecoupledWeightDecay(optimizer, **options)
    return train(model, optimizer)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("route", [penalized, taken_over], ids=["step", "coupled"])
def test_a_wrapped_optimizer_is_hooked_where_its_step_happens(route: Any, wrap: Any) -> None:
    same(route(wrap), decayed(wrap))
    same(route(wrap, torch.optim.Adam), decayed(wrap, torch.optim.Adam))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_decoupled_decay_of_a_wrapped_optimizer(wrap: Any) -> None:
    same(taken_over(wrap, torch.optim.AdamW, options={}), decayed(wrap, torch.optim.AdamW))


def test_the_hooks_of_a_step_that_calls_its_parents_run_once() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))])  # from now on torch runs hooks in the parent's step too
    same(penalized(lambda o: o, CallsItsParent), decayed(lambda o: o))
    same(taken_over(lambda o: o, CallsItsParent), decayed(lambda o: o))
    same(taken_over(lambda o: o, CallsItsParent, options={}), decayed(lambda o: o))  # the same for plain SGD
    cautious = taken_over(lambda o: o, CallsItsParent, options={"cautious": True})
    same(cautious, taken_over(lambda o: o, options={"cautious": True}))


def sam(route: str) -> Tensor:
    model = regularize(layer(), L2(LAMBDA))
    optimizer = SAM(weight_decay_groups(model, 2 * LAMBDA * (route != "step")), torch.optim.SGD, lr=0.1)
    if route == "step":
        penalize_step(optimizer, model)
    elif route == "coupled":
        DecoupledWeightDecay(optimizer, coupled=True)
    x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        for half in (optimizer.first_step, optimizer.second_step):
            model.zero_grad()
            model(x).square().mean().backward()
            half()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("route", ["step", "coupled"])
def test_sam_is_penalized_where_its_base_steps(route: str) -> None:
    same(sam(route), sam("own"))


def test_what_would_never_call_a_hook_is_refused() -> None:
    model = regularize(layer(), L2(LAMBDA))
    deaf = Deaf(model.parameters())
    several = Several(torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1))
    for optimizer, message in ((deaf, "`step` would never call a hook"), (several, "which holds 2 optimizers")):
        calls: list[Callable[[Any], Any]] = [
            lambda o: penalize_step(o, model),
            DecoupledWeightDecay,
            lambda o: ConstantWeightDecay(o, independent_of_lr=True),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=message):
                call(optimizer)
    assert deaf.param_groups[0]["weight_decay"] == 0.1  # and its own decay still acts


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_maximize_turns_the_sign_for_each_group(cls: Any) -> None:
    def run(route: str) -> Tensor:
        torch.manual_seed(3)
        model = regularize(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double(), L2(LAMBDA))
        decay = 2 * LAMBDA if route != "step" else 0.0
        groups = [
            {"params": [model[0].weight], "weight_decay": decay, "maximize": True},
            {"params": [model[1].weight], "weight_decay": decay, "maximize": False},
        ]
        optimizer = cls(groups, lr=0.01)
        if route == "step":
            penalize_step(optimizer, model)
        if route == "coupled":
            DecoupledWeightDecay(optimizer, coupled=True)
        for step in range(3):
            for i, p in enumerate((model[0].weight, model[1].weight)):
                p.grad = torch.full_like(p, 0.1 * (step + 1) * (-1) ** i)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in (model[0].weight, model[1].weight)])

    same(run("step"), run("own"))
    same(run("coupled"), run("own"))


def test_maximize_with_another_regularizer_and_a_parametrization() -> None:
    def run(maximize: bool) -> list[Tensor]:
        model = layer()
        nn.utils.parametrizations.weight_norm(model)
        regularize(model, L1(LAMBDA))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize)
        penalize_step(optimizer, model)
        for step in range(3):
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.1 * (step + 1) * (-1 if maximize else 1))
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for a, b in zip(run(True), run(False), strict=True):
        same(a, b)


@pytest.mark.parametrize("route", ["step", "independent", "coupled", "cautious"])
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
def test_making_states_for_a_checkpoint_is_no_step(route: str, cls: Any, lr: Any) -> None:
    model = regularize(layer(), L2(LAMBDA))
    before = [p.detach().clone() for p in model.parameters()]
    momentum = {"momentum": 0.9} if cls is torch.optim.SGD else {}
    optimizer = cls(weight_decay_groups(model, 0.5 * (route != "step")), lr=lr, **momentum)
    if route == "step":
        penalize_step(optimizer, model)
    else:
        DecoupledWeightDecay(optimizer, **{"independent_of_lr" if route == "independent" else route: True})  # type: ignore[arg-type]
    state = get_optimizer_state_dict(model, optimizer)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    for entry in optimizer.state.values():
        for name, value in entry.items():
            assert name == "step" or value is None or not value.any()
    set_optimizer_state_dict(model, optimizer, state)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    train(model, optimizer, 1)  # and the next step acts
    with torch.no_grad():
        assert not torch.equal(model.weight, before[0])


def test_a_step_of_training_at_lr_zero_still_feeds_the_moments() -> None:
    def run(own: bool) -> Tensor:
        model = regularize(layer(), L2(LAMBDA))
        optimizer = torch.optim.Adam(weight_decay_groups(model, 2 * LAMBDA * own), lr=1.0)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.01 * t)
        if not own:
            penalize_step(optimizer, model)
        x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        for _ in range(4):
            model.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            warmup.step()
        return model.weight.detach()

    same(run(own=False), run(own=True))


def copies(model: nn.Module, optimizer: Optimizer) -> dict[str, tuple[nn.Module, Optimizer]]:
    buffer = io.BytesIO()
    torch.save((model, optimizer), buffer)
    buffer.seek(0)
    return {
        "deepcopy": copy.deepcopy((model, optimizer)),
        "pickle": pickle.loads(pickle.dumps((model, optimizer))),
        "torch.save": torch.load(buffer, weights_only=False),
        "copy of a copy": copy.deepcopy(pickle.loads(pickle.dumps((model, optimizer)))),
    }


@pytest.mark.parametrize("route", ["step", "coupled", "initial", "cautious", "schedule"])
def test_copies_and_pickles_take_the_hook_along(route: str) -> None:
    def build() -> tuple[nn.Module, Optimizer]:
        model = regularize(layer(), L2(LAMBDA))
        optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.3 * (route != "step")), lr=0.1)
        if route == "step":
            penalize_step(optimizer, model)
        elif route == "schedule":
            ConstantWeightDecay(optimizer, independent_of_lr=True)
        else:
            value = {"reference": "initial"} if route == "initial" else {route: True}
            DecoupledWeightDecay(optimizer, **value)  # type: ignore[arg-type]
        train(model, optimizer, 3)
        return model, optimizer

    for how, (model, optimizer) in copies(*build()).items():
        original = build()
        optimizer.param_groups[0]["lr"] = original[1].param_groups[0]["lr"] = 0.02
        assert torch.equal(train(model, optimizer, 3), train(*original, 3)), how
        assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_a_copy_can_be_removed_and_replaced_on_its_own() -> None:
    model = regularize(layer(), L2(LAMBDA))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = penalize_step(optimizer, model)
    other_model, other = copy.deepcopy((model, optimizer))
    hook.remove()
    assert not optimizer._optimizer_step_pre_hooks
    again = penalize_step(other, other_model)
    assert len(other._optimizer_step_pre_hooks) == 1
    again.remove()
    assert torch.equal(train(other_model, other), train(model, optimizer))
    assert not copy.deepcopy(optimizer)._optimizer_step_pre_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    model = regularize(nn.Linear(64, 64, bias=False).to(dtype), L2(0.0317))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    penalize_step(optimizer, model)
    model.weight.grad = torch.randn(64, 64).to(dtype)
    expected = (model.weight.grad.double() + 2 * 0.0317 * model.weight.detach().double()).to(dtype)
    optimizer.step()
    assert float((model.weight.grad != expected).double().mean()) < 1e-3  # float64 rounds a tie otherwise, rarely
    model.weight.grad = None
    optimizer.step()
    torch.testing.assert_close(model.weight.grad, (0.0634 * model.weight.detach().double()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"reference": "initial"}, {"coupled": True}], ids=str)
def test_decay_of_half_precision_is_rounded_once(options: Any) -> None:
    weight = nn.Parameter(torch.randn(4096).bfloat16())
    optimizer = torch.optim.SGD([weight], lr=1.0, weight_decay=0.0317)
    DecoupledWeightDecay(optimizer, **options)
    start = weight.detach().clone()
    if "reference" in options:
        with torch.no_grad():
            weight.mul_(2)
    before = weight.detach().double()
    target = start.double() if "reference" in options else 0.0
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    expected = before - 0.0317 * (before - target)
    coarse = 2 if "coupled" in options else 1  # there the gradient is rounded too
    assert float(((weight.detach().double() - expected) / expected).abs().max()) < coarse * 2**-8


def test_the_penalty_in_the_loss_and_at_the_step_warns_once() -> None:
    model = regularize(nn.Sequential(layer(), nn.Linear(3, 2).double()), L2(LAMBDA))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model)
    x = torch.ones(2, 4, dtype=torch.float64)
    with pytest.warns(DoublePenaltyWarning, match=r"`0.weight` and 1 more is penalized twice") as caught:
        for _ in range(3):
            (model(x).mean() + penalty(model)).backward()
            optimizer.step()
    assert len(caught) == 1 and caught[0].filename == __file__
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(fresh, model)
    sum(penalties(model).values(), torch.zeros(())).backward()
    with pytest.warns(DoublePenaltyWarning, match="`0.weight`"):
        fresh.step()


def test_one_weight_by_the_loss_and_another_at_the_step_are_fine_and_so_is_reading_the_penalty() -> None:
    model = regularize(nn.Sequential(layer(), nn.Linear(3, 2).double()), L2(LAMBDA), activity=L2(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty(model).backward()  # before: this was another loop
    penalize_step(optimizer, model[1])
    x = torch.ones(2, 4, dtype=torch.float64)
    for _ in range(2):
        loss = model(x).mean() + penalty(model[0]) + penalty(model, weights=False)
        float(penalty(model))
        loss.backward()
        optimizer.step()


def test_check_optimizer_sees_through_wrappers() -> None:
    model = layer()
    check_optimizer(Lookahead(torch.optim.AdamW(weight_decay_groups(model, 0.1))), model=model)
    with pytest.raises(ValueError, match="Rprop, which ignores"):
        check_optimizer(Lookahead(torch.optim.Rprop([{"params": [model.weight], "weight_decay": 0.1}])))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_schedule_reaches_the_groups_of_a_wrapped_optimizer(wrap: Any) -> None:
    optimizer = torch.optim.AdamW(weight_decay_groups(layer(), 0.4), lr=0.1)
    schedule = CosineWeightDecay(wrap(optimizer), total_steps=1, independent_of_lr=True)
    schedule.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.0

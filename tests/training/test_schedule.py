"""Weight decay apart from the optimizer's own: schedules, references, caution, and no recompiling."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import ROUNDING
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import Optimizer

from torchridge.training.weight_decay.decoupled import (
    DecoupledWeightDecay,
    shrink_,
    shrink_toward_,
    shrink_where_aligned_,
)
from torchridge.training.weight_decay.groups import weight_decay_groups
from torchridge.training.weight_decay.schedule import ConstantWeightDecay, CosineWeightDecay

Make = Callable[..., Optimizer]


def problem(device: torch.device, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Callable[[], None]]:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).to(device, dtype)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64).to(device, dtype)
    y = torch.randn(20, 2, generator=generator, dtype=torch.float64).to(device, dtype)

    def backward() -> None:
        model.zero_grad()
        (model(x) - y).square().mean().backward()

    return model, backward


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(model: nn.Module, backward: Callable[[], None], optimizer: Optimizer, steps: int = 50) -> Tensor:
    for _ in range(steps):
        backward()
        optimizer.step()
    return flat(model)


def twins(device: torch.device) -> list[tuple[nn.Module, Callable[[], None]]]:
    pairs = [problem(device), problem(device)]
    pairs[1][0].load_state_dict(pairs[0][0].state_dict())
    return pairs


def test_decoupled_is_what_adamw_does(device: torch.device) -> None:
    (ours, ours_backward), (theirs, theirs_backward) = twins(device)
    optimizer = torch.optim.AdamW(weight_decay_groups(ours, 0.1), lr=0.05)
    DecoupledWeightDecay(optimizer)
    got = train(ours, ours_backward, optimizer)
    expected = train(theirs, theirs_backward, torch.optim.AdamW(weight_decay_groups(theirs, 0.1), lr=0.05))
    torch.testing.assert_close(got, expected, rtol=ROUNDING[torch.float64], atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_coupled_is_what_sgd_does(device: torch.device, momentum: float) -> None:
    (ours, ours_backward), (theirs, theirs_backward) = twins(device)
    optimizer = torch.optim.SGD(weight_decay_groups(ours, 0.1), lr=0.05, momentum=momentum)
    DecoupledWeightDecay(optimizer, coupled=True)
    got = train(ours, ours_backward, optimizer)
    sgd = torch.optim.SGD(weight_decay_groups(theirs, 0.1), lr=0.05, momentum=momentum)
    torch.testing.assert_close(got, train(theirs, theirs_backward, sgd), rtol=ROUNDING[torch.float64], atol=1e-14)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("by_name", [True, False])
def test_l2_sp_is_the_penalty_on_the_distance_from_pretrained(device: torch.device, make: Make, by_name: bool) -> None:
    (ours, ours_backward), (theirs, _) = twins(device)
    start = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    optimizer = make(weight_decay_groups(ours, 0.3), lr=0.05)
    DecoupledWeightDecay(optimizer, reference=ours.state_dict() if by_name else "initial", coupled=True)
    got = train(ours, ours_backward, optimizer)

    plain = make(theirs.parameters(), lr=0.05)
    x, y = _data(device)
    for _ in range(50):
        plain.zero_grad()
        distance = sum((p - start[n]).square().sum() for n, p in theirs.named_parameters() if n.endswith("weight"))
        ((theirs(x) - y).square().mean() + 0.15 * distance).backward()
        plain.step()
    torch.testing.assert_close(got, flat(theirs), rtol=ROUNDING[torch.float64], atol=1e-13)


def _data(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64).to(device)
    return x, torch.randn(20, 2, generator=generator, dtype=torch.float64).to(device)


def test_parameters_missing_from_the_reference_go_toward_zero(device: torch.device) -> None:
    model, _ = problem(device)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(weight_decay_groups(model, 0.5), lr=0.2)
    DecoupledWeightDecay(optimizer, reference={"0.weight": torch.zeros_like(start["0.weight"]) + 1})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, start["0.weight"] * 0.9 + 0.1)
    torch.testing.assert_close(model[2].weight, start["2.weight"] * 0.9)
    torch.testing.assert_close(model[0].bias, start["0.bias"])


def test_cautious_follows_the_published_rule(device: torch.device) -> None:
    (ours, ours_backward), (theirs, theirs_backward) = twins(device)
    optimizer = torch.optim.Adam(weight_decay_groups(ours, 0.4), lr=0.05)
    DecoupledWeightDecay(optimizer, cautious=True)
    got = train(ours, ours_backward, optimizer, steps=20)

    plain = torch.optim.Adam(theirs.parameters(), lr=0.05)
    masked = 0
    for _ in range(20):
        theirs_backward()
        old = {n: p.detach().clone() for n, p in theirs.named_parameters()}
        plain.step()
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                if name.endswith("weight"):
                    update = (old[name] - p) / 0.05
                    aligned = update * old[name] >= 0
                    masked += int((~aligned).sum())
                    p -= 0.05 * 0.4 * torch.where(aligned, old[name], 0.0)
    assert masked > 0
    torch.testing.assert_close(got, flat(theirs), rtol=ROUNDING[torch.float64], atol=1e-13)


def test_cautious_takes_complex_coordinates_apart(device: torch.device) -> None:
    weight = nn.Parameter(torch.tensor([1 + 1j], dtype=torch.complex128, device=device))
    optimizer = torch.optim.SGD([{"params": [weight], "weight_decay": 0.5}], lr=1.0)
    DecoupledWeightDecay(optimizer, cautious=True)
    weight.grad = torch.tensor([0.1 - 0.1j], dtype=torch.complex128, device=device)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.4 + 1.1j], dtype=torch.complex128, device=device))


def test_a_parameter_without_gradient_is_left_alone_and_remove_hands_the_decay_back() -> None:
    model, _ = problem(torch.device("cpu"))
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=0.1)
    decay = DecoupledWeightDecay(optimizer)
    before = flat(model)
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    decay.remove()
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.0])
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("options", [{}, {"cautious": True}, {"coupled": True}], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_the_steps_are_those_without_and_infinite_ones_change_nothing(
    device: torch.device, options: dict[str, bool], fused: bool
) -> None:
    (ours, ours_backward), (theirs, theirs_backward) = twins(device)
    optimizer = torch.optim.AdamW(weight_decay_groups(ours, 0.3), lr=0.05, fused=fused)
    DecoupledWeightDecay(optimizer, **options)  # type: ignore[arg-type]
    plain = torch.optim.AdamW(weight_decay_groups(theirs, 0.3), lr=0.05, fused=fused)
    DecoupledWeightDecay(plain, **options)  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler(device.type, init_scale=65536.0)
    for step in range(6):
        before = flat(ours)
        ours_backward()
        for p in ours.parameters():
            assert p.grad is not None
            p.grad *= scaler.scale(torch.tensor(float("inf") if step == 2 else 1.0, device=device))
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert torch.equal(flat(ours), before)
        else:
            train(theirs, theirs_backward, plain, steps=1)
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=ROUNDING[torch.float64], atol=1e-13)


def test_independent_of_lr_shrinks_alike_under_any_schedule(device: torch.device) -> None:
    weight = nn.Parameter(torch.ones(3, device=device, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=5)
    DecoupledWeightDecay(optimizer, independent_of_lr=True)
    for _ in range(8):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.95**8))


def test_constant_schedule_makes_up_for_the_lr() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    lr_schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    schedule = ConstantWeightDecay(optimizer, independent_of_lr=True)
    for _ in range(6):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        lr_schedule.step()
        schedule.step()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 0.95**6))


def schedule_on(taken_over: bool) -> tuple[Optimizer, CosineWeightDecay]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.04), lr=0.1)
    if taken_over:
        DecoupledWeightDecay(optimizer)
    return optimizer, CosineWeightDecay(optimizer, total_steps=10, end_factor=10)


@pytest.mark.parametrize("taken_over", [False, True])
def test_cosine_goes_from_start_to_end_and_stays(taken_over: bool) -> None:
    _, schedule = schedule_on(taken_over)
    seen = []
    for _ in range(13):
        seen.append(schedule.get_last_weight_decay())
        schedule.step()
    expected = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * min(t, 10) / 10)) / 2 for t in range(13)]
    assert [first for first, _ in seen] == pytest.approx(expected)
    assert all(second == 0.0 for _, second in seen)


@pytest.mark.parametrize("taken_over", [False, True])
def test_schedule_resumes_from_a_checkpoint(taken_over: bool) -> None:
    optimizer, schedule = schedule_on(taken_over)
    for _ in range(4):
        schedule.step()
    saved = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    fresh_optimizer, fresh = schedule_on(taken_over)
    fresh_optimizer.load_state_dict(saved["optimizer"])
    fresh.load_state_dict(saved["schedule"])
    for _ in range(3):
        schedule.step()
        fresh.step()
        assert fresh.get_last_weight_decay() == schedule.get_last_weight_decay()


def test_references_survive_a_checkpoint() -> None:
    model, backward = problem(torch.device("cpu"))
    optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=0.1)
    decay = DecoupledWeightDecay(optimizer, reference="initial")
    start = model[0].weight.detach().clone()
    saved = decay.state_dict()
    train(model, backward, optimizer, steps=3)
    other = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=0.1)
    restored = DecoupledWeightDecay(other, reference="initial")
    restored.load_state_dict(saved)
    assert torch.equal(restored.references[id(model[0].weight)], start)


def test_a_changing_strength_recompiles_nothing(device: torch.device) -> None:
    counter = CompileCounter()

    def decay(params: list[Tensor], references: list[Tensor], strength: Tensor) -> None:
        shrink_(params, strength)
        shrink_toward_(params, references, strength)
        shrink_where_aligned_(params, references, None, strength)

    compiled = torch.compile(decay, backend=counter, fullgraph=True)
    params = [torch.ones(3, 3, device=device), torch.ones(2, device=device)]
    plain = [p.clone() for p in params]
    references = [torch.full_like(p, 0.5) for p in params]
    for strength in (0.1, 0.2, 0.3):
        compiled(params, references, torch.tensor(strength, device=device))
        decay(plain, references, torch.tensor(strength, device=device))
    assert counter.frame_count == 1
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p, q)


def test_float32_weights_keep_their_dtype(device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, backward = problem(device, dtype)
        optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.1), lr=0.1)
        DecoupledWeightDecay(optimizer, reference="initial", cautious=True)
        train(model, backward, optimizer, steps=2)
        assert all(p.dtype is dtype for p in model.parameters())


def adamw(**group: Any) -> Optimizer:
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.1, **group}], lr=0.1)


def named_adamw() -> Optimizer:
    return adamw(param_names=["weight"])


BAD_INPUT = [
    (lambda: DecoupledWeightDecay("AdamW"), TypeError, r"`optimizer` should be a torch.optim.Optimizer, got str"),  # type: ignore[arg-type]
    (lambda: DecoupledWeightDecay(adamw(weight_decay=0.0)), ValueError, r"no group with `weight_decay` above 0"),
    (lambda: DecoupledWeightDecay(adamw(), coupled=True, cautious=True), ValueError, r"`coupled` decay goes through"),
    (lambda: DecoupledWeightDecay(adamw(), reference="now"), ValueError, r"`reference` should be one of 'initial'"),  # type: ignore[arg-type]
    (lambda: DecoupledWeightDecay(adamw(), reference={"w": torch.ones(2)}), ValueError, r"groups with `param_names`"),
    (
        lambda: DecoupledWeightDecay(named_adamw(), reference={"w": torch.ones(2)}),
        ValueError,
        r"`reference` has no parameter of the optimizer, got `w`; expected some of `weight`",
    ),
    (
        lambda: DecoupledWeightDecay(named_adamw(), reference={"weight": torch.ones(3)}),
        ValueError,
        r"`reference\['weight'\]` should have shape \(2,\), got \(3,\)",
    ),
    (lambda: CosineWeightDecay(adamw(), 0), ValueError, r"`total_steps` should be an integer of at least 1, got 0"),
    (lambda: CosineWeightDecay(adamw(), 3, end_factor=-1), ValueError, r"`end_factor` should be a finite number"),
    (lambda: ConstantWeightDecay(3), TypeError, r"`optimizer` should be a torch.optim.Optimizer, got int"),  # type: ignore[arg-type]
    (
        lambda: ConstantWeightDecay(adamw(lr=0.0), independent_of_lr=True),
        ValueError,
        r"`lr` is 0, at which no weight decay shrinks anything",
    ),
]


@pytest.mark.parametrize(("call", "error", "pattern"), BAD_INPUT)
def test_bad_input(call: Callable[[], object], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        call()


def test_a_refused_reference_leaves_the_optimizer_as_it_was() -> None:
    optimizer = named_adamw()
    with pytest.raises(ValueError, match="should have shape"):
        DecoupledWeightDecay(optimizer, reference={"weight": torch.ones(3)})
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert not optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("options", [{}, {"coupled": True}, {"cautious": True}], ids=str)
def test_a_closure_comes_before_the_decay(options: dict[str, bool]) -> None:
    (ours, ours_backward), (theirs, theirs_backward) = twins(torch.device("cpu"))
    stepped, closed = (torch.optim.Adam(weight_decay_groups(m, 0.3), lr=0.05) for m in (theirs, ours))
    for optimizer in (stepped, closed):
        DecoupledWeightDecay(optimizer, **options)  # type: ignore[arg-type]
    expected = train(theirs, theirs_backward, stepped, steps=5)
    for _ in range(5):
        closed.step(ours_backward)  # type: ignore[arg-type]
    assert torch.equal(flat(ours), expected)


def test_a_closure_that_is_evaluated_again_is_refused() -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            closure()
            return super().step(closure)

    model, backward = problem(torch.device("cpu"))
    optimizer = Twice(weight_decay_groups(model, 0.1), lr=0.1)
    DecoupledWeightDecay(optimizer)
    with pytest.raises(ValueError, match=r"`step` evaluates its closure more than once.*`penalty\(model\)`"):
        optimizer.step(backward)

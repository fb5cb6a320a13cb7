"""The penalty in the loss, the penalty once per step, and the optimizer's own weight decay: one trajectory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.layers import L2Linear
from torchridge.training.penalties.regularizers import L1, L1L2, L2
from torchridge.training.penalties.step import penalize_step

LAMBDA = 0.01
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "plain": lambda groups: torch.optim.SGD(groups, lr=0.05),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.02, momentum=0.9, nesterov=True),
    "dampening": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, dampening=0.5),
    "adam": lambda groups: torch.optim.Adam(groups, lr=1e-3),
}


def network(dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).to(device, dtype)


def data(dtype: torch.dtype = torch.float64, rows: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    y = torch.randn(rows, 2, dtype=torch.float64, generator=generator)
    return x.to(dtype), y.to(dtype)


def mse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference, relative to the largest element of each tensor."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(
        float((p.detach().double() - q.detach().double()).abs().max() / q.detach().abs().max()) for p, q in pairs
    )


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, in_loss: bool = False) -> nn.Module:
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse(model, x, y)
        (loss + penalty(model) if in_loss else loss).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_penalty_is_the_optimizers_own_weight_decay(name: str) -> None:
    decayed = network()
    train(decayed, OPTIMIZERS[name](groups(decayed, 2 * LAMBDA)), 500)
    in_loss = regularize(network(), L2(LAMBDA))
    train(in_loss, OPTIMIZERS[name](groups(in_loss, 0.0)), 500, in_loss=True)
    hooked = regularize(network(), L2(LAMBDA))
    optimizer = OPTIMIZERS[name](groups(hooked, 0.0))
    penalize_step(optimizer, hooked)
    train(hooked, optimizer, 500)
    assert distance(in_loss, decayed) < 1e-12
    assert distance(hooked, decayed) < 1e-12
    assert distance(decayed, network()) > 0.1  # they went somewhere


def test_adamw_decays_otherwise() -> None:
    decayed = network()
    train(decayed, torch.optim.AdamW(groups(decayed, 2 * LAMBDA), lr=1e-3), 500)
    penalized = regularize(network(), L2(LAMBDA))
    train(penalized, torch.optim.AdamW(groups(penalized, 0.0), lr=1e-3), 500, in_loss=True)
    assert 0.5 < distance(decayed, penalized) < 2  # as large as the weights: another problem, another solution


def test_the_hook_keeps_the_penalty_out_of_accumulation_and_clipping() -> None:
    x, y = data()
    whole, parts = regularize(network(), L2(LAMBDA)), regularize(network(), L2(LAMBDA))
    one, four = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (whole, parts))
    penalize_step(one, whole)
    penalize_step(four, parts)
    for _ in range(20):
        one.zero_grad()
        mse(whole, x, y).backward()
        nn.utils.clip_grad_norm_(whole.parameters(), 0.1)
        one.step()
        four.zero_grad()
        for xs, ys in zip(x.chunk(4), y.chunk(4), strict=True):
            (mse(parts, xs, ys) / 4).backward()
        seen = nn.utils.clip_grad_norm_(parts.parameters(), 0.1)
        four.step()
    assert distance(parts, whole) < 1e-12
    parts.zero_grad()
    mse(parts, x, y).backward()
    data_gradient = torch.cat([p.grad.flatten() for p in parts.parameters() if p.grad is not None]).norm()
    assert float(seen) == pytest.approx(float(data_gradient), rel=0.1)


def test_in_the_loss_accumulation_divides_the_penalty_and_clipping_sees_it() -> None:
    x, y = data()
    whole, parts = regularize(network(), L2(0.5)), regularize(network(), L2(0.5))
    (mse(whole, x, y) + penalty(whole)).backward()
    for xs, ys in zip(x.chunk(4), y.chunk(4), strict=True):
        ((mse(parts, xs, ys) + penalty(parts)) / 4).backward()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
    total = nn.utils.clip_grad_norm_(whole.parameters(), 1e9)
    whole.zero_grad()
    mse(whole, x, y).backward()
    assert float(total) > 2 * float(nn.utils.clip_grad_norm_(whole.parameters(), 1e9))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", ["loss", "step"])
def test_mixed_precision_under_a_loss_scale_of_65536(route: str, amp: torch.dtype, fused: bool) -> None:
    reference = regularize(network(), L2(0.1))
    train(reference, torch.optim.SGD(reference.parameters(), lr=0.02), 20, in_loss=True)
    model = regularize(network(torch.float32), L2(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=10**6)
    if route == "step":
        penalize_step(optimizer, model)
    x, y = data(torch.float32)
    for micro in range(80):  # 20 steps of 4 micro-batches
        xs, ys = x.chunk(4)[micro % 4], y.chunk(4)[micro % 4]
        with torch.autocast("cpu", dtype=amp):
            out = model(xs)
        loss = (out.float() - ys).square().mean()
        scaler.scale((loss + penalty(model) if route == "loss" else loss) / 4).backward()
        if micro % 4 == 3:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert scaler.get_scale() == 65536.0
    assert distance(model, reference) < {torch.bfloat16: 2e-2, torch.float16: 3e-3}[amp]


def test_skipped_steps_add_nothing() -> None:
    model = regularize(network(torch.float32), L2(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    x, y = data(torch.float32)
    scaler.scale(mse(model, x, y * float("inf"))).backward()
    scaler.step(optimizer)
    assert distance(model, network(torch.float32)) == 0


def test_parameters_without_a_gradient() -> None:
    x, _ = data()
    for unused, factor in (("penalize", 1 - 0.1 * 2 * LAMBDA), ("skip", 1.0)):
        model = regularize(network(), L2(LAMBDA))
        before = model[2].weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        penalize_step(optimizer, model, unused=unused)
        model[0](x).sum().backward()
        optimizer.step()
        torch.testing.assert_close(model[2].weight.detach(), before * factor, rtol=1e-14, atol=0)
        assert (model[2].bias.grad is None) is True


def test_the_optimizer_leaves_what_it_does_not_hold() -> None:
    model = regularize(network(), L2(LAMBDA))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    penalize_step(optimizer, model)
    optimizer.step()
    assert model[2].weight.grad is None
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("regularizer", [L1(0.01), L1L2(0.01, 0.02), L2(torch.tensor(0.02)), lambda w: w.pow(4).sum()])
def test_other_penalties_and_tensor_strengths(regularizer: Any) -> None:
    in_loss = regularize(network(), regularizer, bias=L2(0.1))
    train(in_loss, torch.optim.Adam(in_loss.parameters(), lr=1e-3), 20, in_loss=True)
    hooked = regularize(network(), regularizer, bias=L2(0.1))
    optimizer = torch.optim.Adam(hooked.parameters(), lr=1e-3)
    penalize_step(optimizer, hooked)
    train(hooked, optimizer, 20)
    assert distance(hooked, in_loss) < 1e-12


def test_the_effective_weight_under_weight_norm() -> None:
    def build() -> nn.Module:
        model = network()
        nn.utils.parametrizations.weight_norm(model[0])
        return regularize(model, L2(0.1))

    in_loss, hooked = build(), build()
    train(in_loss, torch.optim.SGD(in_loss.parameters(), lr=0.05), 20, in_loss=True)
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.05)
    penalize_step(optimizer, hooked)
    train(hooked, optimizer, 20)
    assert distance(hooked, in_loss) < 1e-12


def test_lbfgs_minimizes_the_penalized_loss() -> None:
    x, y = data()
    layer = L2Linear(6, 2, bias=False, l2=0.3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        layer.parameters(),
        lr=1,
        max_iter=200,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    penalize_step(optimizer, layer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = mse(layer, x, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    # mean over n·k: XᵀX W / (nk) + λ W = Xᵀy / (nk)
    solution = torch.linalg.solve(x.T @ x + 0.3 * x.shape[0] * 2 * torch.eye(6, dtype=x.dtype), x.T @ y).T
    torch.testing.assert_close(layer.weight.detach(), solution, rtol=1e-6, atol=1e-7)


def test_removal() -> None:
    model = regularize(network(), L2(LAMBDA))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model).remove()
    optimizer.step()
    assert model[0].weight.grad is None


def test_sparse_gradients_are_refused() -> None:
    model = regularize(nn.Embedding(5, 2, sparse=True), L2(0.1))
    optimizer = torch.optim.SparseAdam(model.parameters())
    penalize_step(optimizer, model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"expected a dense one.*`sparse=False`"):
        optimizer.step()


BAD = [
    (
        lambda m: penalize_step(torch.optim.SGD(m.parameters()), m),
        ValueError,
        r"`model` carries no regularizer of weights.*`regularize\(model, L2\(",
    ),
    (
        lambda m: penalize_step(torch.optim.SGD(m.parameters()), regularize(m, activity=L2(0.1))),
        ValueError,
        "`model` carries no regularizer of weights",
    ),
    (
        lambda m: penalize_step(torch.optim.SGD(network().parameters()), regularize(m, L2(0.1))),
        ValueError,
        "`optimizer` holds none of the 2 regularized parameters.*after moving or sharding",
    ),
    (lambda m: penalize_step(m.parameters(), m), TypeError, "`optimizer` should be a torch.optim.Optimizer, got gen"),
    (lambda m: penalize_step(torch.optim.SGD(m.parameters()), [m]), TypeError, "`model` should be a torch.nn.Module"),
    (lambda m: penalize_step(torch.optim.SGD(m.parameters()), m, unused="drop"), ValueError, "`unused` should be one"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(network())


def test_a_second_call_takes_over_from_the_first() -> None:
    model = regularize(network(), L2(LAMBDA))
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model[2])
    first = penalize_step(optimizer, model)
    penalize_step(optimizer, model, unused="penalize")
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.1 * 2 * LAMBDA), rtol=1e-14, atol=0)
    first.remove()  # and has nothing left to take off
    optimizer.zero_grad()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.1 * 2 * LAMBDA) ** 2, rtol=1e-14, atol=0)


def test_a_second_call_for_some_of_the_weights_of_the_first_is_refused() -> None:
    model = regularize(network(), L2(LAMBDA))
    before = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model)
    with pytest.raises(ValueError, match=r"`model` shares some.*not all.*`remove\(\)`"):
        penalize_step(optimizer, model[0])
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.1 * 2 * LAMBDA), rtol=1e-14, atol=0)


def test_parts_that_share_nothing_and_several_optimizers_stand_side_by_side() -> None:
    model = regularize(network(), L2(LAMBDA))
    before = [model[i].weight.detach().clone() for i in (0, 2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model[0])
    penalize_step(optimizer, model[2])
    optimizer.step()
    for i, weight in zip((0, 2), before, strict=True):
        torch.testing.assert_close(model[i].weight.detach(), weight * (1 - 0.1 * 2 * LAMBDA), rtol=1e-14, atol=0)
    for part in (model[0], model[2]):
        penalize_step(torch.optim.SGD(part.parameters(), lr=0.1), model)


def test_weights_that_are_frozen_or_lazy_or_under_a_parametrization_are_there_to_penalize() -> None:
    model = regularize(network(), L2(LAMBDA)).requires_grad_(False)
    penalize_step(torch.optim.SGD(model.parameters()), model)
    normed = network()
    nn.utils.parametrizations.weight_norm(normed[0])
    normed = regularize(normed[0], L2(LAMBDA))
    penalize_step(torch.optim.SGD(normed.parameters()), normed)
    lazy = nn.LazyLinear(2)
    regularize(lazy, L2(LAMBDA))
    optimizer = torch.optim.SGD(lazy.parameters(), lr=0.1)
    penalize_step(optimizer, lazy)

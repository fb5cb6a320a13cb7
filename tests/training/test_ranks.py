"""The penalty under DDP and FSDP2 on two gloo ranks: the parameters of a plain full-batch float64 run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import outcomes
from torch import Tensor, nn

from torchridge.training.penalties.attach import penalties, penalty, regularize
from torchridge.training.penalties.regularizers import L1, L2, OrthogonalRegularizer
from torchridge.training.penalties.step import penalize_step

ROUTES = ("loss before", "loss after", "step")  # the penalty computed before or after the forward, or at the step


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 7)  # rows that two ranks cannot share evenly
        self.second = nn.Linear(7, 2)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def network(dtype: torch.dtype) -> nn.Module:
    return regularize(Network().to(dtype), L2(0.05), bias=L2(0.01), rules=[("second.*", L1(0.01))])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(16, size, dtype=torch.float64, generator=generator) for size in (5, 2))  # type: ignore[return-value]


def trained(model: nn.Module, x: Tensor, y: Tensor, route: str, amp: torch.dtype | None = None) -> nn.Module:
    """20 steps; x, y are this rank's part."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    if route == "step":
        penalize_step(optimizer, model)
    for _ in range(20):
        optimizer.zero_grad()
        before = penalty(model) if route == "loss before" else 0.0
        with torch.autocast("cpu", dtype=amp or torch.bfloat16, enabled=amp is not None):
            out = model(x)
        loss = (out - y).square().mean() + before
        (loss + penalty(model) if route == "loss after" else loss).backward()
        optimizer.step()
    return model


def reference() -> nn.Module:
    return trained(network(torch.float64), *data(), "loss after")


def mine(dtype: torch.dtype) -> list[Tensor]:
    return [part.chunk(2)[dist.get_rank()].to(dtype) for part in data()]


def agree(model: nn.Module, tolerance: float) -> None:
    for (name, want), got in zip(reference().named_parameters(), model.parameters(), strict=True):
        whole = got.full_tensor() if hasattr(got, "full_tensor") else got
        error = float((whole.detach().double() - want.detach()).abs().max() / want.detach().abs().max())
        assert error < tolerance, f"{name}: {error}"


def ddp() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for route in ROUTES:
            model = network(dtype)
            # The penalty reaches the parameters that the forward leaves out, so in the loss none is unused.
            wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=route == "step")
            agree(trained(wrapped, *mine(dtype), route), tolerance)


def ddp_mixed_precision() -> None:
    wrapped = nn.parallel.DistributedDataParallel(network(torch.float32), find_unused_parameters=True)
    agree(trained(wrapped, *mine(torch.float32), "step", amp=torch.bfloat16), 2e-2)


def fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for route in ROUTES:
            for nested in (False, True):
                model = network(dtype)
                if nested:
                    fully_shard(model.first)
                    fully_shard(model.second)
                fully_shard(model)
                agree(trained(model, *mine(dtype), route), tolerance)


def fsdp2_values() -> None:
    from torch.distributed.fsdp import fully_shard

    plain, sharded = network(torch.float64), network(torch.float64)
    for model in (plain, sharded):
        regularize(model, rules=[("unused.*", OrthogonalRegularizer(0.3)), ("first.*", lambda w: w.pow(4).sum())])
    fully_shard(sharded)
    assert all(isinstance(p, dist.tensor.DTensor) for p in sharded.parameters())
    whole = penalties(plain)
    for name, value in penalties(sharded).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=0)
    torch.testing.assert_close(penalty(sharded), penalty(plain), rtol=1e-12, atol=0)
    for model in (plain, sharded):
        penalty(model).backward()
    for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("body", [ddp, ddp_mixed_precision, fsdp2, fsdp2_values], ids=lambda body: body.__name__)
def test_on_two_ranks(body: Callable[[], None], tmp_path: Path) -> None:
    assert outcomes(body, tmp_path) == [(0, None), (1, None)]

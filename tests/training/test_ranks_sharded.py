"""Tensor parallel, ZeRO-1, FSDP2 with bfloat16 and checkpoints on two gloo ranks: the values of one process."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import outcomes
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from torchridge.training.penalties.attach import penalty, regularize
from torchridge.training.penalties.regularizers import L2
from torchridge.training.penalties.step import penalize_step
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import weight_decay_groups

LAMBDA = 0.05
ROUTES = ("own", "step", "loss", "coupled", "decoupled", "cautious", "initial")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.norm, self.down = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)).tanh())


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)


def optimize(model: nn.Module, route: str, make: Any) -> Any:
    """An optimizer for a model that may be sharded, with the decay of the route on it."""
    bare = route in ("step", "loss")
    if bare:
        regularize(model, L2(LAMBDA))
    optimizer = make(weight_decay_groups(model, 0.0 if bare else 2 * LAMBDA))
    if route == "step":
        penalize_step(optimizer, model)
    elif route == "initial":
        DecoupledWeightDecay(optimizer, reference="initial")
    elif route not in ("own", "loss"):
        DecoupledWeightDecay(optimizer, **{} if route == "decoupled" else {route: True})  # type: ignore[arg-type]
    return optimizer


def adam(groups: Any) -> torch.optim.Optimizer:
    # A large epsilon, since the sign of a gradient near 0 would follow the order of its sum.
    return torch.optim.AdamW(groups, lr=0.02, eps=1e-2, foreach=True)


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def train(model: nn.Module, optimizer: Any, route: str, steps: range, part: Callable[[Tensor], Tensor]) -> None:
    for step in steps:
        x, y = (part(t) for t in data(step))
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        (loss + penalty(model) if route == "loss" else loss).backward()
        optimizer.step()


def alone(route: str, make: Any, steps: int = 8) -> nn.Module:
    """One process on all rows."""
    model = Network()
    train(model, optimize(model, route, make), route, range(steps), lambda t: t)
    return model


def mine(t: Tensor) -> Tensor:
    return t.chunk(2)[dist.get_rank()]


def agree(model: nn.Module, expected: nn.Module, tolerance: float = 2e-5) -> None:
    for (name, want), got in zip(expected.named_parameters(), model.parameters(), strict=True):
        whole = got.full_tensor() if hasattr(got, "full_tensor") else got
        torch.testing.assert_close(
            whole.detach(), want.detach(), rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def ddp() -> None:
    for route in ROUTES:
        for make in (sgd, adam):
            model = nn.parallel.DistributedDataParallel(Network())
            train(model, optimize(model, route, make), route, range(8), mine)
            agree(model, alone(route, make))


def fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    for route in ROUTES:
        for make in (sgd, adam):
            model = Network()
            fully_shard(model.up)
            fully_shard(model)
            train(model, optimize(model, route, make), route, range(8), mine)
            agree(model, alone(route, make))


def fsdp2_in_bfloat16() -> None:
    """The parameters that are optimized stay float32, so the decay loses no digit; the loss is in bfloat16."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for route in ("own", "step", "coupled", "initial", "decoupled"):
        model = Network()
        fully_shard(model, mp_policy=policy)
        assert all(p.dtype is torch.float32 for p in model.parameters())
        optimizer = optimize(model, route, sgd)
        train(model, optimizer, route, range(8), mine)
        agree(model, alone(route, sgd), 3e-2)
        frozen = [p.full_tensor().clone() for p in model.parameters()]  # type: ignore[attr-defined]
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.state.clear()
        optimizer.step()
        if route in ("own", "step", "coupled", "decoupled"):
            weight = model.up.weight.full_tensor()  # type: ignore[operator]
            torch.testing.assert_close(weight, frozen[0] * (1 - 0.05 * 2 * LAMBDA), rtol=1e-6, atol=0)


def tensor_parallel() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (2,))
    for route in ROUTES:
        for make in (sgd, adam):
            model = Network()
            model.norm = nn.Identity()
            parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
            expected = Network()
            expected.norm = nn.Identity()
            for m in (model, expected):
                train(m, optimize(m, route, make), route, range(8), lambda t: t)
            agree(model, expected)


def zero_1() -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for route in ROUTES:
        model = nn.parallel.DistributedDataParallel(Network())
        optimizer = optimize(
            model, route, lambda g: ZeroRedundancyOptimizer(g, torch.optim.AdamW, lr=0.02, eps=1e-2, foreach=True)
        )
        train(model, optimizer, route, range(8), mine)
        agree(model, alone(route, adam))


def checkpoints() -> None:
    """Save after four steps, load into a fresh model and optimizer, and go on: eight steps of one process."""
    from torch.distributed.fsdp import fully_shard

    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    for route in ROUTES:
        path = f"{folder[0]}/{route}"

        def build(route: str = route) -> tuple[nn.Module, Any]:
            model = Network()
            fully_shard(model)
            return model, optimize(model, route, adam)

        model, optimizer = build()
        train(model, optimizer, route, range(4), mine)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=path)
        fresh, resumed = build()
        before = [p.full_tensor().clone() for p in fresh.parameters()]  # type: ignore[attr-defined]
        weights, state = get_state_dict(fresh, resumed)
        for p, q in zip(fresh.parameters(), before, strict=True):
            assert torch.equal(p.full_tensor(), q)  # type: ignore[attr-defined]  # making states moved nothing
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=path)
        set_state_dict(fresh, resumed, model_state_dict=weights, optim_state_dict=state)
        train(fresh, resumed, route, range(4, 8), mine)
        agree(fresh, alone(route, adam))


BODIES = [ddp, fsdp2, fsdp2_in_bfloat16, tensor_parallel, zero_1, checkpoints]


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_on_two_ranks(body: Callable[[], None], tmp_path: Path) -> None:
    assert outcomes(body, tmp_path) == [(0, None), (1, None)]

"""The same groups under DDP, FSDP2 and activation checkpointing on two gloo ranks; FSDP1's flat parameters refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import outcomes
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from zoo import ZOO, Outer

from torchridge.training.parameters.classify import judge
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay
from torchridge.training.weight_decay.groups import explain_weight_decay, weight_decay_groups

# What cannot be sharded or replicated here: not materialized, complex under gloo, without a forward, GPU only.
UNSHARDABLE = {"lazy", "complex", "lists of parameters", "sync batch norm"}


def shardable() -> nn.Module:
    return Outer(
        **{name.replace(" ", "_").replace(",", ""): case[0]() for name, case in ZOO.items() if name not in UNSHARDABLE}
    )


def verdicts(model: nn.Module) -> list[tuple[str, bool, str]]:
    return [(j.name, j.decay, j.reason) for j in judge(model)]


def grouped(model: nn.Module) -> list[tuple[str, list[str]]]:
    return [(g["name"], g["param_names"]) for g in weight_decay_groups(model, 0.1, inert="keep")]


def ddp() -> None:
    model = shardable()
    expected = verdicts(model), grouped(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert (verdicts(wrapped), grouped(wrapped)) == expected
    compiled = torch.compile(wrapped)
    assert verdicts(compiled) == expected[0]  # type: ignore[arg-type]


def fsdp2() -> None:
    from torch.distributed.fsdp import fully_shard

    model = shardable()
    marks = [p for p in model.parameters() if getattr(p, "_no_weight_decay", False)]
    assert len(marks) == 1
    del marks[0]._no_weight_decay  # `fully_shard` makes new parameters, so the mark would be lost
    for name, child in model.named_children():
        setattr(model, name, checkpoint_wrapper(child))
    expected = verdicts(model), grouped(model)
    for child in model.children():
        fully_shard(child)
    fully_shard(model)
    assert (verdicts(model), grouped(model)) == expected
    assert all(isinstance(p, dist.tensor.DTensor) for p in model.parameters())
    row = explain_weight_decay(model)["linear.weight"]
    assert row.shape == (3, 4)


def fsdp2_steps() -> None:
    from torch.distributed.fsdp import fully_shard

    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    reference = {name: torch.full_like(p, 0.3) for name, p in build().state_dict().items()}
    options: list[dict[str, Any] | None] = [None, {}, {"cautious": True}, {"reference": reference}]
    options += [{"coupled": True, "reference": "initial"}]
    for option in options:
        plain, sharded = build(), build()
        fully_shard(sharded)
        for model in (plain, sharded):
            optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.5), lr=0.1)
            if option is not None:
                DecoupledWeightDecay(optimizer, **option)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(q.full_tensor(), p)  # type: ignore[attr-defined]


def fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm((2, 2)))

    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"flat parameter of FSDP1.*`torch.distributed.fsdp.fully_shard` instead"):
        weight_decay_groups(FullyShardedDataParallel(build(), device_id=cpu), 0.1)
    original = FullyShardedDataParallel(build(), device_id=cpu, use_orig_params=True)
    assert [(name, decay) for name, decay, _ in verdicts(original)] == [
        ("0.weight", True),
        ("0.bias", False),
        ("1.weight", False),
        ("1.bias", False),
    ]
    free = nn.Module()
    free.free = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"`free` of Module is sharded by FSDP1, which hides its shape"):
        judge(FullyShardedDataParallel(free, device_id=cpu, use_orig_params=True))


@pytest.mark.slow
@pytest.mark.parametrize("body", [ddp, fsdp2, fsdp2_steps, fsdp1], ids=lambda body: body.__name__)
def test_on_two_ranks(body: Callable[[], None], tmp_path: Path) -> None:
    assert outcomes(body, tmp_path) == [(0, None), (1, None)]

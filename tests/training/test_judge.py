"""What is a weight: the zoo of awkward parameters, bare and under every wrapper that renames them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel
from zoo import ZOO, Holder, Outer, named, tied

from torchridge.training.parameters.classify import judge

ANIMALS = [pytest.param(*case, id=name) for name, case in ZOO.items()]

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compile": lambda m: torch.compile(m),  # type: ignore[return-value]
    "checkpoint": checkpoint_wrapper,
    "data parallel": nn.DataParallel,
    "compile around checkpoint": lambda m: torch.compile(checkpoint_wrapper(m)),  # type: ignore[return-value]
}


@pytest.mark.parametrize(("build", "decayed", "not_decayed"), ANIMALS)
def test_zoo(build: Callable[[], nn.Module], decayed: set[str], not_decayed: set[str], device: torch.device) -> None:
    verdicts = {j.name: j for j in judge(build().to(device))}
    assert {name for name, j in verdicts.items() if j.decay} == decayed
    assert {name for name, j in verdicts.items() if not j.decay} == not_decayed
    assert all(j.reason for j in verdicts.values())


@pytest.mark.parametrize(("build", "decayed", "not_decayed"), ANIMALS)
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_change_neither_names_nor_verdicts(
    build: Callable[[], nn.Module],
    decayed: set[str],
    not_decayed: set[str],
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    bare = build()
    expected = [(j.name, j.decay, j.reason) for j in judge(bare)]
    assert [(j.name, j.decay, j.reason) for j in judge(wrap(bare))] == expected
    assert [j.name for j in judge(Outer(m=wrap(bare)))] == [f"m.{name}" for name, _, _ in expected]
    assert {j.name for j in judge(wrap(bare)) if j.decay} == decayed


@pytest.mark.parametrize(("build", "decayed", "not_decayed"), ANIMALS)
def test_the_order_is_that_of_named_parameters(
    build: Callable[[], nn.Module], decayed: set[str], not_decayed: set[str]
) -> None:
    model = build()
    assert [j.name for j in judge(model)] == [name for name, _ in model.named_parameters()]
    assert all(j.parameter is p for j, p in zip(judge(model), model.parameters(), strict=True))


def test_averaged_model_is_seen_through() -> None:
    assert [j.name for j in judge(AveragedModel(nn.Linear(2, 2)))] == ["weight", "bias"]


def test_a_part_called_module_keeps_its_name() -> None:
    assert [j.name for j in judge(Outer(module=nn.Linear(2, 2)))] == ["module.weight", "module.bias"]


def test_tied_parameters_are_judged_once_with_their_aliases() -> None:
    (judgement,) = judge(tied())
    assert (judgement.name, judgement.aliases, judgement.kind) == ("embed.weight", ("head.weight",), "weight")
    assert "`head.weight`" in judgement.reason


def test_frozen_parameters_are_judged_as_if_they_were_not() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    assert [(j.decay, j.trainable) for j in judge(layer)] == [(True, False), (False, False)]


def test_nothing_on_the_model_changes() -> None:
    model = Outer(a=nn.Linear(3, 3), b=nn.LayerNorm(3))
    model.a.weight.requires_grad_(False)
    before = copy.deepcopy(model.__dict__), [(n, p.requires_grad, p.clone()) for n, p in model.named_parameters()]
    judge(model)
    assert repr(before[0]) == repr(model.__dict__)
    for (name, grad, value), (now_name, p) in zip(before[1], model.named_parameters(), strict=True):
        assert (name, grad) == (now_name, p.requires_grad)
        assert torch.equal(value, p)


def test_reasons_say_owner_then_name_then_shape() -> None:
    model = Outer(
        a=nn.MultiheadAttention(4, 2, bias=True),
        b=named("T5LayerNorm", weight=(3, 4)),
        c=Holder(free=(2, 3), ls=(1, 3)),
    )
    reasons = {j.name: j.reason for j in judge(model)}
    assert reasons["a.in_proj_weight"] == "weight of MultiheadAttention"
    assert reasons["a.in_proj_bias"] == "`in_proj_bias` of MultiheadAttention is named as a bias"
    assert reasons["b.weight"] == "parameter of T5LayerNorm, a normalization"
    assert reasons["c.free"] == "`free` of Holder has shape (2, 3), a matrix"
    assert reasons["c.ls"] == "`ls` of Holder has shape (1, 3), at most one axis longer than 1"


class LazyHolder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.free = nn.UninitializedParameter()


@pytest.mark.parametrize(
    ("model", "error", "pattern"),
    [
        (
            nn.Linear(2, 2).parameters(),
            TypeError,
            r"`model` should be a torch.nn.Module, got generator. Pass the model",
        ),
        (LazyHolder(), ValueError, r"`free` of LazyHolder is a lazy parameter .* Run one forward pass first"),
    ],
)
def test_bad_input(model: nn.Module, error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        judge(model)

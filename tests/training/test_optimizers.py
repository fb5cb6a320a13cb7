"""What each optimizer ignores or fails on is refused before training; torch itself shows that it is so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from zoo import Outer

from torchridge.training.weight_decay.groups import weight_decay_groups
from torchridge.training.weight_decay.muon import muon_groups
from torchridge.training.weight_decay.optimizers import check_optimizer


def sparse_model() -> nn.Module:
    return Outer(embed=nn.Embedding(5, 3, sparse=True), head=nn.Linear(3, 2))


def step_on_sparse(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    model(torch.tensor([0, 1])).sum().backward()
    optimizer.step()


REFUSED: list[tuple[type[Any], Callable[[], nn.Module], float, str]] = [
    (torch.optim.LBFGS, lambda: nn.Linear(3, 2), 0.1, r"LBFGS, which takes no parameter groups.*inside the closure"),
    (torch.optim.LBFGS, lambda: nn.Linear(3, 2), 0.0, r"LBFGS, which takes no parameter groups"),
    (torch.optim.SparseAdam, lambda: nn.Linear(3, 2), 0.1, r"SparseAdam, which ignores `weight_decay`, got .* 0.1"),
    (torch.optim.Rprop, lambda: nn.Linear(3, 2), 0.1, r"Rprop, which ignores `weight_decay`"),
    (torch.optim.SGD, sparse_model, 0.1, r"`embed.weight` has sparse gradients, on which SGD fails with weight decay"),
    (torch.optim.Adagrad, sparse_model, 0.1, r"`embed.weight` has sparse gradients, on which Adagrad fails"),
    (torch.optim.AdamW, sparse_model, 0.0, r"`embed.weight` .* AdamW fails whether or not it is decayed"),
]
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    REFUSED += [
        (torch.optim.Muon, lambda: nn.Linear(3, 2), 0.1, r"`bias` has shape \(2,\) .* `muon_groups`"),
        (
            torch.optim.Muon,
            lambda: nn.Linear(3, 2, bias=False, dtype=torch.complex64),
            0.1,
            r"`weight` has shape \(2, 3\) and torch.complex64, but Muon takes real matrices",
        ),
    ]


@pytest.mark.parametrize(("cls", "build", "weight_decay", "pattern"), REFUSED)
def test_refused(cls: type[Any], build: Callable[[], nn.Module], weight_decay: float, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        weight_decay_groups(build(), weight_decay, optimizer=cls)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_torch_does_fail_on_sparse_gradients_where_we_refuse(cls: type[Any]) -> None:
    model = sparse_model()
    optimizer = cls(weight_decay_groups(model, 0.1), lr=0.1)
    with pytest.raises(RuntimeError):
        step_on_sparse(optimizer, model)


def test_torch_does_ignore_the_decay_of_sparse_adam() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SparseAdam([{"params": [weight], "weight_decay": 0.5}], lr=0.1)
    weight.grad = torch.zeros(3).to_sparse()
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))
    with pytest.raises(ValueError, match="ignores `weight_decay`"):
        check_optimizer(optimizer)


def test_sparse_embeddings_that_are_not_decayed_are_fine_with_sgd() -> None:
    model = sparse_model()
    groups = weight_decay_groups(model, 0.1, embeddings=False, optimizer=torch.optim.SGD)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    step_on_sparse(optimizer, model)
    check_optimizer(optimizer, model=model)


def test_sparse_gradients_are_seen_without_the_model() -> None:
    model = sparse_model()
    optimizer = torch.optim.SGD(weight_decay_groups(model, 0.1), lr=0.1)
    check_optimizer(optimizer)
    model(torch.tensor([0, 1])).sum().backward()
    with pytest.raises(ValueError, match=r"`embed\.weight` has sparse gradients"):
        check_optimizer(optimizer)


class Forwards(torch.optim.AdamW):
    def __init__(self, params: Any, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)


def test_what_works_passes() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    for cls in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, Forwards):
        check_optimizer(cls(weight_decay_groups(model, 0.1), lr=0.1), model=model)
    check_optimizer(torch.optim.LBFGS(model.parameters()), model=model)
    muon, _ = muon_groups(Outer(a=nn.Linear(3, 3), b=nn.Linear(3, 3)), 0.1)
    if hasattr(torch.optim, "Muon"):
        check_optimizer(torch.optim.Muon(muon))


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: check_optimizer("SGD"), r"`optimizer` should be a torch.optim.Optimizer or its class, got str"),  # type: ignore[arg-type]
        (lambda: check_optimizer(int), r"`optimizer` should be a torch.optim.Optimizer or its class, got int"),
        (lambda: check_optimizer(torch.optim.SGD), r"`groups` is needed with the class SGD, got None"),
    ],
)
def test_bad_input(call: Callable[[], None], pattern: str) -> None:
    with pytest.raises(TypeError, match=pattern):
        call()

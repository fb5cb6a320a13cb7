"""The model, and every random generator, come back exactly as they were found."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchridge.probing import probe_layers


class Restless(nn.Module):
    """Counts its forwards in a buffer, draws numbers, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout()
        self.second = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.fail_at, self.ran = -1, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.ran += 1
        torch.rand(1)
        random.random()
        np.random.rand()
        if self.ran == self.fail_at:
            raise RuntimeError("planted")
        out: Tensor = self.second(self.drop(self.norm(self.first(x)).relu()))
        return out


def everything(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": {
            name: [len(getattr(m, kind)) for kind in vars(m) if kind.endswith("_hooks")]
            for name, m in model.named_modules()
        },
        "parameters": {n: (id(p), p.detach().clone(), p.requires_grad, p.grad) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), b.clone()) for n, b in model.named_buffers()},
        "rng": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1],
        "grad": torch.is_grad_enabled(),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (Tensor, np.ndarray)):
        assert bool((torch.as_tensor(a) == torch.as_tensor(b)).all())
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture
def model(device: torch.device) -> Restless:
    model = Restless().train().to(device)
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    model.first.register_forward_hook(lambda *_: None)
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]


def test_unchanged_after_two_passes(model: Restless) -> None:
    data = batches()
    before = everything(model)
    probe_layers(model, data, "**", task="classification", readout=["ridge", "lda"], metrics="accuracy", cv=2)
    assert_same(everything(model), before)


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_unchanged_after_an_exception(model: Restless, fail_at: int) -> None:
    data, model.fail_at = batches(), fail_at
    before = everything(model)
    with pytest.raises(RuntimeError, match="planted"):
        probe_layers(model, data, "*", task="classification", metrics="accuracy", cv=2)
    assert_same(everything(model), before)


def test_unchanged_after_refusals(model: Restless) -> None:
    data = batches()
    before = everything(model)
    for options, message in (
        ({"layers": "third"}, "`layers`: 'third' matches no module"),
        ({"task": "classification", "max_memory": 1000}, "the moments need about .* `max_memory` allows"),
        ({"task": "regression", "readout": "lda"}, "`readout` should be one of 'ridge'"),
        ({"task": "classification", "readout": "logistic", "checkpoint": "pass"}, "`checkpoint` keeps moments"),
    ):
        with pytest.raises(ValueError, match=message):
            probe_layers(model, data, **{"layers": "*", **options})
    assert_same(everything(model), before)


def test_shuffled_loader_keeps_its_folds() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.randint(3, (64,)))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    report = probe_layers(Restless(), loader, "second", task="classification", metrics="accuracy", cv=2)
    assert report.passes == 2  # the generators are given back between the passes, so the order is the same
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator())
    with pytest.raises(ValueError, match="another order, in the second pass"):
        probe_layers(Restless(), loader, "second", task="classification", metrics="accuracy", cv=2)


def test_one_shot_batches_are_refused_before_the_first_pass() -> None:
    with pytest.raises(ValueError, match="can be gone over only once"):
        probe_layers(Restless(), iter(batches()), "second", task="classification", metrics="accuracy", cv=2)


def test_nan_names_the_layer() -> None:
    data = batches()
    data[1][0][3, 0] = torch.nan
    with pytest.raises(ValueError, match="features of layer first"):
        probe_layers(Restless(), data, "first", task="classification", cv=2)

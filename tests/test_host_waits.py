"""How often a call makes the host wait for the device: few times, and no more for more of anything.

On the pretended device every copy to the host and every read that synchronizes counts; on a real one, what torch's own
synchronization debug mode reports. A failure lists each wait with the line of torchridge that asked for it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pretended_cuda import HostWaits, host_waits
from pretended_cuda.marks import on_cuda
from torch import Tensor, nn

from torchridge import (
    L2Monitor,
    Moments,
    penalize_step,
    penalty,
    probe_layers,
    regularize,
    ridge,
    ridge_cv,
    ridge_path,
    weight_decay_groups,
)
from torchridge.regularizers import L2
from torchridge.training.weight_decay.decoupled import DecoupledWeightDecay

pytestmark = [
    on_cuda,
    pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning"),
]


def data(device: torch.device, n: int = 300, d: int = 8, t: int = 3, dtype: torch.dtype = torch.float64) -> Any:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=generator, dtype=dtype)
    y = X[:, :1] + 3 * torch.randn(n, t, generator=generator, dtype=dtype)
    return X.to(device), y.to(device)


def alphas(device: torch.device, count: int = 100) -> Tensor:
    return torch.logspace(0, 4, count, dtype=torch.float64, device=device)


def waits_of(call: Callable[[], Any]) -> HostWaits:
    call()  # what is done once in a process does not count
    with host_waits() as waits:
        call()
    return waits


def test_the_counter_sees_what_waits_and_nothing_else(device: torch.device) -> None:
    x = torch.arange(6.0, device=device)
    quiet = (
        lambda: x @ x,
        lambda: x + 1,
        lambda: x.cumsum(0)[2:],
        lambda: torch.where(x > 2, x, 0.0),
        lambda: torch.linalg.cholesky_ex(torch.eye(3, device=device)),
        lambda: x.masked_fill(x > 2, 0.0),
        lambda: torch.zeros(3, device=device),
        lambda: x.clone().index_add_(0, torch.zeros(6, dtype=torch.long, device=device), x),
    )
    loud: tuple[Callable[[], Any], ...] = (
        lambda: x.sum().item(),
        lambda: bool((x > 2).any()),
        lambda: float(x[0]),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: x.to("cpu", torch.float64),
        lambda: torch.empty(6).copy_(x),
        lambda: x.nonzero(),
        lambda: x[x > 2],
        lambda: x.masked_select(x > 2),
        lambda: torch.unique(x),
        lambda: x.equal(x + 1),
        lambda: torch.allclose(x, x),
        lambda: torch.linalg.eigh(torch.eye(3, device=device)),
    )
    for i, call in enumerate(quiet):
        assert waits_of(call).count == 0, i
    for i, call in enumerate(loud):
        assert waits_of(call).count >= 1, i


def test_waits_are_placed_at_the_line_that_asked(device: torch.device) -> None:
    X, y = data(device)
    waits = waits_of(lambda: ridge(X, y, 1.0))
    assert all(wait.place.startswith("torchridge/") for wait in waits.waits), str(waits)


LIMITS: dict[str, tuple[int, Callable[[torch.device], Callable[[], Any]]]] = {}


def limit(name: str, most: int) -> Callable[[Callable[[torch.device], Callable[[], Any]]], None]:
    def add(make: Callable[[torch.device], Callable[[], Any]]) -> None:
        LIMITS[name] = most, make

    return add


@limit("ridge", 3)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    return lambda: ridge(X, y, 1.0)


@limit("ridge with weights and penalty factors", 3)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    s, p = torch.ones(len(X), device=device), torch.ones(X.shape[1], device=device)
    return lambda: ridge(X, y, 1.0, sample_weight=s, penalty_factors=p)


@limit("ridge of few rows", 3)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device, 20, 50)
    return lambda: ridge(X, y, 1.0)


@limit("ridge of float32 rows", 3)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device, dtype=torch.float32)
    return lambda: ridge(X, y, 1.0)


@limit("ridge of moments", 3)
def _(device: torch.device) -> Callable[[], Any]:
    moments = Moments().update(*data(device))
    return lambda: ridge(moments, alpha=1.0)


@limit("ridge_cv of 5 folds × 100 strengths", 6)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    grid = alphas(device)
    return lambda: ridge_cv(X, y, grid, cv=5)


@limit("ridge_cv of moments in 5 folds × 100 strengths", 6)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    moments, grid = Moments().update(X, y, fold=torch.arange(len(X), device=device) % 5), alphas(device)
    return lambda: ridge_cv(moments, alphas=grid)


@limit("Moments.update", 1)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    moments = Moments().update(X, y)
    return lambda: moments.update(X, y)


@limit("Moments.update with weights", 1)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    moments, s = Moments(), torch.ones(len(X), device=device)
    return lambda: moments.update(X, y, s)


@limit("Moments.update of one fold", 1)
def _(device: torch.device) -> Callable[[], Any]:
    X, y = data(device)
    moments = Moments()
    return lambda: moments.update(X, y, fold=3)


def network(device: torch.device) -> tuple[nn.Module, Callable[[], Tensor]]:
    X, y = data(device, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)).to(device)
    return model, lambda: (model(X) - y).square().mean()


@limit("penalty, forward and backward", 0)
def _(device: torch.device) -> Callable[[], Any]:
    model, loss = network(device)
    regularize(model, L2(0.01))
    return lambda: (loss() + penalty(model)).backward()


@limit("penalize_step", 0)
def _(device: torch.device) -> Callable[[], Any]:
    model, loss = network(device)
    regularize(model, L2(0.01))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model)
    loss().backward()
    return optimizer.step


@limit("a step with decoupled decay", 0)
def _(device: torch.device) -> Callable[[], Any]:
    model, loss = network(device)
    optimizer = torch.optim.SGD(weight_decay_groups(model, 0.1), lr=0.1)
    DecoupledWeightDecay(optimizer, reference="initial", cautious=True)
    loss().backward()
    return optimizer.step


@limit("a step of the monitor", 1)
def _(device: torch.device) -> Callable[[], Any]:
    class Writer:
        def add_scalar(self, *_: Any) -> None: ...

    model, loss = network(device)
    monitor = L2Monitor(Writer(), model, torch.optim.SGD(weight_decay_groups(model, 0.1), lr=0.1))
    loss().backward()
    return monitor.step


@pytest.mark.parametrize("name", LIMITS)
def test_a_call_waits_no_more_than(name: str, device: torch.device) -> None:
    most, make = LIMITS[name]
    waits = waits_of(make(device))
    assert waits.count <= most, str(waits)


# Calls that differ in one size alone: the larger may wait as often as the smaller, and not more.


def rows_of_chunks(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """Five times these rows are more than a device takes at once."""
    X, y = data(device, 1000, 40, 1, torch.float32)
    return X.repeat(200 * size, 1), y.repeat(200 * size, 1)


def chunks(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = rows_of_chunks(device, size)
    return lambda: ridge(X, y, 1.0)


def chunks_of_moments(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = rows_of_chunks(device, size)
    return lambda: Moments().update(X, y)


def folds(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device)
    return lambda: ridge_cv(X, y, alphas(device), cv=2 * size)


def fold_ids(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device)
    ids = torch.arange(len(X), device=device) % (2 * size)
    return lambda: Moments().update(X, y, fold=ids)


def folds_of_few_rows(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device, 20, 50)
    return lambda: ridge_cv(X, y, alphas(device), cv=2 * size)


def strengths(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device)
    return lambda: ridge_cv(X, y, alphas(device, 40 * size), cv=5)


def strengths_of_a_path(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device)
    return lambda: ridge_path(X, y, alphas(device, 40 * size))


def strengths_of_loo(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device)
    return lambda: ridge_cv(X, y, alphas(device, 40 * size), cv="loo")


def targets(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device, t=20 * size)
    return lambda: ridge(X, y, 1.0)


def targets_of_folds(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device, t=20 * size)
    return lambda: ridge_cv(X, y, alphas(device), cv=5)


def targets_with_strengths_of_their_own(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device, t=20 * size)
    return lambda: ridge_cv(X, y, alphas(device), cv=5, alpha_per_target=True)


def problems(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = torch.randn(4 * size, 12, 4, device=device), torch.randn(4 * size, 12, device=device)
    return lambda: ridge(X, y, 1.0)


def problems_with_gradients(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = torch.randn(4 * size, 4, 12, device=device), torch.randn(4 * size, 4, device=device)
    return lambda: ridge(X.requires_grad_(), y, 1.0).weight.sum().backward()


def layers(device: torch.device, size: int) -> Callable[[], Any]:
    X, y = data(device, dtype=torch.float32)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))).to(device)
    steps = [(X[i : i + 300 // size], y[i : i + 300 // size]) for i in range(0, 300, 300 // size)]
    return lambda: probe_layers(model, steps, ["1"])


@pytest.mark.parametrize(
    "make",
    [
        chunks,
        chunks_of_moments,
        folds,
        fold_ids,
        folds_of_few_rows,
        strengths,
        strengths_of_a_path,
        strengths_of_loo,
        targets,
        targets_of_folds,
        targets_with_strengths_of_their_own,
        problems,
        problems_with_gradients,
    ],
    ids=lambda make: make.__name__,
)
def test_more_of_it_waits_no_more(make: Callable[[torch.device, int], Callable[[], Any]], device: torch.device) -> None:
    few, many = waits_of(make(device, 1)), waits_of(make(device, 5))
    assert many.count <= few.count, f"of one:\n{few}\nof five:\n{many}"


def test_a_probed_batch_waits_once_a_layer_at_most(device: torch.device) -> None:
    few, many = waits_of(layers(device, 2)), waits_of(layers(device, 6))
    assert many.count - few.count <= 4, f"of two batches:\n{few}\nof six:\n{many}"

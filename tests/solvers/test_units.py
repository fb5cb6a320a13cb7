"""Units of the columns, heavy rows and constant columns cost no digits."""

import pytest
import torch
from oracles import relative

from torchridge import Moments, ridge
from torchridge.exceptions import RankDeficientWarning


@pytest.mark.parametrize("alpha", [1.0, 100.0])
@pytest.mark.parametrize("small", [1e-4, 1e-8])
def test_a_small_column_beside_a_large_one_keeps_its_weight(alpha: float, small: float, device: torch.device) -> None:
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64, device=device)
    X, y = signs * torch.tensor([1e8, small], device=device), torch.tensor([3.0, 1, -1, -3], device=device).double()
    exact = (X.T @ y) / ((X * X).sum(0) + alpha)  # the columns are orthogonal
    solution = ridge(X, y, alpha)
    assert bool(((solution.weight[0] - exact).abs() <= 1e-10 * exact.abs()).all()) and solution.rank == 2


def test_microseconds_beside_an_age(device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    age = 20 + 60 * torch.rand(1000, generator=g, dtype=torch.float64)
    stamp = 1.7e15 + 1e13 * torch.rand(1000, generator=g, dtype=torch.float64)
    y = 2 * age + torch.randn(1000, generator=g, dtype=torch.float64)
    alone = ridge(age[:, None], y, 1.0).weight[0, 0]
    both = ridge(torch.stack([stamp, age], 1).to(device), y.to(device), 1.0).weight[0, 1]
    assert abs(float(both) - float(alone)) <= 5e-3  # the stamp is independent of the age: 1 / √1000 of its noise


@pytest.mark.parametrize("heavy", [1e4, 1e12, 1e16])
@pytest.mark.parametrize("place", [0, 50, 99])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_heavy_row_does_not_cancel_the_others(heavy: float, place: int, streamed: bool, device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(100, 3, generator=g, dtype=torch.float64)
    y = X.sum(1) + torch.randn(100, generator=g, dtype=torch.float64)
    s = torch.ones(100, dtype=torch.float64)
    s[place] = heavy
    # centred on the heavy row, of which only 1 / heavy is left to be taken out
    x, z = X - X[place], y - y[place]
    mean_x, mean_z = (s @ x) / s.sum(), (s @ z) / s.sum()
    gram = (x * s[:, None]).T @ x - s.sum() * torch.outer(mean_x, mean_x) + torch.eye(3, dtype=torch.float64)
    exact = torch.linalg.solve(gram, (x * s[:, None]).T @ z - s.sum() * mean_x * mean_z)
    X, y, s = (a.to(device) for a in (X, y, s))
    if streamed:
        moments = Moments()
        for run in range(0, 100, 10):
            moments.update(X[run : run + 10], y[run : run + 10], s[run : run + 10])
        got = ridge(moments, alpha=1.0)
    else:
        got = ridge(X, y, 1.0, sample_weight=s)
    assert relative(got.weight[0].cpu(), exact) <= 1e-10


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7e9, -1e-7])
def test_a_constant_column_is_no_signal(value: float, device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(50, 2, generator=g, dtype=torch.float64, device="cpu").to(device)
    y = X[:, 0] + torch.randn(50, generator=g, dtype=torch.float64).to(device)
    want = ridge(X, y, 0.0).weight
    with pytest.warns(RankDeficientWarning, match="rank 2 of 3"):
        got = ridge(torch.cat([torch.full_like(X[:, :1], value), X], 1), y, 0.0).weight
    assert float(got[0, 0]) == 0 and relative(got[:, 1:], want) <= 1e-10

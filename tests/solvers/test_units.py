"""Units of the columns, heavy rows and constant columns cost no digits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import relative
from torch import Tensor

from torchridge import Moments, ridge, ridge_cv, ridge_path, stream_moments
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


def batches(X: Tensor, y: Tensor, fold: Tensor | None = None) -> Moments:
    moments = Moments()
    for i in range(0, len(X), 7):
        part = slice(i, i + 7)
        moments.update(X[part], y[part], fold=None if fold is None else fold[part])
    return moments


FITS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "path": lambda X, y: ridge_path(X, y, [0.0, 1.0, 2.0, 3.0]).weight[0],
    "weights": lambda X, y: ridge(X, y, 0.0, sample_weight=torch.arange(1.0, len(X) + 1).to(X)).weight,
    "standardize": lambda X, y: ridge(X, y, 0.0, standardize=True).weight,
    "svd": lambda X, y: ridge(X, y, 0.0, solver="svd").weight,
    "cg": lambda X, y: ridge(X, y, 1e-2, solver="cg").weight,
    "sparse": lambda X, y: ridge(X.to_sparse(), y, 1e-2, solver="cg").weight,
    "few rows by cg": lambda X, y: ridge(X[:2], y[:2], 1e-2, solver="cg").weight,
    "batch": lambda X, y: ridge(X.expand(2, -1, -1), y.expand(2, -1), 0.0).weight[1],
    "moments": lambda X, y: ridge(batches(X, y), alpha=0.0).weight,
    "stream": lambda X, y: ridge(stream_moments([(X[:20], y[:20]), (X[20:], y[20:])]), alpha=0.0).weight,
    "chosen": lambda X, y: ridge_cv(X, y, [0.0], cv=3).weight,
}


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.RankDeficientWarning")
@pytest.mark.parametrize("value", [0.3, 7.7, 123456.789, -2.2e8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FITS)
def test_a_constant_column_has_no_weight_anywhere(name: str, dtype: torch.dtype, value: float) -> None:
    g = torch.Generator().manual_seed(7)
    X = torch.randn(50, 2, generator=g, dtype=torch.float64).to(dtype)
    y = X[:, 0] + torch.randn(50, generator=g, dtype=torch.float64).to(dtype)
    with_constant = torch.cat([X[:, :1], torch.full_like(X[:, :1], value), X[:, 1:]], 1)
    want, got = FITS[name](X, y), FITS[name](with_constant, y)
    assert float(got[0, 1]) == 0
    torch.testing.assert_close(got[:, [0, 2]], want, rtol=1e-6 if "cg" in name or name == "sparse" else 1e-10, atol=0)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.RankDeficientWarning")
@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
@pytest.mark.parametrize("value", [0.3, 123456.789, -2.2e8])
@pytest.mark.parametrize("cv", ["gcv", "loo", "evidence", 3, "moments", "moments of folds"])
def test_a_constant_column_changes_no_score(cv: Any, value: float) -> None:
    g = torch.Generator().manual_seed(7)
    X = torch.randn(50, 2, generator=g, dtype=torch.float64)
    y = X[:, 0] + torch.randn(50, generator=g, dtype=torch.float64)
    alphas = [1e-3, 1.0] if cv == "evidence" else [0.0, 1.0]

    def scores(X: Tensor) -> Tensor | None:
        if isinstance(cv, str) and "moments" in cv:
            fold = torch.arange(50) % 3 if "folds" in cv else None
            return ridge_cv(batches(X, y, fold), alphas=alphas).scores
        return ridge_cv(X, y, alphas, cv=cv).scores

    want, got = scores(X), scores(torch.cat([torch.full_like(X[:, :1], value), X], 1))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1e-5])
def test_products_reach_a_small_column_beside_a_large_one(size: float, sparse: bool) -> None:
    g = torch.Generator().manual_seed(7)
    X = torch.randn(60, 3, generator=g, dtype=torch.float64) * torch.tensor([1e5, 1.0, size])
    y = X @ torch.tensor([1e-5, 1.0, 1 / size], dtype=torch.float64) + 1
    alpha = size**2
    want = ridge(X, y, alpha, solver="svd").weight[0]
    got = ridge(X.to_sparse() if sparse else X, y, alpha, solver="cg").weight[0]
    assert float(((got - want) / want).abs().max()) <= 1e-6
    few = X[:2].repeat(1, 2)  # rows are the unknowns
    want = ridge(few, y[:2], 1.0, solver="svd").weight[0]
    got = ridge(few.to_sparse() if sparse else few, y[:2], 1.0, solver="cg").weight[0]
    assert float(((got - want) * few.abs().amax(0)).abs().max()) <= 1e-6

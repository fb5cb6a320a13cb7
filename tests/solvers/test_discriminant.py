"""LDA from moments, and moments whose targets change, against sums over the rows themselves."""

import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from torchridge.solvers.least_squares import discriminant
from torchridge.solvers.moments import one_pass, targets
from torchridge.solvers.moments.blocks import Block

TOLERANCE = 1e-9  # the mean of 100 costs four digits in scikit-learn, none here


def rows() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (90,), generator=g)
    X = torch.randn(90, 5, generator=g, dtype=torch.float64) + torch.randn(3, 5, generator=g, dtype=torch.float64)[y]
    return X + 100, y, torch.rand(90, generator=g, dtype=torch.float64) + 0.5


def block_of(X: Tensor, y: Tensor, s: Tensor | None = None) -> Block:
    return one_pass.block_of(X, y, s, None, torch.float64, X.device)


def assert_same(a: Block, b: Block) -> None:
    assert a.rows == b.rows
    for x, z in zip(a[1:], b[1:], strict=True):
        torch.testing.assert_close(x, z, rtol=1e-10, atol=1e-9)


def test_classes_are_those_of_the_rows(device: torch.device) -> None:
    X, y, s = rows()
    found = discriminant.classes_of(block_of(X.to(device), targets.indicators(y, 4).to(device), s.to(device)))
    within = torch.zeros(5, 5, dtype=torch.float64)
    for c in range(3):
        mine, w = X[y == c], s[y == c]
        mean = (w @ mine) / w.sum()
        within += (mine - mean).T @ ((mine - mean) * w[:, None])
        torch.testing.assert_close(found.mean[c].cpu(), mean)
    torch.testing.assert_close(found.within.cpu(), within)
    assert float(found.weight[3]) == 0


@pytest.mark.parametrize("shrinkage", [0.0, 1e-4, 0.3, 1.0])
def test_shrinkage_is_scikit_learns(shrinkage: float, device: torch.device) -> None:
    X, y, _ = rows()
    model = discriminant.discriminant(block_of(X.to(device), targets.indicators(y, 3).to(device)))
    alpha = torch.tensor([shrinkage], dtype=torch.float64, device=device)
    peer = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage or None).fit(X.numpy(), y.numpy())
    lam = np.sort(discriminant.spread(model, alpha)[:, 0].cpu().numpy())
    np.testing.assert_allclose(lam, np.linalg.eigvalsh(peer.covariance_), rtol=TOLERANCE)
    plain = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(X.numpy(), y.numpy()).covariance_
    np.testing.assert_allclose(lam, np.linalg.eigvalsh(shrunk_covariance(plain, shrinkage)), rtol=TOLERANCE)
    weight, bias = discriminant.weights(model, alpha)
    got = (X @ weight[0].cpu().T + bias[0].cpu()).numpy()
    want = peer.decision_function(X.numpy())
    np.testing.assert_allclose(got - got[:, :1], want - want[:, :1], atol=1e-7)


def test_changed_targets_equal_moments_of_changed_rows() -> None:
    X, y, s = rows()
    one_hot = targets.indicators(y, 3)
    block = block_of(X, one_hot, s)
    assert_same(targets.signed(block), block_of(X, 2 * one_hot - 1, s))
    assert_same(targets.selected(block, torch.tensor([2, 0])), block_of(X, one_hot[:, [2, 0]], s))
    wide = torch.zeros(90, 5, dtype=torch.float64)
    wide[:, [3, 0, 1]] = one_hot
    assert_same(targets.widened(block, torch.tensor([3, 0, 1]), 5), block_of(X, wide, s))
    assert_same(targets.reweighted(block, 0.25), block_of(X, one_hot, s / 4))
    scale = torch.tensor([0.5, 2.0, 1.0, 10.0, 3.0], dtype=torch.float64)
    assert_same(targets.rescaled(block, scale), block_of(X * scale, one_hot, s))

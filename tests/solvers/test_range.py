"""The ends of the range: squares that vanish, weights that overflow, and a single row to choose a strength from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from torchridge import Moments, ridge, ridge_cv, ridge_path


def data(n: int = 40, d: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    return X, X.sum(1) + torch.randn(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("n", [40, 3])
@pytest.mark.parametrize("scale", [1e-158, 1e-160, 1e-165, 1e-300])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_features_whose_squares_vanish_are_refused(scale: float, n: int) -> None:
    X, y = data(n)
    for call in (
        lambda: ridge(X * scale, y, 0.0),
        lambda: ridge(X * scale, y, 0.0, solver="svd"),
        lambda: ridge_path(X * scale, y, [0.0, 1.0]),
        lambda: ridge_cv(X * scale, y),
        lambda: ridge_cv(X * scale, y, cv=3),
    ):
        with pytest.raises(ValueError, match=r"`X` is too small to square in torch.float64: the largest value is .*e-"):
            call()


@pytest.mark.parametrize("scale", [1e-150, 1e-170, 1e-300])
def test_a_strength_that_outweighs_vanishing_squares_is_no_reason_to_refuse(scale: float) -> None:
    X, y = data()
    want = (X - X.mean(0)).T @ (y - y.mean())  # of W = Xᵀy / α, where α drowns the gram matrix
    torch.testing.assert_close(ridge(X * scale, y, 1.0).weight[0] / scale, want, rtol=1e-12, atol=0)
    tiny = torch.cat([X * scale, X], 1)
    torch.testing.assert_close(ridge(tiny, y, 1.0).weight[:, 4:], ridge(X, y, 1.0).weight, rtol=1e-12, atol=0)


def test_weights_that_overflow_the_dtype_of_the_rows_are_refused() -> None:
    X, y = data()
    with pytest.raises(ValueError, match=r"the weights are too large for torch.float32.*`X\.double\(\)`"):
        ridge((X * 1e-20).float(), (y * 1e30).float(), 0.0)
    assert bool(torch.isfinite(ridge(X * 1e-20, y * 1e30, 0.0).weight).all())


ONE = r"`cv`='{}' cannot choose a strength by one row \(n_samples=1\).*`ridge\(X, y, alpha\)`"


@pytest.mark.parametrize("cv", ["loo", "gcv", "evidence"])
@pytest.mark.parametrize("alphas", ["auto", [1.0, 2.0]])
@pytest.mark.parametrize("d", [1, 4])
def test_a_strength_is_not_chosen_by_one_row(cv: str, alphas: Any, d: int) -> None:
    X, y = data(3, d)
    with pytest.raises(ValueError, match=ONE.format(cv)):
        ridge_cv(X[:1], y[:1], alphas, cv=cv)
    with pytest.raises(ValueError, match=ONE.format(cv)):
        ridge_cv(X, y, alphas, cv=cv, sample_weight=torch.tensor([0.0, 2.0, 0.0]))
    if cv != "loo":
        with pytest.raises(ValueError, match=ONE.format(cv)):
            ridge_cv(Moments().update(X[:1], y[:1]), alphas=alphas, cv=cv)


def test_without_an_intercept_leaving_the_one_row_out_leaves_nothing() -> None:
    X, y = data(1)
    with pytest.raises(ValueError, match=ONE.format("loo")):
        ridge_cv(X, y, [1.0, 2.0], cv="loo", fit_intercept=False)
    with pytest.raises(ValueError, match=ONE.format("gcv")):
        ridge_cv(X, y, [1.0, 2.0], solver="cg")

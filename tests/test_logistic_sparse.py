"""Logistic regression on sparse rows, and single dense fits: against scikit-learn, and against dense rows."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import linear_model

from torchridge import logistic, logistic_cv
from torchridge.estimators import LogisticRegression, LogisticRegressionCV
from torchridge.exceptions import ConvergenceWarning
from torchridge.solvers.cross_entropy import sparse as logistic_sparse
from torchridge.solvers.cross_entropy.single import fit as fit_single


def counts(n: int, d: int, k: int, dtype: Any = np.float64, seed: int = 0) -> tuple[Any, Any]:
    """Rows of small counts of which frequency falls with the column; every class present."""
    rng = np.random.default_rng(seed)
    X = rng.poisson(1.5 / np.arange(1, d + 1) ** 0.7, (n, d)).astype(dtype)
    y = (X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k))).argmax(1)
    y[:k] = np.arange(k)
    return X, y


@pytest.fixture(autouse=True)
def never_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic_sparse, "_SMALL", 0)
    monkeypatch.setattr(logistic_sparse, "_FULL", 0)


TORCH = {"csr": torch.Tensor.to_sparse_csr, "csc": torch.Tensor.to_sparse_csc, "coo": torch.Tensor.to_sparse}
SCIPY = [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array]


def theirs(X: Any, y: Any, weight: Any = None, **options: Any) -> Any:
    return linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=500, **options).fit(
        X, y, weight
    )


@pytest.mark.parametrize("container", SCIPY)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("k", [2, 4])
def test_scipy_matrices_of_any_kind_equal_scikit_learn(container: Any, dtype: Any, k: int) -> None:
    X, y = counts(90, 120, k, dtype)
    ours = LogisticRegression(tol=1e-8).fit(container(X), y)
    peer = theirs(X.astype(np.float64), y)
    tolerance = 1e-6 if dtype is not np.float32 else 1e-5
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=tolerance * np.abs(peer.coef_).max())
    np.testing.assert_allclose(ours.intercept_, peer.intercept_, atol=10 * tolerance)
    np.testing.assert_allclose(ours.predict_proba(container(X)), peer.predict_proba(X), atol=10 * tolerance)
    assert ours.coef_.dtype == (np.float32 if dtype is np.float32 else np.float64)


@pytest.mark.parametrize("layout", TORCH)
@pytest.mark.parametrize("intercept", [True, False])
def test_tensors_of_any_layout_equal_scikit_learn(layout: str, intercept: bool) -> None:
    X, y = counts(90, 120, 3)
    weight = np.random.default_rng(1).uniform(0.1, 2, 90)
    rows = TORCH[layout](torch.from_numpy(X))
    ours = logistic(
        rows,
        torch.from_numpy(y),
        0.5,
        sample_weight=torch.from_numpy(weight),
        fit_intercept=intercept,
        tol=1e-14,
    )
    peer = theirs(X, y, weight, C=0.5, fit_intercept=intercept)
    np.testing.assert_allclose(ours.weight, peer.coef_, atol=1e-6 * np.abs(peer.coef_).max())
    np.testing.assert_allclose(ours.bias, peer.intercept_ + np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(rows), peer.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0}])
@pytest.mark.parametrize("k", [2, 3])
def test_weights_of_rows_and_classes(class_weight: Any, k: int) -> None:
    X, y = counts(80, 60, k)
    weight = np.random.default_rng(1).uniform(0, 2, 80)
    ours = LogisticRegression(C=2.0, tol=1e-8, class_weight=class_weight).fit(sparse.csr_matrix(X), y, weight)
    peer = theirs(X, y, weight, C=2.0, class_weight=class_weight)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-6 * np.abs(peer.coef_).max())
    np.testing.assert_allclose(ours.intercept_, peer.intercept_, atol=1e-5)


def test_a_path_of_heads_equals_that_of_dense_rows() -> None:
    X, y = counts(60, 50, 4)
    labels = torch.from_numpy(np.stack([y, np.where(y > 1, 3, 0)], 1))  # the second head lacks two of the classes
    C = [10.0, 0.01, 1.0]
    rows = sparse.csr_matrix(X)
    ours = logistic(rows, labels, C, tol=1e-13)
    dense = logistic(torch.from_numpy(X), labels, C, tol=1e-13)
    assert ours.weight.shape == dense.weight.shape == (3, 2, 4, 50)
    torch.testing.assert_close(ours.weight, dense.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.objective, dense.objective, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.predict_proba(rows), dense.predict_proba(torch.from_numpy(X)), rtol=0, atol=1e-5)
    assert bool(ours.converged.all())
    assert torch.equal(ours.separated, dense.separated)
    assert bool(torch.isinf(ours.bias[:, 1, 1:3]).all())


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("scoring", ["log_loss", "accuracy"])
@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_folds_equal_those_of_dense_rows(k: int, scoring: str) -> None:
    X, y = counts(90, 60, k)
    labels, Cs = torch.from_numpy(y), [1e-2, 1e-1, 1.0, 1e3]
    ours = logistic_cv(sparse.csr_matrix(X), labels, Cs, cv=3, scoring=scoring, tol=1e-12)
    dense = logistic_cv(torch.from_numpy(X), labels, Cs, cv=3, scoring=scoring, tol=1e-12)
    assert ours.C == dense.C
    torch.testing.assert_close(ours.scores, dense.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.weight, dense.weight, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_the_estimator_chooses_as_scikit_learn_does(scoring: str) -> None:
    X, y = counts(120, 40, 3)
    kwargs: dict[str, Any] = {"Cs": 4, "cv": 3, "scoring": scoring, "use_legacy_attributes": False, "tol": 1e-8}
    rows = sparse.csr_matrix(X)
    ours = LogisticRegressionCV(**kwargs).fit(rows, y)
    peer = linear_model.LogisticRegressionCV(**kwargs, solver="newton-cholesky").fit(X, y)
    assert pytest.approx(peer.C_) == ours.C_
    np.testing.assert_allclose(ours.scores_, peer.scores_, rtol=1e-4)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-5)
    assert ours.score(rows, y) == pytest.approx(peer.score(X, y))


def test_memory_and_time_do_not_need_the_rows_filled() -> None:
    """Filled, the rows would take 75 GiB."""
    rng = np.random.default_rng(0)
    rows = sparse.random_array((20000, 500_000), density=2e-5, rng=rng, format="csr")
    y = np.arange(20000) % 2
    model = LogisticRegression().fit(rows, y)
    assert model.coef_.shape == (1, 500_000)
    gradient = rows.T @ (model.predict_proba(rows)[:, 1] - y) + model.coef_[0]
    assert np.abs(gradient).max() < 1e-4


def test_stopping_early_warns_and_bad_entries_are_named() -> None:
    X, y = counts(60, 80, 3)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        assert not bool(logistic(sparse.csr_matrix(X), torch.from_numpy(y), 1e3, max_iter=2).converged)
    with pytest.raises(ValueError, match="`y` has 59 rows"):
        logistic(sparse.csr_matrix(X), torch.from_numpy(y[1:]))
    X[7, 3] = np.nan
    with pytest.raises(ValueError, match="`X` holds NaN, first in row 7"):
        LogisticRegression().fit(sparse.csr_matrix(X), y)
    with pytest.raises(ValueError, match="`X` holds NaN, first in row 7"):
        logistic(sparse.csr_matrix(X), torch.from_numpy(y))


SINGLE = [(60, 5, 2), (40, 90, 2), (60, 5, 4), (300, 60, 12), (700, 250, 2), (120, 200, 6)]


@pytest.mark.parametrize(("n", "d", "k"), SINGLE)
@pytest.mark.parametrize("C", [1e-3, 1.0])
@pytest.mark.parametrize("intercept", [True, False])
def test_a_single_fit_keeps_its_promise_on_every_road(n: int, d: int, k: int, C: float, intercept: bool) -> None:
    """Newton's method on features and on rows, L-BFGS with either scaling; scales over two decades, far from zero."""
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((n, d)) + 3) * np.logspace(-1, 1, d)
    y = ((X / np.logspace(-1, 1, d)) @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k))).argmax(1)
    y[:k] = np.arange(k)
    rows, labels = torch.from_numpy(X), torch.from_numpy(y)
    solution = logistic(rows, labels, C, fit_intercept=intercept, tol=1e-9)
    path = logistic(rows, labels, [C * 0.9, C], fit_intercept=intercept, tol=1e-11)  # another road
    assert bool(solution.converged)
    assert float(solution.objective) <= float(path.objective[1]) * (1 + 1e-9)
    target = labels.double() if k == 2 else labels
    loss = torch.nn.functional.binary_cross_entropy_with_logits if k == 2 else torch.nn.functional.cross_entropy
    value = C * loss(solution.decision_function(rows), target, reduction="sum") + 0.5 * solution.weight.square().sum()
    torch.testing.assert_close(solution.objective, value, rtol=1e-9, atol=0)


def test_float32_products_reach_the_gap_of_float64() -> None:
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((500, 60)) + 5)
    y = torch.from_numpy((X.numpy() @ rng.standard_normal((60, 5)) / 4 + rng.gumbel(size=(500, 5))).argmax(1))
    shares = torch.full((500,), 1 / 500, dtype=torch.float64)
    y[:5] = torch.arange(5)
    seen = torch.bincount(y).double() / 500
    found = [
        fit_single(X, y, shares, seen, 2e-3, intercept=True, tol=1e-6, max_iter=500, dtype=dtype, newton=False)
        for dtype in (torch.float32, torch.float64)
    ]
    exact = fit_single(X, y, shares, seen, 2e-3, intercept=True, tol=1e-13, max_iter=500, dtype=torch.float64)
    for one in found:
        logits = X @ one.weight.mT + one.bias
        value = float(torch.nn.functional.cross_entropy(logits, y) + 1e-3 * one.weight.square().sum())
        assert value <= exact.objective * (1 + 1e-6)

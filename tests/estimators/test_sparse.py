"""Sparse rows in the ridge estimators: the roads by products against scikit-learn, whatever the kind of matrix."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn import linear_model
from sklearn.model_selection import ShuffleSplit

from torchridge import ridge_cv, ridge_path
from torchridge.estimators import Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV, _cv_model
from torchridge.exceptions import GridEdgeWarning
from torchridge.solvers.iterative import shifted, sparse_gram, sparse_ridge

EDGE = "ignore::torchridge.exceptions.GridEdgeWarning"


def words(n: int, d: int, k: int, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Sparse counts of which frequency falls with the column, and classes."""
    rng = np.random.default_rng(0)
    X = rng.poisson(2 / np.arange(1, d + 1) ** 0.8, (n, d)).astype(dtype)
    y = (X @ rng.standard_normal((d, k)) + rng.gumbel(size=(n, k))).argmax(1)
    y[: 5 * k] = np.tile(np.arange(k), 5)
    return X, y


@pytest.fixture(autouse=True)
def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_ridge, "_DEARER", 0.0)


KINDS = [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize(("n", "d", "k"), [(40, 200, 2), (90, 30, 3)])
def test_classifiers_on_any_kind_of_matrix(kind: Any, dtype: Any, n: int, d: int, k: int) -> None:
    X, y = words(n, d, k, dtype)
    ours = RidgeClassifier(alpha=0.7).fit(kind(X), y)
    theirs = linear_model.RidgeClassifier(alpha=0.7, solver="cholesky").fit(X.astype(np.float64), y)
    assert ours.solver_ == "cg"
    tolerance = 1e-6 if dtype is not np.float32 else 1e-5
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=tolerance * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=10 * tolerance)
    assert (ours.predict(kind(X)) == theirs.predict(X)).all()


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_weights_and_tensors(intercept: bool, layout: str) -> None:
    X, y = words(40, 150, 2)
    weight = np.random.default_rng(1).uniform(0, 2, 40)
    X_ = torch.from_numpy(X)
    rows = {"csr": X_.to_sparse_csr, "csc": X_.to_sparse_csc, "coo": X_.to_sparse}[layout]()
    options: dict[str, Any] = {"alpha": 2.0, "fit_intercept": intercept}
    ours = Ridge(**options).fit(rows, torch.from_numpy(y).double(), torch.from_numpy(weight))
    theirs = linear_model.Ridge(**options, solver="cholesky").fit(X, y, weight)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())
    balanced = RidgeClassifier(**options, class_weight="balanced").fit(sparse.csr_matrix(X), y, weight)
    theirs = linear_model.RidgeClassifier(**options, class_weight="balanced", solver="cholesky").fit(X, y, weight)
    np.testing.assert_allclose(balanced.coef_, theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())


@pytest.mark.parametrize(("n", "d"), [(60, 300), (300, 60)])
@pytest.mark.parametrize("numbers", [2**25, 2000])  # all targets at once, or one or a few
def test_a_path_whose_strengths_share_products_equals_single_solves(
    n: int, d: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shifted, "_NUMBERS", numbers)
    X, y = words(n, d, 4)
    target = torch.from_numpy(np.eye(4)[y])
    target[:, 3] = 5.0  # which the intercept fits: nothing is left to solve
    alphas = [100.0, 0.5, 10.0, 1.0, 50.0, 2.0]
    path = ridge_path(sparse.csr_matrix(X), target, alphas, solver="cg", tol=1e-10)
    assert bool(path.converged.all())
    for i, alpha in enumerate(alphas):
        theirs = linear_model.Ridge(alpha=alpha, solver="cholesky").fit(X, target.numpy())
        np.testing.assert_allclose(path.weight[i], theirs.coef_, atol=1e-7)
        np.testing.assert_allclose(path.bias[i], theirs.intercept_, atol=1e-7)


@pytest.mark.filterwarnings(EDGE)
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_leave_one_out_of_sparse_rows_is_exact(k: int, weighted: bool) -> None:
    X, y = words(50, 200, k)
    X[7] = X[8]  # rows that repeat make the Gram matrix singular
    weight = np.random.default_rng(1).uniform(0.1, 2, 50) if weighted else None
    alphas = [0.1, 1.0, 10.0, 100.0]
    ours = RidgeClassifierCV(alphas, store_cv_results=True).fit(sparse.csr_matrix(X), y, weight)
    theirs = RidgeClassifierCV(alphas, store_cv_results=True).fit(X, y, weight)
    assert ours.solution_.solver == "cg"
    assert ours.alpha_ == theirs.alpha_
    np.testing.assert_allclose(ours.cv_results_, theirs.cv_results_, rtol=1e-6, atol=1e-9)
    peer = linear_model.RidgeClassifierCV(alphas).fit(X, y, weight)
    assert ours.alpha_ == peer.alpha_
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-6)


@pytest.mark.filterwarnings(EDGE)
@pytest.mark.parametrize("scoring", [None, "balanced_accuracy"])
def test_folds_of_classes_equal_scikit_learn(scoring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cv_model, "folds_pay", lambda *_: True)
    X, y = words(90, 120, 3)
    ours = RidgeClassifierCV([0.1, 1.0, 10.0], cv=4, scoring=scoring).fit(sparse.csr_matrix(X), y)
    theirs = linear_model.RidgeClassifierCV([0.1, 1.0, 10.0], cv=4, scoring=scoring).fit(X, y)
    assert (ours.alpha_, ours.solution_.solver) == (theirs.alpha_, "cg")
    assert ours.best_score_ == pytest.approx(theirs.best_score_)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)


def test_folds_of_numbers_by_any_scorer() -> None:
    X, y = words(90, 120, 3)
    scoring = "neg_median_absolute_error"
    ours = RidgeCV([0.1, 1.0, 10.0], cv=4, scoring=scoring).fit(sparse.csr_matrix(X), y.astype(float))
    theirs = linear_model.RidgeCV([0.1, 1.0, 10.0], cv=4, scoring=scoring).fit(X, y.astype(float))
    assert ours.alpha_ == theirs.alpha_
    assert ours.best_score_ == pytest.approx(theirs.best_score_, rel=1e-6)


def test_rows_of_no_weight_and_many_strengths_in_leave_one_out() -> None:
    X, y = words(50, 200, 3)
    weight = np.random.default_rng(1).uniform(0.1, 2, 50) * (np.arange(50) % 7 > 0)
    for alphas in (np.logspace(-1, 3, 4), np.logspace(-1, 3, 12)):  # one by one, and from one eigendecomposition
        for intercept in (True, False):
            options: dict[str, Any] = {"store_cv_results": True, "fit_intercept": intercept}
            ours = RidgeCV(alphas, **options).fit(sparse.csr_matrix(X), y.astype(float), weight)
            dense = RidgeCV(alphas, **options).fit(X, y.astype(float), weight)
            assert ours.solution_.solver == "cg" and ours.alpha_ == dense.alpha_
            np.testing.assert_allclose(ours.cv_results_, dense.cv_results_, rtol=1e-6, atol=1e-9)
    with pytest.warns(GridEdgeWarning):
        RidgeCV([1e4, 1e5]).fit(sparse.csr_matrix(X), y.astype(float))


def test_too_many_rows_for_their_gram_matrix_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = words(40, 150, 2)
    monkeypatch.setattr(sparse_gram, "ROWS", 30)
    monkeypatch.setattr("torchridge.estimators._input.DENSE_BYTES", 1000)
    with pytest.raises(ValueError, match="for up to 30 rows; got 40"):
        RidgeClassifierCV().fit(sparse.csr_matrix(X), y)


def test_entries_that_are_not_finite_are_named() -> None:
    X, y = words(40, 150, 2)
    X[3, 5] = np.inf
    for model in (RidgeClassifier(), RidgeClassifierCV(), RidgeClassifierCV(cv=3)):
        with pytest.raises(ValueError, match="infinity, first in row"):
            model.fit(sparse.csr_matrix(X), y)


@pytest.mark.filterwarnings(EDGE)
@pytest.mark.parametrize("patience", [120, 2])  # by products that the strengths share, or each with a sketch
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d"), [(60, 300), (300, 60)])
def test_folds_of_sparse_rows_equal_refits(
    n: int, d: int, weighted: bool, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_ridge, "_PATIENCE", patience)
    monkeypatch.setattr(sparse_ridge, "_MORE", 0)
    X, y = words(n, d, 3)
    target = np.eye(3)[y] * [1.0, 1e3, 1e-3]
    weight = np.random.default_rng(1).uniform(0, 2, n) if weighted else np.ones(n)
    alphas, parts = [5.0, 0.05, 0.5], list(ShuffleSplit(3, test_size=0.3, random_state=0).split(X))
    given = torch.from_numpy(weight) if weighted else None
    ours = ridge_cv(
        sparse.csr_matrix(X), torch.from_numpy(target), alphas, parts, sample_weight=given, solver="cg", tol=1e-10
    )
    expected = np.empty((3, 3, 3))
    for k, (train, held) in enumerate(parts):
        for i, alpha in enumerate(alphas):
            fit = linear_model.Ridge(alpha, solver="cholesky").fit(X[train], target[train], weight[train])
            left = (target[held] - fit.predict(X[held])) ** 2
            expected[k, i] = -np.average(left, axis=0, weights=weight[held])
    np.testing.assert_allclose(ours.fold_scores, expected, rtol=1e-7)
    best = linear_model.Ridge(float(ours.alpha), solver="cholesky").fit(X, target, weight)
    np.testing.assert_allclose(ours.weight, best.coef_, atol=1e-9 * np.abs(best.coef_).max())


def test_a_strength_too_weak_to_share_products_is_solved_all_the_same() -> None:
    X, y = words(80, 60, 2)
    X[:, 5] *= 300.0
    target = torch.from_numpy(np.eye(2)[y])
    path = ridge_path(sparse.csr_matrix(X), target, [1e-4, 1e4], solver="cg", tol=1e-9, max_iter=5000)
    for i, alpha in enumerate([1e-4, 1e4]):
        theirs = linear_model.Ridge(alpha, solver="cholesky").fit(X, target.numpy())
        np.testing.assert_allclose(path.weight[i], theirs.coef_, atol=1e-6 * np.abs(theirs.coef_).max())

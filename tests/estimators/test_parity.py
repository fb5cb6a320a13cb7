"""The numbers of scikit-learn, with its names: coefficients, intercepts, strengths, scores, predictions."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from scipy import sparse
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.model_selection import KFold, LeaveOneOut, ShuffleSplit

from torchridge import estimators
from torchridge.estimators import LogisticRegression, Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")  # short grids will do

# Ours against theirs: theirs is solved in float32 where the data are, so that its own rounding shows.
TOLERANCE = {np.float64: 1e-8, np.float32: 1e-4}

SHAPES = [(60, 8), (12, 30)]


def rows(n: int, d: int, targets: int | None, dtype: Any = np.float64, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) + rng.standard_normal(d)
    y = X @ rng.standard_normal((d, targets or 1)) + rng.standard_normal((n, targets or 1)) + 3
    return X.astype(dtype), (y if targets else y[:, 0]).astype(dtype), rng.uniform(0.1, 2.0, n)


def same(ours: Any, theirs: Any, X: Any, y: Any, tolerance: float) -> None:
    scale = np.abs(theirs.coef_).max()
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.coef_.dtype == theirs.coef_.dtype
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=tolerance, atol=tolerance * scale)
    assert np.shape(ours.intercept_) == np.shape(theirs.intercept_)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=10 * tolerance, atol=10 * tolerance * scale)
    predicted, expected = ours.predict(X), theirs.predict(X)
    assert predicted.shape == expected.shape
    if predicted.dtype.kind == "f":
        assert predicted.dtype == expected.dtype
        np.testing.assert_allclose(
            predicted, expected, rtol=10 * tolerance, atol=10 * tolerance * np.abs(expected).max()
        )
    else:
        np.testing.assert_array_equal(predicted, expected)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=10 * tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [None, 1, 3])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("solver", ["auto", "svd", "cholesky"])
def test_ridge(dtype: Any, shape: Any, targets: Any, intercept: bool, weighted: bool, solver: str) -> None:
    X, y, s = rows(*shape, targets, dtype)
    s = s if weighted else None
    ours, theirs = (m(2.0, fit_intercept=intercept, solver=solver) for m in (Ridge, linear_model.Ridge))
    same(ours.fit(X, y, s), theirs.fit(X, y, s), X, y, TOLERANCE[dtype])


@pytest.mark.parametrize("solver", ["lsqr", "sparse_cg", "sag", "saga"])
@pytest.mark.parametrize("weighted", [True, False])
def test_iterative_solvers_by_name(solver: str, weighted: bool) -> None:
    X, y, s = rows(60, 8, 2)
    X = X - X.mean(0)  # or theirs takes very long
    s = s if weighted else None
    theirs = linear_model.Ridge(2.0, solver=solver, tol=1e-14, max_iter=100_000, random_state=0).fit(X, y, s)
    ours = Ridge(2.0, solver=solver).fit(X, y, s)
    same(ours, theirs, X, y, 1e-8)
    assert ours.solver_ == theirs.solver_ == solver


@pytest.mark.parametrize("shape", SHAPES)
def test_alpha_of_each_target(shape: Any) -> None:
    X, y, s = rows(*shape, 3)
    alpha = np.array([0.1, 1.0, 10.0])
    same(Ridge(alpha).fit(X, y, s), linear_model.Ridge(alpha).fit(X, y, s), X, y, 1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("alpha", [1e-2, 1.0, 50.0])
def test_positive(shape: Any, intercept: bool, weighted: bool, alpha: float) -> None:
    X, y, s = rows(*shape, 2)
    s = s if weighted else None
    options: dict[str, Any] = {"positive": True, "fit_intercept": intercept}
    ours = Ridge(alpha, **options).fit(X, y, s)
    theirs = linear_model.Ridge(alpha, **options, tol=1e-13, max_iter=100_000).fit(X, y, s)
    if alpha >= 1 or shape[0] > shape[1]:  # theirs stops on the change of the objective, which is flat otherwise
        same(ours, theirs, X, y, 1e-5)
    assert objective(ours, X, y, s, alpha) <= objective(theirs, X, y, s, alpha) * (1 + 1e-13)
    assert (ours.coef_ >= 0).all()
    assert (ours.coef_ == 0).any()


def objective(model: Any, X: Any, y: Any, s: Any, alpha: float) -> float:
    errors = ((y - model.predict(X)) ** 2).sum(1)
    return float(errors @ (np.ones(len(X)) if s is None else s) + alpha * (model.coef_**2).sum())


SPARSE = [sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.lil_matrix, sparse.dok_matrix]


@pytest.mark.parametrize("container", [*SPARSE, sparse.csr_array, sparse.csc_array])
@pytest.mark.parametrize("intercept", [True, False])
def test_sparse(container: Any, intercept: bool) -> None:
    X, y, s = rows(60, 8, None)
    X[np.abs(X) < 0.7] = 0
    ours, theirs = Ridge(fit_intercept=intercept), linear_model.Ridge(fit_intercept=intercept, tol=1e-14)
    same(ours.fit(container(X), y, s), theirs.fit(container(X), y, s), container(X), y, 1e-8)


def test_sparse_rows_that_would_not_fit_when_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchridge.estimators._input.DENSE_BYTES", 1000)
    monkeypatch.setattr("torchridge.streams.sparse._RUN_BYTES", 500)
    X, y, s = rows(60, 8, None)
    X[np.abs(X) < 0.7] = 0
    for options in ({}, {"positive": True}):
        ours = Ridge(**options).fit(sparse.csr_matrix(X), y, s)
        dense = Ridge(**options).fit(X, y, s)
        np.testing.assert_allclose(ours.coef_, dense.coef_, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(ours.predict(sparse.csr_matrix(X)), dense.predict(X), rtol=1e-10)
    chosen = RidgeCV().fit(sparse.csr_matrix(X), y)
    assert chosen.alpha_ == linear_model.RidgeCV().fit(X, y).alpha_
    monkeypatch.setattr("torchridge.estimators._solve.COLUMNS", 5)
    ours = Ridge().fit(sparse.csr_matrix(X), y, s)
    np.testing.assert_allclose(ours.coef_, Ridge().fit(X, y, s).coef_, rtol=1e-6, atol=1e-7)
    assert ours.solver_ == "cg"
    assert ours.n_iter_[0] == ours.solution_.n_iter >= 1
    assert bool(ours.solution_.converged.all())


@pytest.mark.parametrize("scoring", [None, "r2", "neg_mean_squared_error"])
def test_strengths_of_sparse_rows_that_would_not_fit_when_dense(monkeypatch: pytest.MonkeyPatch, scoring: Any) -> None:
    X, y, _ = rows(60, 8, None)
    X[np.abs(X) < 0.7] = 0
    alphas = np.logspace(-2, 3, 6)
    theirs = linear_model.RidgeCV(alphas, cv=4, scoring=scoring).fit(X, y)
    criterion = RidgeCV(alphas, cv="gcv").fit(X, y)
    monkeypatch.setattr("torchridge.estimators._input.DENSE_BYTES", 1000)
    ours = RidgeCV(alphas, cv=4, scoring=scoring).fit(sparse.csr_matrix(X), y)
    assert ours.solution_.solver == "cg"
    assert ours.alpha_ == theirs.alpha_
    assert ours.best_score_ == pytest.approx(theirs.best_score_, rel=1e-6)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-7)
    assert RidgeCV(alphas, cv="gcv").fit(sparse.csr_matrix(X), y).alpha_ == criterion.alpha_
    for given in ({}, {"cv": 4, "scoring": "neg_median_absolute_error"}):  # leave-one-out, and any scorer
        ours, peer = RidgeCV(alphas, **given).fit(sparse.csr_matrix(X), y), linear_model.RidgeCV(alphas, **given)
        assert ours.alpha_ == peer.fit(X, y).alpha_
        np.testing.assert_allclose(ours.coef_, peer.coef_, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", ["csr", "coo", "csc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sparse_tensors_that_would_not_fit_when_dense(
    monkeypatch: pytest.MonkeyPatch, layout: str, dtype: torch.dtype
) -> None:
    X, y, s = (torch.from_numpy(a).to(dtype) for a in rows(60, 8, None))
    X[X.abs() < 0.7] = 0
    of = {"csr": X.to_sparse_csr(), "coo": X.to_sparse(), "csc": X.to_sparse_csc()}[layout]
    dense, chosen = Ridge().fit(X, y, s), RidgeCV([0.1, 1.0, 10.0], cv="gcv").fit(X, y)
    monkeypatch.setattr("torchridge.estimators._input.DENSE_BYTES", 1000)
    for columns in (8192, 5):  # by moments, by products
        monkeypatch.setattr("torchridge.estimators._solve.COLUMNS", columns)
        ours = Ridge().fit(of, y, s)
        predicted = ours.predict(of)
        assert isinstance(predicted, torch.Tensor) and predicted.dtype is ours.coef_.dtype is dtype
        torch.testing.assert_close(ours.coef_, dense.coef_, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(predicted, dense.predict(X), rtol=1e-5, atol=1e-5)
    assert RidgeCV([0.1, 1.0, 10.0], cv="gcv").fit(of, y).alpha_ == chosen.alpha_


@pytest.mark.parametrize("classes", [2, 3])
def test_classes_of_sparse_rows_that_would_not_fit_when_dense(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    X, y, _ = rows(90, 8, None)
    X[np.abs(X) < 0.7] = 0
    labels = np.digitize(y if y.ndim == 1 else y[:, 0], np.quantile(y, np.arange(1, classes) / classes))
    given = {"alphas": np.logspace(-2, 3, 6), "cv": "gcv", "class_weight": "balanced"}
    dense = RidgeClassifierCV(**given).fit(X, labels)
    monkeypatch.setattr("torchridge.estimators._input.DENSE_BYTES", 1000)
    ours = RidgeClassifierCV(**given).fit(sparse.csr_matrix(X), labels)
    assert ours.solution_.solver == "cg" and ours.alpha_ == dense.alpha_
    np.testing.assert_allclose(ours.coef_, dense.coef_, rtol=1e-6, atol=1e-7)
    assert (ours.predict(sparse.csr_matrix(X)) == dense.predict(X)).all()
    for cv in (None, 3):
        peer = linear_model.RidgeClassifierCV(cv=cv).fit(X, labels)
        assert RidgeClassifierCV(cv=cv).fit(sparse.csr_matrix(X), labels).alpha_ == peer.alpha_


ALPHAS = np.logspace(-3, 3, 13)
SCORINGS = [
    None,
    "neg_mean_squared_error",
    "r2",
    "explained_variance",
    "neg_mean_absolute_error",
    "neg_root_mean_squared_error",
    "neg_median_absolute_error",
    "neg_max_error",
]


def chosen(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.alpha_, theirs.alpha_)
    np.testing.assert_allclose(ours.best_score_, theirs.best_score_, rtol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [None, 3])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("gcv_mode", [None, "auto", "svd", "eigen"])
def test_leave_one_out(shape: Any, targets: Any, weighted: bool, intercept: bool, gcv_mode: Any) -> None:
    X, y, s = rows(*shape, targets)
    s = s if weighted else None
    options: dict[str, Any] = {"fit_intercept": intercept, "gcv_mode": gcv_mode, "store_cv_results": True}
    ours, theirs = (m(ALPHAS, **options).fit(X, y, s) for m in (RidgeCV, linear_model.RidgeCV))
    chosen(ours, theirs)
    same(ours, theirs, X, y, 1e-8)
    assert ours.cv_results_.shape == theirs.cv_results_.shape
    # At the weakest strength of more features than rows the residuals are 1e-6 of the targets: digits cancel.
    np.testing.assert_allclose(ours.cv_results_, theirs.cv_results_, rtol=1e-6, atol=1e-8 * theirs.cv_results_.max())
    plain = RidgeCV(ALPHAS, fit_intercept=intercept).fit(X, y, s)
    assert plain.alpha_ == ours.alpha_
    assert plain.best_score_ == pytest.approx(ours.best_score_, rel=1e-10)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("cv", [None, 4, KFold(3, shuffle=True, random_state=0), ShuffleSplit(3, random_state=1)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_scorings_and_folds(scoring: Any, cv: Any, weighted: bool, shape: Any) -> None:
    targets = None if scoring == "neg_max_error" else 2
    X, y, s = rows(*shape, targets)
    s = s if weighted and scoring != "neg_max_error" else None  # which takes no weights
    ours, theirs = (m(ALPHAS, scoring=scoring, cv=cv).fit(X, y, s) for m in (RidgeCV, linear_model.RidgeCV))
    chosen(ours, theirs)
    same(ours, theirs, X, y, 1e-8)


def test_folds_of_one_row_and_iterables_of_splits() -> None:
    X, y, _ = rows(20, 4, None)
    for cv in (LeaveOneOut(), list(KFold(4).split(X))):
        kwargs: dict[str, Any] = {"cv": cv, "scoring": "neg_mean_squared_error"}
        chosen(RidgeCV(ALPHAS, **kwargs).fit(X, y), linear_model.RidgeCV(ALPHAS, **kwargs).fit(X, y))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("scoring", [None, "r2"])
def test_alpha_per_target_is_chosen(weighted: bool, scoring: Any) -> None:
    X, y, s = rows(60, 8, 3)
    y[:, 1] += 20 * np.random.default_rng(1).standard_normal(60)
    s = s if weighted and scoring is None else None
    kwargs: dict[str, Any] = {"alpha_per_target": True, "scoring": scoring}
    ours, theirs = (m(ALPHAS, **kwargs).fit(X, y, s) for m in (RidgeCV, linear_model.RidgeCV))
    assert len(set(theirs.alpha_)) > 1
    chosen(ours, theirs)
    same(ours, theirs, X, y, 1e-8)


@pytest.mark.parametrize("order", list(itertools.permutations([0.1, 1.0, 10.0]))[:4])
@pytest.mark.parametrize("cv", [None, 3])
def test_of_equal_scores_the_first_strength_wins(order: Any, cv: Any) -> None:
    X, y, _ = rows(30, 3, None)
    ours, theirs = (m(order, scoring=lambda *_: 0.5, cv=cv).fit(X, y) for m in (RidgeCV, linear_model.RidgeCV))
    assert ours.alpha_ == theirs.alpha_ == order[0]
    assert ours.best_score_ == 0.5


CLASSES = {
    "binary": load_breast_cancer(return_X_y=True),
    "iris": load_iris(return_X_y=True),
    "digits": tuple(a[:400] for a in load_digits(return_X_y=True)),
}


@pytest.mark.filterwarnings("ignore:An ill-conditioned matrix")
@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("weighted", [True, False])
def test_ridge_classifier(name: str, class_weight: Any, weighted: bool) -> None:
    X, y = CLASSES[name]
    X = X / (np.abs(X).max(0) + 1e-12)
    s = np.random.default_rng(0).uniform(0.1, 2.0, len(X)) if weighted else None
    ours, theirs = (m(class_weight=class_weight).fit(X, y, s) for m in (RidgeClassifier, linear_model.RidgeClassifier))
    same(ours, theirs, X, y, 1e-8)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)


@pytest.mark.filterwarnings("ignore:An ill-conditioned matrix")
@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("cv", [None, 3, KFold(4, shuffle=True, random_state=0)])
@pytest.mark.parametrize("scoring", [None, "accuracy", "balanced_accuracy", "f1_macro"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_ridge_classifier_cv(name: str, cv: Any, scoring: Any, class_weight: Any) -> None:
    X, y = CLASSES[name]
    if name == "binary" and cv is None and scoring is not None:
        pytest.skip("scikit-learn gives its scorer a single class here, and scores 1.0 at every strength")
    X = X / (np.abs(X).max(0) + 1e-12)
    kwargs: dict[str, Any] = {"cv": cv, "scoring": scoring, "class_weight": class_weight}
    ours, theirs = (m(ALPHAS, **kwargs).fit(X, y) for m in (RidgeClassifierCV, linear_model.RidgeClassifierCV))
    chosen(ours, theirs)
    same(ours, theirs, X, y, 1e-8)


def test_leave_one_out_scores_two_classes_as_two() -> None:
    X, y = CLASSES["binary"]
    X = (X - X.mean(0)) / X.std(0)
    model = RidgeClassifierCV([1e-1, 1e3], scoring="accuracy").fit(X, y)
    right = [
        linear_model.RidgeClassifier(model.alpha_).fit(X[t], y[t]).predict(X[v])[0] == y[v][0]
        for t, v in LeaveOneOut().split(X)
    ]
    assert model.best_score_ == pytest.approx(np.mean(right))


def test_labels_of_any_kind_and_several_labels() -> None:
    X, y = CLASSES["iris"]
    named = np.array(["setosa", "versicolor", "virginica"])[y]
    for make in ("RidgeClassifier", "RidgeClassifierCV"):
        ours = getattr(estimators, make)().fit(X, named)
        np.testing.assert_array_equal(ours.predict(X), getattr(linear_model, make)().fit(X, named).predict(X))
        several = np.stack([y == 0, y > 0, y == 1], 1).astype(int)
        ours, theirs = getattr(estimators, make)().fit(X, several), getattr(linear_model, make)().fit(X, several)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-7)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert ours.score(X, several) == theirs.score(X, several)


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("weighted", [True, False])
def test_logistic_regression(name: str, class_weight: Any, weighted: bool) -> None:
    X, y = CLASSES[name]
    X = X / (np.abs(X).max(0) + 1e-12)
    s = np.random.default_rng(0).uniform(0.1, 2.0, len(X)) if weighted else None
    ours = LogisticRegression(tol=1e-13, class_weight=class_weight).fit(X, y, s)
    theirs = linear_model.LogisticRegression(solver="newton-cholesky", tol=1e-12, class_weight=class_weight)
    theirs.fit(X, y, s)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    np.testing.assert_allclose(ours.predict_log_proba(X), theirs.predict_log_proba(X), atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["binary", "iris"])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "balanced_accuracy"])
@pytest.mark.parametrize("legacy", [True, False])
def test_logistic_regression_cv(name: str, scoring: str, legacy: bool) -> None:
    X, y = CLASSES[name]
    X = X / (np.abs(X).max(0) + 1e-12)
    kwargs: dict[str, Any] = {"Cs": 5, "cv": 3, "scoring": scoring, "use_legacy_attributes": legacy, "tol": 1e-10}
    ours = estimators.LogisticRegressionCV(**kwargs).fit(X, y)
    theirs = linear_model.LogisticRegressionCV(**kwargs, solver="newton-cholesky").fit(X, y)
    np.testing.assert_allclose(ours.C_, theirs.C_)
    assert np.shape(ours.n_iter_) == np.shape(theirs.n_iter_)
    if legacy:
        assert ours.scores_.keys() == theirs.scores_.keys()
        for c in theirs.scores_:
            np.testing.assert_allclose(ours.scores_[c], theirs.scores_[c], rtol=1e-4)
            assert ours.coefs_paths_[c].shape == theirs.coefs_paths_[c].shape
    else:
        np.testing.assert_allclose(ours.scores_, theirs.scores_, rtol=1e-4)
        assert ours.coefs_paths_.shape == theirs.coefs_paths_.shape
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), rel=1e-4)


@pytest.mark.parametrize("n", [40, 12], ids=["tall", "wide"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_correlation_of_folds_is_that_of_held_out_predictions(n: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 20)) * (rng.random((n, 20)) < 0.4)
    y = X[:, :3] + rng.standard_normal((n, 3))
    alphas, folds = [0.1, 10.0, 1000.0], list(KFold(4).split(X))
    rows = sparse.csr_matrix(X) if kind == "sparse" else X

    def measured(alpha: float) -> Any:
        each = []
        for train, test in folds:
            fit = linear_model.Ridge(alpha=alpha).fit(X[train], y[train]).predict(X[test])
            each.append([np.corrcoef(fit[:, j], y[test, j])[0, 1] for j in range(3)])
        return np.mean(each, 0)

    want = np.array([measured(a) for a in alphas])
    shared = RidgeCV(alphas, cv=4, scoring="correlation").fit(rows, y)
    assert shared.best_score_ == pytest.approx(want.mean(1).max(), abs=1e-6)
    assert shared.alpha_ == alphas[want.mean(1).argmax()]
    own = RidgeCV(alphas, cv=4, scoring="correlation", alpha_per_target=True).fit(rows, y)
    np.testing.assert_allclose(own.best_score_, want.max(0), atol=1e-6)
    whole = RidgeCV(alphas, scoring="correlation").fit(X, y)
    assert -1 <= whole.best_score_ <= 1


def test_correlation_is_no_score_of_classes() -> None:
    with pytest.raises(ValueError, match="correlation"):
        RidgeClassifierCV(scoring="correlation", cv=3).fit(np.eye(6), [0, 1] * 3)

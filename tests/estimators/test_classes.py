"""Classes that a part of the rows lacks, scorers that are told labels, weights of any size, tolerances of any size."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn import linear_model
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.metrics import brier_score_loss, f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import scale

from torchridge import logistic
from torchridge.estimators import LogisticRegression, LogisticRegressionCV, RidgeClassifier, RidgeClassifierCV
from torchridge.exceptions import MissingClassWarning, UndefinedScoreWarning

SETTINGS: dict[str, Any] = {"Cs": [0.01, 1.0], "l1_ratios": (0,), "use_legacy_attributes": False}
quiet = pytest.mark.filterwarnings("ignore")  # edges of short grids, and what the peer says


def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return scale(X), y


def two() -> tuple[np.ndarray, np.ndarray]:
    X, _ = iris()
    return X, np.where(X[:, 0] + np.random.default_rng(0).standard_normal(150) > 0, "yes", "no")


def both(scoring: Any, y: np.ndarray, cv: Any) -> tuple[np.ndarray, np.ndarray]:
    X, _ = iris()
    theirs = linear_model.LogisticRegressionCV(cv=cv, scoring=scoring, tol=1e-8, max_iter=10000, **SETTINGS)
    ours = LogisticRegressionCV(cv=cv, scoring=scoring, **SETTINGS)
    return ours.fit(X, y).scores_, theirs.fit(X, y).scores_


@quiet
@pytest.mark.parametrize("scoring", ["neg_log_loss", "neg_brier_score", "f1_macro", "f1_micro", "roc_auc_ovr"])
def test_scores_of_three_classes_equal_scikit_learn(scoring: str) -> None:
    _X, y = iris()
    parts = np.arange(0, 150, 3), np.r_[0:25, 50:75]  # the second lacks a class
    cv = [(np.setdiff1d(np.arange(150), part), part) for part in parts]
    ours, theirs = both(scoring, np.array(["a", "b", "c"])[y], cv)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@quiet
@pytest.mark.parametrize("scoring", ["f1", "precision", "roc_auc", "neg_log_loss", "neg_brier_score"])
def test_scores_of_string_labels_equal_scikit_learn(scoring: str) -> None:
    ours, theirs = both(scoring, two()[1], 4)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@quiet
def test_what_the_user_says_of_a_scorer_stays() -> None:
    X, y = two()
    scorer = make_scorer(f1_score, pos_label="no")
    found = LogisticRegressionCV(cv=4, scoring=scorer, Cs=[1.0], use_legacy_attributes=False).fit(X, y)
    expected = f1_score(y, found.predict(X), pos_label="no")
    assert found.score(X, y) == pytest.approx(expected)


@quiet
@pytest.mark.parametrize("cv", [None, 4])
def test_scorers_of_ridge_classifiers_see_labels(cv: Any) -> None:
    X, y = two()
    seen: list[Any] = []

    def scorer(model: Any, rows: Any, labels: Any) -> float:
        seen.append((set(labels.tolist()), set(model.predict(rows).tolist())))
        return float(np.mean(model.predict(rows) == labels))

    RidgeClassifierCV(cv=cv, scoring=scorer).fit(X, y)
    assert all(part <= {"yes", "no"} for pair in seen for part in pair)
    given = RidgeClassifierCV([1.0], cv=cv, scoring=make_scorer(f1_score, pos_label="yes")).fit(X, y).best_score_
    named = RidgeClassifierCV([1.0], cv=cv, scoring="f1").fit(X, y).best_score_
    assert given == pytest.approx(named)
    if cv is None:
        out = [RidgeClassifier().fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[i : i + 1])[0] for i in range(150)]
        assert named == pytest.approx(f1_score(y, out, pos_label="yes"))


def test_a_score_of_nan_never_wins_and_is_named() -> None:
    X, y = two()
    calls: list[float] = []

    def scorer(model: Any, rows: Any, labels: Any) -> float:
        calls.append(1.0)
        return float("nan") if len(calls) % 3 == 1 else float(np.mean(model.predict(rows) == labels))

    with pytest.warns(UndefinedScoreWarning, match=r"folds \[0, 1, 2, 3\]"):
        model = LogisticRegressionCV(cv=4, Cs=[1e3, 1e-1, 1e-4], scoring=scorer, use_legacy_attributes=False).fit(X, y)
    assert model.C_ == 0.1


@quiet
def test_a_fold_that_compares_nothing_is_left_out() -> None:
    X, y = two()
    order = np.argsort(y, kind="stable")
    cv = [(order[20:], order[:20]), (np.arange(0, 150, 2), np.arange(1, 150, 2))]  # the first holds out one class
    with pytest.warns(UndefinedScoreWarning, match=r"folds \[0\]"):
        model = LogisticRegressionCV(cv=cv, scoring="roc_auc", **SETTINGS).fit(X, y)
    assert np.isnan(model.scores_[0]).all()
    assert SETTINGS["Cs"][int(model.scores_[1, 0].argmax())] == model.C_


@pytest.mark.parametrize("intercept", [True, False])
def test_a_training_part_of_one_class_predicts_it(intercept: bool) -> None:
    X, y = np.arange(4.0)[:, None], np.array(["a", "a", "b", "b"])
    with pytest.warns(MissingClassWarning, match=r"folds \[0, 1\]"):
        model = LogisticRegressionCV(
            cv=KFold(2), scoring="neg_brier_score", fit_intercept=intercept, Cs=[1.0], use_legacy_attributes=False
        ).fit(X, y)
    coef = model.coefs_paths_[:, 0, 0, 0]
    assert np.isfinite(coef).all()
    for k, rows in enumerate((slice(0, 2), slice(2, 4))):
        logits = X[rows, 0] * coef[k, 0] + (coef[k, 1] if intercept else 0)
        expected = -brier_score_loss(y[rows], 1 / (1 + np.exp(-logits)), pos_label="b", labels=["a", "b"])
        assert model.scores_[k, 0, 0] == pytest.approx(expected, rel=1e-6)
        assert (logits < 0).all() == (k == 1) or not intercept


@quiet
def test_class_weights_may_name_classes_that_a_part_lacks() -> None:
    X, y = iris()
    weights = {0: 1.0, 1: 2.0, 2: 0.5}
    for ours, theirs in (
        (LogisticRegression, linear_model.LogisticRegression),
        (RidgeClassifier, linear_model.RidgeClassifier),
    ):
        name = {"tol": 1e-10} if theirs is linear_model.LogisticRegression else {}
        mine, peer = ours(class_weight=weights), theirs(class_weight=weights, **name)
        np.testing.assert_allclose(mine.fit(X[:100], y[:100]).coef_, peer.fit(X[:100], y[:100]).coef_, atol=1e-6)
        search = GridSearchCV(mine, {"class_weight": [weights]}, cv=KFold(3), error_score="raise")
        assert search.fit(X, y).best_score_ == 0
        with pytest.raises(ValueError, match=r"names the classes \[5\]"):
            ours(class_weight={0: 1.0, 5: 2.0}).fit(X, y)


def minimum(X: np.ndarray, y: np.ndarray, C: float, s: np.ndarray) -> np.ndarray:
    """Newton's method with gradients in extended precision: weights and intercept of two classes, (d + 1,)."""
    F = np.c_[X, np.ones(len(X))].astype(np.longdouble)
    penalty = np.r_[np.full(X.shape[1], 1 / C), 0].astype(np.longdouble)
    theta = np.zeros(F.shape[1], np.longdouble)

    def value(theta: np.ndarray) -> np.longdouble:
        return (s * np.logaddexp(0, -(2 * y - 1) * (F @ theta))).sum() + (penalty * theta**2).sum() / 2

    for _ in range(300):
        p = 1 / (1 + np.exp(-(F @ theta)))
        grad = F.T @ (s * (p - y)) + penalty * theta
        hessian = (F.T * (s * p * (1 - p))) @ F + np.diag(penalty)
        unit = np.diag(hessian) ** -0.5
        inner = np.linalg.solve((unit[:, None] * hessian * unit).astype(float), (unit * grad).astype(float))
        step, length = unit * inner, 1.0
        while value(theta - length * step) > value(theta) and length > 1e-8:
            length /= 2
        theta = theta - length * step
    return theta.astype(float)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_row_weights_over_twenty_decades(seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 4))
    y = (X[:, 0] + rng.standard_normal(60) > 0).astype(int)
    s = 10.0 ** rng.uniform(-10, 10, 60)
    expected = minimum(X, y, 1.0, s)
    model = LogisticRegression(tol=1e-8).fit(X, y, s)
    np.testing.assert_allclose(np.r_[model.coef_[0], model.intercept_], expected, rtol=1e-5, atol=1e-5)
    path = logistic(*(torch.from_numpy(a) for a in (X, y)), [0.1, 1.0, 10.0], sample_weight=torch.from_numpy(s))
    assert bool(path.converged.all())
    np.testing.assert_allclose(path.weight[1, 0].numpy(), expected[:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_a_tighter_tolerance_is_never_less_exact(load: Any, C: float) -> None:
    X, y = load(return_X_y=True)
    X = scale(X)
    exact = linear_model.LogisticRegression(C=C, solver="newton-cholesky", tol=1e-13, max_iter=1000).fit(X, y)
    size, last = np.abs(exact.coef_).max(), np.inf
    for tol in (1e-1, 1e-4, 9.9e-5, 1e-6, 1e-8, 1e-10, 0.0):
        error = float(np.abs(LogisticRegression(C=C, tol=tol).fit(X, y).coef_ - exact.coef_).max() / size)
        assert error <= max(last, 1e-10), tol
        last = error
    assert last < 1e-7


def test_a_tighter_tolerance_of_paths_is_never_less_exact() -> None:
    X, y = load_wine(return_X_y=True)
    X, Cs = scale(X), [0.1, 10.0]
    settings = {"Cs": Cs, "cv": 2, "scoring": "neg_log_loss", "use_legacy_attributes": False}
    fits = [
        linear_model.LogisticRegression(C=C, solver="newton-cholesky", tol=1e-13).fit(X[::2], y[::2]).coef_ for C in Cs
    ]
    parts = [(np.arange(0, 178, 2), np.arange(1, 178, 2))]
    last = np.full(2, np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the edge of the grid
        for tol in (1e-4, 1e-6, 1e-8, 1e-12):
            model = LogisticRegressionCV(tol=tol, **{**settings, "cv": parts}).fit(X, y)
            error = np.array([np.abs(model.coefs_paths_[0, 0, i, :, :-1] - fits[i]).max() for i in range(2)])
            assert (error <= np.maximum(last, 1e-10)).all(), tol
            last = error
    assert (last < 1e-7).all()


@quiet
@pytest.mark.parametrize(
    "scoring", ["neg_log_loss", "neg_brier_score", "roc_auc_ovr", "roc_auc_ovo", "top_k_accuracy", "f1_macro"]
)
@pytest.mark.parametrize("labels", [np.arange(3), np.array(["a", "b", "c"])])
def test_parts_that_lack_a_class_are_scored_by_every_measure(scoring: str, labels: np.ndarray) -> None:
    X, y = iris()
    named = labels[y]
    held_out = [(np.arange(0, 150, 2), np.arange(1, 100, 2)), (np.arange(1, 150, 2), np.arange(0, 150, 2))]
    options = {"Cs": [1.0], "scoring": scoring, "use_legacy_attributes": False}
    found = LogisticRegressionCV(cv=held_out, **options).fit(X, named).scores_
    expected = linear_model.LogisticRegressionCV(cv=held_out, tol=1e-8, **options).fit(X, named).scores_
    np.testing.assert_allclose(found, expected, atol=1e-5)
    missing = LogisticRegressionCV(cv=KFold(3), **options).fit(X, named)  # each training part lacks a class
    assert (missing.scores_ < 0.01).all() or np.isnan(missing.scores_).all()


@quiet
@pytest.mark.parametrize("solver", ["sparse_cg", "lsqr", "sag"])
def test_a_tighter_tolerance_of_products_is_never_less_exact(solver: str) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = scale(X)
    exact = linear_model.RidgeClassifier(0.1, solver="svd").fit(X, y).coef_
    last = np.inf
    for tol in (1e-1, 1e-3, 1e-4, 9.9e-5, 1e-8, 1e-12):
        error = float(np.abs(RidgeClassifier(0.1, solver=solver, tol=tol).fit(X, y).coef_ - exact).max())
        assert error <= max(last, 1e-10), tol
        last = error
    assert last < 1e-9

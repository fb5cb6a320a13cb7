"""scikit-learn's own checks of an estimator, in full, and its documented examples."""

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
import joblib
from sklearn import config_context, linear_model
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from torchridge import estimators
from torchridge.estimators import (
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
)

pytestmark = pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")  # short grids will do

ALL: list[Any] = [
    Ridge,
    RidgeCV,
    RidgeClassifier,
    RidgeClassifierCV,
    LogisticRegression,
    LogisticRegressionCV,
]

# What the checks hold of ten strengths and five folds they hold of fewer, as scikit-learn itself checks its own.
SMALL: dict[Any, dict[str, Any]] = {LogisticRegressionCV: {"Cs": 3, "cv": 3}}


@pytest.mark.filterwarnings("ignore")  # the checks provoke warnings, and assert those that they mean
@parametrize_with_checks([make(**SMALL.get(make, {})) for make in ALL])
def test_check_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def test_documented_example_of_ridge() -> None:
    rng = np.random.RandomState(0)
    y, X = rng.randn(10), rng.randn(10, 5)
    model = Ridge(alpha=1.0)
    assert repr(model.fit(X, y)) == repr(linear_model.Ridge().fit(X, y)) == "Ridge()"
    np.testing.assert_allclose(model.coef_, linear_model.Ridge().fit(X, y).coef_, rtol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")  # LinAlgWarning of scikit-learn, on unscaled features
@pytest.mark.parametrize(
    ("name", "options", "load", "expected"),
    [
        ("RidgeCV", {"alphas": [1e-3, 1e-2, 1e-1, 1]}, load_diabetes, 0.5166),
        ("RidgeClassifier", {}, load_breast_cancer, 0.9595),
        ("RidgeClassifierCV", {"alphas": [1e-3, 1e-2, 1e-1, 1]}, load_breast_cancer, 0.9630),
        ("LogisticRegression", {"random_state": 0}, load_iris, 0.97),
    ],
)
def test_documented_scores(name: str, options: dict[str, Any], load: Any, expected: float) -> None:
    X, y = load(return_X_y=True)
    assert getattr(estimators, name)(**options).fit(X, y).score(X, y) == pytest.approx(
        expected, abs=4e-3 if name[0] == "L" else 1e-4
    )


def test_documented_example_of_logistic_cv() -> None:
    X, y = load_iris(return_X_y=True)
    model = LogisticRegressionCV(
        cv=5, random_state=0, use_legacy_attributes=False, l1_ratios=(0,), scoring="neg_log_loss"
    ).fit(X, y)
    assert model.predict(X[:2]).tolist() == [0, 0]
    assert model.predict_proba(X[:2]).shape == (2, 3)
    assert model.score(X, y) == pytest.approx(-0.041, abs=5e-4)


@pytest.mark.parametrize("make", ALL)
def test_kind_of_estimator(make: Any) -> None:
    assert is_classifier(make()) == ("Ridge" not in make.__name__ or "Classifier" in make.__name__)
    assert is_regressor(make()) != is_classifier(make())


@pytest.mark.parametrize("make", ALL)
def test_signature_holds_that_of_scikit_learn(make: Any) -> None:
    ours, theirs = make().get_params(), getattr(linear_model, make.__name__)().get_params()
    assert {k: v for k, v in ours.items() if k != "device"} == theirs


def small() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 4))
    return X, (X @ [1.0, -1.0, 0.5, 0.0] + rng.standard_normal(60) > 0).astype(int)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", ALL)
def test_clone_pickle_and_copy(make: Any) -> None:
    X, y = small()
    fitted = make().fit(X, y)
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(twin.predict(X), fitted.predict(X))
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "coef_")


@pytest.mark.parametrize("make", [Ridge, RidgeClassifier, LogisticRegression])
def test_pipeline_grid_search_and_parallel_scores(make: Any) -> None:
    X, y = small()
    name = "C" if make is LogisticRegression else "alpha"
    pipe = make_pipeline(StandardScaler(), make())
    step = make.__name__.lower()
    with joblib.parallel_config("threading", n_jobs=2):
        search = GridSearchCV(pipe, {f"{step}__{name}": [0.1, 10.0]}, cv=3).fit(X, y)
    theirs = make_pipeline(StandardScaler(), getattr(linear_model, make.__name__)(tol=1e-10))
    expected = GridSearchCV(theirs, {f"{step}__{name}": [0.1, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == expected.best_params_
    np.testing.assert_allclose(
        search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-6
    )
    scores = cross_val_score(make(), X, y, cv=3)
    np.testing.assert_allclose(scores, cross_val_score(theirs[-1], X, y, cv=3), rtol=1e-6)


def test_metadata_routing() -> None:
    X, y = small()
    weight = np.linspace(0.1, 2.0, 60)
    with config_context(enable_metadata_routing=True):
        model = Ridge().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"alpha": [0.1, 10.0]}, cv=3).fit(X, y, sample_weight=weight)
        theirs = linear_model.Ridge().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        expected = GridSearchCV(theirs, {"alpha": [0.1, 10.0]}, cv=3).fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-8
        )
        for cv in (None, 3):
            ours = RidgeCV(alphas=[0.1, 1.0, 30.0], cv=cv).set_fit_request(sample_weight=True)
            peer = linear_model.RidgeCV(alphas=[0.1, 1.0, 30.0], cv=cv).set_fit_request(sample_weight=True)
            ours.fit(X, y, sample_weight=weight)
            peer.fit(X, y, sample_weight=weight)
            assert ours.alpha_ == peer.alpha_
            assert ours.best_score_ == pytest.approx(peer.best_score_, rel=1e-8)


def test_set_params_refuses_unknown_names_and_sets_nothing() -> None:
    model = Ridge()
    with pytest.raises(ValueError, match="Invalid parameter 'alpah' for estimator Ridge"):
        model.set_params(alpha=2.0, alpah=3.0)
    assert model.alpha == 1.0


def test_errors_are_those_that_users_of_scikit_learn_catch() -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError, match="not fitted yet"):
        Ridge().predict(np.ones((2, 2)))


WITHOUT = """
import sys
sys.modules["sklearn"] = None
import numpy as np, torch
from torchridge.estimators import *
X = np.random.default_rng(0).standard_normal((60, 4)); y = X @ [1., -1., .5, 0.]; c = np.where(y > 0, "yes", "no")
for model in (Ridge(), RidgeCV(), RidgeCV(cv=3), RidgeCV(scoring="neg_mean_absolute_error"), Ridge(positive=True)):
    assert model.fit(X, y).score(X, y) > 0.2, model
for model in (RidgeClassifier(), RidgeClassifierCV(), RidgeClassifierCV(cv=3), LogisticRegression(),
              LogisticRegressionCV(cv=3, scoring="accuracy")):
    assert model.fit(X, c).score(X, c) > 0.9, model
try:
    RidgeCV(scoring="max_error").fit(X, y)
except ValueError as error:
    assert "pip install scikit-learn" in str(error)
try:
    Ridge().predict(X)
except ValueError as error:
    assert "not fitted" in str(error)
assert not any(name.startswith("sklearn") for name in sys.modules if sys.modules[name] is not None)
"""


def test_scikit_learn_is_optional() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_attributes_end_in_an_underscore_and_parameters_stay() -> None:
    X, y = small()
    for make in ALL:
        model = make()
        before = dict(vars(model))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(X, y)
        assert {k: vars(model)[k] for k in before} == before
        assert all(k in before or k.endswith("_") or k.startswith("_") for k in vars(model))

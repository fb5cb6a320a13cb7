"""Options, attributes and metadata of the estimators: what has no effect is said, and kinds follow the input."""

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn import config_context, linear_model
from sklearn.metrics import get_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchridge.estimators import (
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
)
from torchridge.exceptions import GridEdgeWarning, IgnoredOptionWarning

ALL: list[Any] = [Ridge, RidgeCV, RidgeClassifier, RidgeClassifierCV, LogisticRegression, LogisticRegressionCV]


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3))
    return X, (X[:, 0] + rng.standard_normal(60) > 0).astype(int)


@pytest.mark.parametrize(
    ("options", "category", "message"),
    [
        ({"warm_start": True}, IgnoredOptionWarning, "`warm_start`=True has no effect"),
        ({"verbose": 1}, IgnoredOptionWarning, "`verbose`=1 has no effect"),
        ({"intercept_scaling": 2.0}, IgnoredOptionWarning, "`intercept_scaling`=2.0 has no effect"),
        ({"solver": "liblinear"}, IgnoredOptionWarning, "penalizes the intercept in scikit-learn"),
        ({"n_jobs": 2}, FutureWarning, "'n_jobs' has no effect"),
        ({"penalty": "l2"}, FutureWarning, "'penalty' was deprecated"),
    ],
)
def test_options_without_effect_are_said(options: dict[str, Any], category: Any, message: str) -> None:
    X, y = rows()
    with pytest.warns(category, match=message):
        LogisticRegression(**options).fit(X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dual": True}, "supports only dual=False"),
        ({"penalty": "l1"}, "L1 penalty is not offered"),
        ({"penalty": "elasticnet"}, "L1 penalty is not offered"),
        ({"l1_ratio": 0.5}, "L1 penalty is not offered"),
    ],
)
def test_options_that_change_the_problem_are_refused(options: dict[str, Any], message: str) -> None:
    X, y = rows()
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**options).fit(X, y)


def test_unconverged_fits_warn_in_both_classes() -> None:
    from sklearn.exceptions import ConvergenceWarning

    from torchridge.exceptions import ConvergenceWarning as Ours

    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 40))
    y = rng.integers(0, 10, 300)
    for model in (
        LogisticRegression(C=1e6, max_iter=1, tol=1e-8),
        LogisticRegressionCV(Cs=[1e6], cv=2, max_iter=1, tol=1e-8),
    ):
        with pytest.warns(ConvergenceWarning) as said:
            model.fit(X, y)
        assert issubclass(said[0].category, Ours)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("ratios", [None, (0,), (0.0, 0.0)])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_attributes_have_the_shapes_of_scikit_learn(k: int, ratios: Any, legacy: bool) -> None:
    X, y = rows()
    y = y + (X[:, 1] > 1) if k == 3 else y
    options = {"Cs": [0.1, 1.0], "cv": 3, "use_legacy_attributes": legacy, "scoring": "accuracy", "l1_ratios": ratios}
    ours, theirs = LogisticRegressionCV(**options).fit(X, y), linear_model.LogisticRegressionCV(**options).fit(X, y)
    for name in ("coefs_paths_", "scores_", "n_iter_", "Cs_", "C_", "l1_ratio_", "coef_", "intercept_", "l1_ratios_"):
        mine, peer = getattr(ours, name), getattr(theirs, name)
        assert isinstance(mine, dict) == isinstance(peer, dict)
        pairs = [(mine[c], peer[c]) for c in peer] if isinstance(peer, dict) else [(mine, peer)]
        assert [np.shape(a) for a, _ in pairs] == [np.shape(b) for _, b in pairs], name


@pytest.mark.filterwarnings("ignore")
def test_attributes_of_tensors_are_tensors() -> None:
    X, y = (torch.from_numpy(a) for a in rows())
    for legacy in (True, False):
        model = LogisticRegressionCV(Cs=2, cv=2, use_legacy_attributes=legacy).fit(X, y)
        for name in ("Cs_", "n_iter_", "scores_", "coefs_paths_", "l1_ratios_"):
            value = getattr(model, name)
            for each in value.values() if isinstance(value, dict) else [value]:
                assert isinstance(each, torch.Tensor), name
    for make in (LogisticRegression, Ridge):
        assert make().fit(X, y).n_iter_.dtype is torch.int32
        assert make().fit(X.numpy(), y.numpy()).n_iter_.dtype == np.int32


@pytest.mark.parametrize("make", ALL)
def test_a_typing_error_in_a_request_is_refused(make: Any) -> None:
    with config_context(enable_metadata_routing=True):
        with pytest.raises(TypeError, match="sample_weights"):
            make().set_fit_request(sample_weights=True)
        make().set_fit_request(sample_weight=True)
    with pytest.raises(RuntimeError, match="only available when metadata routing is enabled"):
        make().set_fit_request(sample_weight=True)


@pytest.mark.filterwarnings("ignore")
def test_routing_to_the_scorer_of_a_cross_validated_model() -> None:
    X, y = rows()
    weight = np.linspace(0.1, 3.0, 60)
    options: dict[str, Any] = {"Cs": [0.1, 1.0], "cv": 3, "use_legacy_attributes": False}
    with config_context(enable_metadata_routing=True):
        for asked in (True, False):
            scorer = get_scorer("accuracy").set_score_request(sample_weight=asked)
            ours = LogisticRegressionCV(scoring=scorer, **options).set_fit_request(sample_weight=True)
            theirs = linear_model.LogisticRegressionCV(scoring=scorer, tol=1e-8, **options)
            theirs.set_fit_request(sample_weight=True)
            ours.fit(X, y, sample_weight=weight)
            theirs.fit(X, y, sample_weight=weight)
            np.testing.assert_allclose(ours.scores_, theirs.scores_)
            if asked:
                assert ours.score(X, y, sample_weight=weight) == pytest.approx(theirs.score(X, y, sample_weight=weight))
                search = GridSearchCV(ours, {"Cs": [[0.1], [1.0]]}, cv=3, scoring=scorer, error_score="raise")
                peer = GridSearchCV(theirs, {"Cs": [[0.1], [1.0]]}, cv=3, scoring=scorer, error_score="raise")
                np.testing.assert_allclose(
                    search.fit(X, y, sample_weight=weight).cv_results_["mean_test_score"],
                    peer.fit(X, y, sample_weight=weight).cv_results_["mean_test_score"],
                )
                continue
            with pytest.raises(TypeError, match="score got unexpected argument"):
                ours.score(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
        LogisticRegressionCV(**options).fit(X, y, extra=1)


@pytest.mark.parametrize("make", ALL)
def test_notebooks_show_a_diagram(make: Any) -> None:
    assert make.__name__ in make()._repr_html_()
    assert "StandardScaler" in make_pipeline(StandardScaler(), make())._repr_html_()


def test_notebooks_without_scikit_learn_show_text() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; from torchridge.estimators import Ridge;"
        "assert Ridge(alpha=2.0)._repr_html_() == '<pre>Ridge(alpha=2.0)</pre>'"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_values_of_pandas_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [1.0, 2.0, 3.0, 4.0], "size": pandas.array([1, 2, None, 4], dtype="Int64")})
    with pytest.raises(ValueError, match=r"`X` holds a missing value \(NA\), first in row 2, column 'size'"):
        Ridge().fit(frame, [1.0, 2.0, 3.0, 4.0])
    objects = pandas.DataFrame({"size": [1, pandas.NA, 3, 4]}, dtype=object)
    with pytest.raises(ValueError, match=r"first in row 1, column 'size'"):
        LogisticRegression().fit(objects, [0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"`y` holds a missing value \(NA\), first in row 1"):
        Ridge().fit(frame[["age"]], objects["size"])
    with pytest.raises(ValueError, match=r"`y` contains NaN or None, first in row 1"):
        RidgeClassifier().fit(frame[["age"]], objects["size"])
    with pytest.raises(ValueError, match=r"`sample_weight` holds a missing value \(NA\), first in row 1"):
        Ridge().fit(frame[["age"]], [1.0, 2.0, 3.0, 4.0], objects["size"])


@pytest.mark.parametrize("cv", [None, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_best_strength_at_the_edge_warns(cv: Any, sparse: bool) -> None:
    from scipy.sparse import csr_matrix

    X, y = rows()
    given = csr_matrix(X) if sparse else X
    with pytest.warns(GridEdgeWarning, match="lies at the edge"):
        RidgeCV([1e4, 1e5], cv=cv).fit(given, y)
    with pytest.warns(GridEdgeWarning, match="lies at the edge"):
        RidgeClassifierCV([1e4, 1e5], cv=cv).fit(given, y)
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((40, 30))
    target = wide[:, 0] + 2 * rng.standard_normal(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RidgeCV([1e-3, 30.0, 1e9], cv=cv).fit(csr_matrix(wide) if sparse else wide, target)
        RidgeCV([1e4], cv=cv).fit(given, y)


def test_the_best_c_at_the_edge_warns() -> None:
    X, y = rows()
    with pytest.warns(GridEdgeWarning, match="Widen `Cs`"):
        LogisticRegressionCV(Cs=[1e-6, 1e-5], scoring="neg_log_loss").fit(X, y)


@pytest.mark.parametrize("make", ALL)
def test_a_column_of_labels(make: Any) -> None:
    X, y = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        column, flat = make().fit(X, y[:, None]), make().fit(X, y)
    np.testing.assert_array_equal(np.ravel(column.predict(X)), flat.predict(X))
    assert column.score(X, y[:, None]) == pytest.approx(flat.score(X, y))

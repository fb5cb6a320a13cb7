"""What the estimators take, what they refuse, and where they are better than what they replace."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import torchridge
from torchridge.estimators import (
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
)

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 3))
Y = X @ [1.0, 2.0, 3.0] + RNG.standard_normal(30)
C = (Y > 0).astype(int)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library: str) -> None:
    frames = pytest.importorskip(library)
    table = frames.DataFrame(dict(zip("abc", X.T, strict=True)))
    target = frames.Series(Y) if library == "pandas" else frames.Series("y", Y)
    model = Ridge().fit(table, target, sample_weight=target.abs())
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert isinstance(model.predict(table), np.ndarray)
    np.testing.assert_allclose(model.coef_, Ridge().fit(X, Y, np.abs(Y)).coef_, rtol=1e-12)
    with pytest.raises(ValueError, match="Feature names must be in the same order"):
        model.predict(table[["b", "a", "c"]])
    with pytest.warns(UserWarning, match="X does not have valid feature names, but Ridge was fitted with"):
        model.predict(X)
    with pytest.warns(UserWarning, match="X has feature names, but Ridge was fitted without"):
        Ridge().fit(X, Y).predict(table)
    assert not hasattr(model.fit(X, Y), "feature_names_in_")


def test_lists_read_only_and_reversed_arrays() -> None:
    expected = Ridge().fit(X, Y).coef_
    frozen = X.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table in (X.tolist(), frozen, X[::-1][::-1], np.asfortranarray(X), X.astype(">f8")):
            np.testing.assert_allclose(Ridge().fit(table, Y.tolist()).coef_, expected, rtol=1e-12)


NAN = np.where(np.arange(90).reshape(30, 3) == 7, np.nan, X)

BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (Ridge(), {"X": X[0], "y": Y}, ValueError, "Expected 2D array, got 1D"),
    (Ridge(), {"X": X[:0], "y": Y[:0]}, ValueError, r"0 sample\(s\)"),
    (Ridge(), {"X": X[:, :0], "y": Y}, ValueError, r"0 feature\(s\)"),
    (Ridge(), {"X": NAN, "y": Y}, ValueError, "`X` holds NaN, first in row 2"),
    (Ridge(positive=True), {"X": NAN, "y": Y}, ValueError, "`X` holds NaN, first in row 2"),
    (Ridge(), {"X": X, "y": Y * np.inf}, ValueError, "`y` holds infinity, first in row 0"),
    (Ridge(), {"X": X, "y": Y[:-1]}, ValueError, "inconsistent numbers of samples: `X` has 30, `y` 29"),
    (Ridge(), {"X": X, "y": None}, ValueError, "requires y to be passed"),
    (Ridge(), {"X": X * 1j, "y": Y}, ValueError, "Complex data not supported: `X`"),
    (Ridge(), {"X": X.astype(str), "y": Y}, ValueError, "`X` should be numbers"),
    (Ridge(), {"X": X, "y": Y, "sample_weight": -np.abs(Y)}, ValueError, "`sample_weight` should not be negative"),
    (Ridge(), {"X": X, "y": Y, "sample_weight": Y[:, None]}, ValueError, "Sample weights must be 1D array or scalar"),
    (Ridge(), {"X": X, "y": Y, "sample_weight": np.ones(3)}, ValueError, "`sample_weight` has 3 rows, expected 30"),
    (Ridge(), {"X": X, "y": Y, "sample_weight": 0.0}, ValueError, "zero in every row"),
    (Ridge(alpha=-1.0), {"X": X, "y": Y}, ValueError, "`alpha` should not be negative"),
    (Ridge(alpha=np.nan), {"X": X, "y": Y}, ValueError, "`alpha` holds NaN"),
    (Ridge(alpha="1"), {"X": X, "y": Y}, TypeError, "`alpha` should be a number"),
    (Ridge(alpha=[1.0, 2.0]), {"X": X, "y": Y}, ValueError, "do not correspond: 2 != 1"),
    (Ridge(solver="qr"), {"X": X, "y": Y}, ValueError, "`solver` should be one of"),
    (Ridge(solver="lbfgs"), {"X": X, "y": Y}, ValueError, "only when `positive`=True"),
    (Ridge(solver="svd", positive=True), {"X": X, "y": Y}, ValueError, "does not support positive"),
    (Ridge(fit_intercept=3), {"X": X, "y": Y}, ValueError, "`fit_intercept` should be one of"),
    (Ridge(max_iter=0), {"X": X, "y": Y}, ValueError, "`max_iter`"),
    (RidgeCV(alphas=[0.0, 1.0]), {"X": X, "y": Y}, ValueError, r"alphas\[0\] == 0.0, must be > 0.0"),
    (RidgeCV(alphas=[]), {"X": X, "y": Y}, ValueError, "`alphas` is empty"),
    (RidgeCV(alphas=[1, "2"]), {"X": X, "y": Y}, TypeError, r"alphas\[1\] must be an instance of float"),
    (RidgeCV(alphas="grid"), {"X": X, "y": Y}, ValueError, "`alphas` should be one of 'auto'"),
    (RidgeCV(cv="gvc"), {"X": X, "y": Y}, ValueError, "`cv` should be one of 'gcv'"),
    (RidgeCV(cv=31), {"X": X, "y": Y}, ValueError, "`cv`=31"),
    (RidgeCV(gcv_mode="qr"), {"X": X, "y": Y}, ValueError, "`gcv_mode` should be one of"),
    (RidgeCV(cv=3, store_cv_results=True), {"X": X, "y": Y}, ValueError, "store_cv_results=True are incompatible"),
    (RidgeCV(), {"X": X, "y": Y, "groups": Y}, ValueError, r"\[groups\] passed to `fit` is only supported"),
    (RidgeClassifier(), {"X": X, "y": Y}, ValueError, "Unknown label type: continuous"),
    (RidgeClassifier(class_weight="even"), {"X": X, "y": C}, ValueError, "`class_weight` should be one of"),
    (RidgeClassifier(class_weight={7: 1.0}), {"X": X, "y": C}, ValueError, r"names the classes \[7\]"),
    (RidgeClassifierCV(cv=20), {"X": X, "y": C}, ValueError, "members in each class"),
    (LogisticRegression(), {"X": X, "y": C * 0}, ValueError, "only one class"),
    (LogisticRegression(C=0.0), {"X": X, "y": C}, ValueError, "`C` should be above 0"),
    (LogisticRegression(penalty="l1"), {"X": X, "y": C}, ValueError, "an L1 penalty is not offered"),
    (LogisticRegression(penalty="l3"), {"X": X, "y": C}, ValueError, "`penalty` should be one of"),
    (LogisticRegression(l1_ratio=0.5), {"X": X, "y": C}, ValueError, "L1 penalty is not offered"),
    (LogisticRegressionCV(Cs=[-1.0]), {"X": X, "y": C}, ValueError, "`C` should be above 0"),
]


@pytest.mark.parametrize(("model", "arguments", "error", "message"), BAD)
def test_bad_input_is_refused_and_changes_nothing(
    model: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = dict(vars(model))
    with pytest.raises(error, match=message):
        model.fit(**arguments)
    assert vars(model) == before


def test_float32_answers_are_those_of_float64() -> None:
    u, _, v = np.linalg.svd(RNG.standard_normal((200, 20)), full_matrices=False)
    table = (u * np.logspace(0, -4, 20)) @ v
    target = table @ RNG.standard_normal(20)
    narrow = table.astype(np.float32)
    exact = np.linalg.solve(
        narrow.T.astype(float) @ narrow.astype(float) + 1e-9 * np.eye(20),
        narrow.T.astype(float) @ target.astype(np.float32).astype(float),
    )
    model = Ridge(1e-9, fit_intercept=False).fit(narrow, target.astype(np.float32))
    assert model.coef_.dtype == np.float32
    np.testing.assert_allclose(model.coef_, exact, atol=1e-5 * np.abs(exact).max())


def test_dependent_features_without_penalty_give_the_minimum_norm() -> None:
    table = np.concatenate([X, X[:, :1] + X[:, 1:2]], 1)
    with pytest.warns(torchridge.exceptions.RankDeficientWarning, match="rank 3 of 4"):
        model = Ridge(alpha=0.0).fit(table, Y)
    centered = table - table.mean(0)
    expected = np.linalg.pinv(centered, rcond=1e-10) @ (Y - Y.mean())
    np.testing.assert_allclose(model.coef_, expected, rtol=1e-9)


def test_a_grid_of_its_own_and_criteria_from_moments() -> None:
    for model in (RidgeCV("auto"), RidgeCV("auto", cv=5), RidgeCV("auto", cv="evidence")):
        model.fit(torch.from_numpy(X), torch.from_numpy(Y))
        assert 0 < model.alpha_ < 100
    assert RidgeCV(np.logspace(-3, 3, 7), cv="gcv").fit(X, Y).best_score_ < 0

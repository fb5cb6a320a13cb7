"""Logistic regression at C = ∞ against scikit-learn's Newton method, and where no optimum exists."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchridge import logistic, logistic_cv
from torchridge.estimators import LogisticRegression, LogisticRegressionCV
from torchridge.exceptions import ConvergenceWarning, SeparationWarning
from torchridge.linear.logistic import unpenalized
from torchridge.probing import LinearProbe

linear_model = pytest.importorskip("sklearn.linear_model")


def overlapping(k: int, scales: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k)
    Z = rng.standard_normal((200, 4))
    y = np.argmax(np.c_[Z[:, : k - 1], np.zeros(200)] + rng.gumbel(size=(200, k)), 1)
    return (Z * [1, 1e3, 1e-3, 1] + [0, 1e4, 0, 0] if scales else Z), y


def theirs(X: np.ndarray, y: np.ndarray, weight: Any = None, intercept: bool = True) -> tuple[np.ndarray, np.ndarray]:
    centre = X.mean(0) if intercept else np.zeros(X.shape[1])
    scale = X.std(0)
    peer = linear_model.LogisticRegression(
        C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=500, fit_intercept=intercept
    ).fit((X - centre) / scale, y, weight)
    return peer.coef_ / scale, peer.intercept_ - (peer.coef_ / scale) @ centre


@pytest.fixture(params=["newton", "limit"])
def route(request: Any, monkeypatch: Any) -> Iterator[str]:
    """Newton's method, and what stands in for it where a problem is too large."""
    if request.param == "limit":
        monkeypatch.setattr(unpenalized.unpenalized, "affordable", lambda *_: False)
    yield request.param


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("k", [2, 3])
def test_equals_scikit_learn(k: int, intercept: bool, sparse: bool, route: str) -> None:
    X, y = overlapping(k, scales=not sparse)
    coef, bias = theirs(X, y, intercept=intercept)
    rows = torch.from_numpy(X).to_sparse_csr() if sparse else torch.from_numpy(X)
    found = logistic(rows, torch.from_numpy(y), math.inf, fit_intercept=intercept)
    tolerance = 1e-9 if route == "newton" else 1e-5
    np.testing.assert_allclose(found.weight.numpy() * X.std(0), coef * X.std(0), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(found.bias.numpy(), bias, atol=tolerance * 100, rtol=tolerance)
    assert bool(found.converged)
    assert not bool(found.separated)
    loss = torch.nn.functional.cross_entropy(found.predict_proba(rows.to_dense()).log(), torch.from_numpy(y))
    assert float(found.objective) == pytest.approx(200 * float(loss), rel=1e-9)


@pytest.mark.parametrize("given", [{"C": math.inf}, {"strength": 0.0}])
def test_no_strength_is_infinite_c_in_a_path_too(given: dict[str, float]) -> None:
    X, y = (torch.from_numpy(a) for a in overlapping(3, scales=False))
    single = logistic(X, y, **given)
    name, value = next(iter(given.items()))
    path = logistic(X, y, **{name: [value, 2.0, value]})
    for at in (0, 2):
        torch.testing.assert_close(path.weight[at], single.weight, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.weight[1], logistic(X, y, **{name: 2.0}).weight, rtol=1e-4, atol=1e-5)


def test_row_weights_heads_and_tolerance() -> None:
    X, y = overlapping(2, scales=False)
    weight = np.where(np.arange(200) % 3 == 0, 0.0, np.arange(200) / 50)
    heads = torch.from_numpy(np.c_[y, 1 - y])
    found = logistic(torch.from_numpy(X), heads, math.inf, sample_weight=torch.from_numpy(weight), tol=1e-2)
    coef, _ = theirs(X[weight > 0], y[weight > 0], weight[weight > 0])
    np.testing.assert_allclose(found.weight[0].numpy(), coef, rtol=1e-9)
    np.testing.assert_allclose(found.weight[1].numpy(), -coef, rtol=1e-9)


def separable() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    X, y = overlapping(2, scales=False)
    flag = (np.arange(200) < 5).astype(float)[:, None]
    quasi = np.where(flag[:, 0] == 1, 1, y)
    three = np.where(X[:, 3] > 0.5, 2, y)
    ordered = np.arange(6.0)[:, None]
    wide = np.random.default_rng(0).standard_normal((10, 20))
    return {
        "wholly": (ordered, np.array([0, 0, 0, 1, 1, 1])),
        "touching": (np.array([0.0, 1, 1, 2])[:, None], np.array([0, 0, 1, 1])),
        "by a flag": (np.c_[X, flag], quasi),
        "by a flag in other units": (np.c_[X * [1, 1e4, 1e-4, 1], 1e-3 * flag], quasi),
        "one of three classes": (X, three),
        "more features than rows": (wide, np.arange(10) % 2),
    }


@pytest.mark.parametrize("name", separable())
def test_separable_classes_have_no_optimum(name: str, route: str) -> None:
    X, y = separable()[name]
    with pytest.warns(SeparationWarning, match="no optimum exists"):
        found = logistic(torch.from_numpy(X), torch.from_numpy(y), math.inf)
    assert math.isinf(float(found.gap))
    assert not bool(found.converged)
    right = float((found.predict(torch.from_numpy(X)).numpy() == y).mean())
    assert right >= linear_model.LogisticRegression(C=1e4, max_iter=10000).fit(X, y).score(X, y) - 0.02
    assert bool(torch.isfinite(found.weight).all())


def test_a_tiny_overlap_is_an_optimum() -> None:
    X = torch.tensor([-2, -1, 1e-9, -1e-9, 1, 2.0], dtype=torch.float64)[:, None]
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    found = logistic(X, y, math.inf)
    assert bool(found.converged)
    logits = found.decision_function(X).requires_grad_()
    torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double(), reduction="sum").backward()
    assert logits.grad is not None
    grad: Tensor = logits.grad
    assert float((X[:, 0] * grad).abs().sum()) > 1e-10
    assert abs(float(X[:, 0] @ grad)) < 1e-14


def test_too_few_steps_are_no_separation() -> None:
    X, y = (torch.from_numpy(a) for a in overlapping(2))
    with pytest.warns(ConvergenceWarning):
        assert not bool(logistic(X, y, math.inf, max_iter=2).converged)


def test_collinear_and_constant_features() -> None:
    X, y = overlapping(2, scales=False)
    alone = logistic(torch.from_numpy(X), torch.from_numpy(y), math.inf)
    wide = np.c_[X, 2 * X[:, :1], np.full((200, 1), 0.1)]
    found = logistic(torch.from_numpy(wide), torch.from_numpy(y), math.inf)
    first = float(alone.weight[0, 0])
    np.testing.assert_allclose(found.weight[0, [0, 4, 5]].numpy(), [first / 5, 2 * first / 5, 0], atol=1e-9)


def test_cross_validation_and_estimators() -> None:
    X, y = overlapping(2)
    rows = torch.from_numpy((X - X.mean(0)) / X.std(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the edge of the grid
        found = logistic_cv(rows, torch.from_numpy(y), [1e-4, math.inf], cv=4)
        model = LogisticRegressionCV(Cs=[1e-4, np.inf], cv=4, scoring="neg_log_loss", use_legacy_attributes=False).fit(
            rows.numpy(), y
        )
    assert model.C_ == float(found.C) == math.inf
    coef, _ = theirs(rows.numpy(), y)
    np.testing.assert_allclose(model.coef_, coef, rtol=1e-8)
    np.testing.assert_allclose(LogisticRegression(C=np.inf).fit(X, y).coef_, coef / X.std(0), rtol=1e-8)
    with pytest.warns(FutureWarning, match="'penalty' was deprecated"):
        np.testing.assert_allclose(LogisticRegression(penalty=None).fit(X, y).coef_, coef / X.std(0), rtol=1e-8)
    ordered = np.arange(12.0)[:, None]
    for estimator in (LogisticRegression(C=np.inf), LogisticRegressionCV(Cs=[np.inf], cv=2)):
        with pytest.warns(SeparationWarning):
            assert estimator.fit(ordered, ordered[:, 0] > 5).score(ordered, ordered[:, 0] > 5) == 1


def test_probes() -> None:
    X, y = overlapping(3)
    coef, bias = theirs(X, y)
    rows = torch.from_numpy(X)
    best = (
        LinearProbe(task="classification", readout="logistic", Cs=[1e-4, math.inf, math.inf])
        .fit(rows, torch.from_numpy(y))
        .best
    )
    assert best.strength == math.inf
    logits = best.decision_function(rows).softmax(1)
    np.testing.assert_allclose(logits, torch.from_numpy(X @ coef.T + bias).softmax(1), atol=1e-6)
    with pytest.warns(SeparationWarning):
        LinearProbe(task="classification", readout="logistic", Cs=[math.inf]).fit(
            torch.arange(12.0)[:, None], torch.arange(12) // 6
        )

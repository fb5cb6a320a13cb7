"""Rows that come in batches: any order gives the model of all rows, and an interrupted stream goes on bit for bit."""

import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from torchridge import Moments, ridge_cv
from torchridge.estimators import NotFittedError, Ridge, RidgeClassifier, RidgeCV


def rows(device: Any = "cpu", dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    X = torch.randn(90, 5, dtype=torch.float64) + 10
    y = X[:, :2] @ torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64) + torch.randn(90, 2)
    return X.to(device, dtype), y.to(device, dtype), (torch.rand(90, dtype=torch.float64) + 0.1).to(device)


def shards(*tables: Any, seed: int = 0, parts: int = 7) -> Iterator[tuple[Any, ...]]:
    order = np.random.default_rng(seed).permutation(len(tables[0]))
    for index in np.array_split(order, parts):
        yield tuple(t[index] for t in tables)


def host(values: Any) -> np.ndarray:
    return torch.as_tensor(values).cpu().numpy()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_shuffled_shards_equal_all_rows(weighted: bool, positive: bool, kind: str, device: torch.device) -> None:
    X, y, s = rows(device)
    if kind == "numpy":
        X, y, s = (a.cpu().numpy() for a in (X, y, s))
    tables = (X, y, s) if weighted else (X, y)
    whole, parts = Ridge(0.5, positive=positive).fit(*tables), Ridge(0.5, positive=positive)
    for seed in range(2):
        parts = Ridge(0.5, positive=positive)
        for batch in shards(*tables, seed=seed):
            assert parts.partial_fit(*batch) is parts
        np.testing.assert_allclose(host(parts.coef_), host(whole.coef_), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(host(parts.intercept_), host(whole.intercept_), rtol=1e-9)
        assert type(parts.coef_) is type(whole.coef_)
    batched = Ridge(0.5, positive=positive).fit(shards(*tables))
    np.testing.assert_allclose(host(batched.coef_), host(whole.coef_), rtol=1e-9, atol=1e-11)
    assert batched.moments_.n_samples == 90


def test_fit_takes_lists_and_loaders_of_batches() -> None:
    X, y, _ = rows()
    expected = Ridge().fit(X, y).coef_
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=16, shuffle=True)
    for stream in (loader, [(X[:50], y[:50]), (X[50:], y[50:])]):
        torch.testing.assert_close(Ridge().fit(stream).coef_, expected)
    with pytest.raises(ValueError, match="gave no batch"):
        Ridge().fit(iter(()))
    with pytest.raises(ValueError, match="batch 0 should be"):
        Ridge().fit(iter([X]))


@pytest.mark.parametrize("make", [Ridge, RidgeClassifier])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_interrupted_and_resumed_bit_for_bit(make: Any, kind: str) -> None:
    X, y, s = rows()
    labels = (y[:, 0] > y[:, 0].mean()).long() if make is RidgeClassifier else y
    tables = [a.numpy() for a in (X, labels, s)] if kind == "numpy" else [X, labels, s]
    extra: dict[str, Any] = {"classes": [0, 1]} if make is RidgeClassifier else {}
    straight, first, second, third = (make() for _ in range(4))
    for i, (x, t, w) in enumerate(shards(*tables)):
        straight.partial_fit(x, t, sample_weight=w, **extra)
        if i < 3:
            first.partial_fit(x, t, sample_weight=w, **extra)
            continue
        if i == 3:
            file = io.BytesIO()
            torch.save(first.state_dict(), file)
            file.seek(0)
            second.load_state_dict(torch.load(file, weights_only=True))
            third = pickle.loads(pickle.dumps(first))
        for resumed in (second, third):
            resumed.partial_fit(x, t, sample_weight=w)
    for resumed in (second, third):
        assert np.array_equal(np.asarray(resumed.coef_), np.asarray(straight.coef_))
        assert np.array_equal(np.asarray(resumed.predict(tables[0])), np.asarray(straight.predict(tables[0])))
        assert type(resumed.coef_) is type(straight.coef_)


def test_a_refused_batch_changes_nothing() -> None:
    X, y, _ = rows()
    model = Ridge().partial_fit(X[:30], y[:30])
    before = model.coef_.clone()
    for bad in ((X[:5] * torch.nan, y[:5]), (X[:5, :3], y[:5]), (X[:5], y[:4]), (X[:5], y[:5, :1])):
        with pytest.raises(ValueError, match=r"NaN|expecting 5|inconsistent|2 targets|2$|hold"):
            model.partial_fit(*bad)
        assert model.moments_.n_samples == 30
        assert torch.equal(model.coef_, before)
    fitted = Ridge().fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        fitted.fit(iter([(X, y), (X * torch.nan, y)]))
    assert torch.equal(fitted.coef_, Ridge().fit(X, y).coef_)
    with pytest.raises(NotFittedError):
        fitted.state_dict()


def test_classes_of_a_stream() -> None:
    X, y, _ = rows()
    names = np.where(y[:, 0] > y[:, 0].mean(), "a", "b")
    model = RidgeClassifier()
    with pytest.raises(ValueError, match="`classes` is missing"):
        model.partial_fit(X.numpy(), names)
    for x, t in shards(X.numpy(), names):
        model.partial_fit(x, t, classes=["a", "b"])
    np.testing.assert_allclose(model.coef_, RidgeClassifier().fit(X.numpy(), names).coef_, rtol=1e-8)
    with pytest.raises(ValueError, match="labels that `classes` does not"):
        model.partial_fit(X.numpy(), np.full(90, "c"))
    with pytest.raises(ValueError, match="balanced"):
        RidgeClassifier(class_weight="balanced").partial_fit(X.numpy(), names, classes=["a", "b"])


def test_strength_of_a_stream_by_folds_and_by_generalized_cross_validation() -> None:
    X, y, _ = rows()
    alphas = np.logspace(-3, 3, 13)
    ids = torch.arange(90) % 3
    folds, gcv = RidgeCV(alphas, cv=3), RidgeCV(alphas)
    for x, t, i in shards(X, y, ids):
        folds.partial_fit(x, t, fold=i)
        gcv.partial_fit(x, t)
    splits = [((ids != k).nonzero()[:, 0].numpy(), (ids == k).nonzero()[:, 0].numpy()) for k in range(3)]
    whole = RidgeCV(alphas, cv=splits).fit(X, y)
    assert folds.alpha_ == whole.alpha_
    assert folds.best_score_ == pytest.approx(whole.best_score_, rel=1e-9)
    torch.testing.assert_close(folds.coef_, whole.coef_)
    assert gcv.alpha_ == float(ridge_cv(X, y, torch.from_numpy(alphas), "gcv").alpha)
    with pytest.raises(ValueError, match="`fold` is missing"):
        RidgeCV(alphas, cv=3).partial_fit(X, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_in_tensors_out(dtype: torch.dtype, device: torch.device) -> None:
    X, y, _ = rows(device, dtype)
    for model in (Ridge(), RidgeCV(), RidgeCV(cv=3)):
        model.fit(X, y)
        for value in (model.coef_, model.intercept_, model.predict(X)):
            assert isinstance(value, Tensor)
            assert (value.dtype, value.device) == (X.dtype, X.device)
    labels = y[:, 0] > y[:, 0].mean()
    classifier = RidgeClassifier().fit(X, labels)
    assert classifier.predict(X).dtype is torch.bool
    assert classifier.predict(X).device == X.device
    assert 0.5 < classifier.score(X, labels) <= 1


def test_device_of_computation_apart_from_that_of_the_data(device: torch.device) -> None:
    X, y, _ = rows()
    model = Ridge(device=device).fit(X.numpy(), y.numpy())
    assert isinstance(model.coef_, np.ndarray)
    np.testing.assert_allclose(model.coef_, Ridge().fit(X.numpy(), y.numpy()).coef_, rtol=1e-10)
    moved = Ridge(device=device).fit(X, y)
    assert moved.coef_.device == X.device


def test_numpy_and_tensors_may_alternate() -> None:
    X, y, _ = rows()
    model = Ridge().fit(X, y)
    assert isinstance(model.predict(X.numpy()), np.ndarray)
    np.testing.assert_allclose(model.predict(X.numpy()), model.predict(X).numpy(), rtol=1e-12)
    assert isinstance(Ridge().fit(X.numpy(), y.numpy()).predict(X), Tensor)


@pytest.mark.parametrize("intercept", [True, False])
def test_to_linear_computes_predict(intercept: bool) -> None:
    X, y, _ = rows()
    for target in (y, y[:, 0]):
        model = Ridge(fit_intercept=intercept).fit(X, target)
        layer = model.to_linear()
        assert (layer.bias is not None) == intercept
        torch.testing.assert_close(layer(X).reshape(target.shape), model.predict(X))
    with pytest.raises(NotFittedError):
        Ridge().to_linear()


def test_the_moments_of_a_stream_are_moments() -> None:
    X, y, _ = rows()
    model = Ridge().partial_fit(X, y)
    assert isinstance(model.moments_, Moments)
    torch.testing.assert_close(model.moments_.mean, X.mean(0))


SPARSE = {
    "csr": scipy.sparse.csr_matrix,
    "coo": scipy.sparse.coo_array,
    "torch": lambda X: torch.from_numpy(X).to_sparse(),
    "torch csr": lambda X: torch.from_numpy(X).to_sparse_csr(),
}


def counts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.poisson(0.3, (90, 12)).astype(float)
    return X, (X @ rng.standard_normal(12) + rng.standard_normal(90) > 0).astype(int), rng.uniform(0.1, 2, 90)


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.parametrize("run_bytes", [2**26, 8 * 12 * 4])
def test_sparse_batches_equal_dense_ones(kind: str, run_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchridge.streams.sparse._RUN_BYTES", run_bytes)
    X, y, s = counts()
    ours, dense = RidgeClassifier(0.5), RidgeClassifier(0.5).fit(X, y, s)
    numbers, folds = Ridge(0.5), RidgeCV([0.1, 1.0, 10.0])
    for k, index in enumerate(np.array_split(np.arange(90), 3)):
        batch = SPARSE[kind](X[index])
        ours.partial_fit(batch, y[index], classes=[0, 1], sample_weight=s[index])
        numbers.partial_fit(batch, y[index].astype(float), s[index])
        folds.partial_fit(batch, y[index].astype(float), fold=torch.full((30,), k))
    np.testing.assert_allclose(host(ours.coef_), dense.coef_, rtol=1e-10)
    np.testing.assert_allclose(host(numbers.coef_), Ridge(0.5).fit(X, y.astype(float), s).coef_, rtol=1e-10)
    assert (host(ours.predict(SPARSE[kind](X))) == dense.predict(X)).all()
    expected = ridge_cv(torch.from_numpy(X), torch.from_numpy(y).double(), [0.1, 1.0, 10.0], torch.arange(90) // 30)
    np.testing.assert_allclose(host(folds.coef_), expected.weight[0], rtol=1e-9)


def test_a_sparse_batch_that_is_refused_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchridge.streams.sparse._RUN_BYTES", 8 * 12 * 4)
    X, y, _ = counts()
    model = Ridge().partial_fit(scipy.sparse.csr_matrix(X), y.astype(float))
    before = model.coef_.copy()
    X[80, 3] = np.nan
    with pytest.raises(ValueError, match="NaN, first in row 80"):
        model.partial_fit(scipy.sparse.csr_matrix(X), y.astype(float))
    with pytest.raises(ValueError, match="expecting 12 features"):
        model.partial_fit(scipy.sparse.csr_matrix((3, 13)), y[:3].astype(float))
    np.testing.assert_array_equal(model.coef_, before)
    wide = scipy.sparse.csr_matrix((3, 2**18))
    for call in (Ridge().partial_fit, RidgeCV().partial_fit):
        with pytest.raises(ValueError, match=r"262144 sparse columns.*512\.0 GiB.*n_features=4096"):
            call(wide, y[:3].astype(float))
    with pytest.raises(ValueError, match="262144 sparse columns"):
        RidgeClassifier().partial_fit(wide, y[:3], classes=[0, 1])

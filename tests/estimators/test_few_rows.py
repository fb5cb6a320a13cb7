"""Few rows of many targets: estimators keep the dual form, and make `coef_` when it is read."""

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import relative
from scipy.sparse import csr_matrix
from sklearn import linear_model
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectFromModel
from sklearn.metrics import make_scorer, mean_absolute_error
from sklearn.utils.validation import check_is_fitted
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchridge import RidgeSolution, ridge, ridge_cv, ridge_path
from torchridge.estimators import Ridge, RidgeClassifier, RidgeClassifierCV, RidgeCV

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
]
ALPHAS = [1.0, 30.0, 1000.0]
WAYS: dict[str, Any] = {
    "ridge": lambda: Ridge(5.0),
    "strengths": lambda: Ridge(np.linspace(1, 50, 40)),
    "no intercept": lambda: Ridge(5.0, fit_intercept=False),
    "leave-one-out": lambda: RidgeCV(ALPHAS, alpha_per_target=True),
    "gcv": lambda: RidgeCV(ALPHAS, cv="gcv"),
    "folds": lambda: RidgeCV(ALPHAS, cv=3, alpha_per_target=True),
    "auto": lambda: RidgeCV("auto", cv=3, alpha_per_target=True),
}


class Largest(TorchDispatchMode):
    """Records the largest memory that an operation has returned, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        own = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in own:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def rows(n: int = 20, d: int = 70, t: int = 40, dtype: Any = np.float64) -> Any:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n + 7, d)) + 1
    y = X @ rng.standard_normal((d, t)) + 4 * rng.standard_normal((n + 7, t)) + 3
    return tuple(a.astype(dtype) for a in (X[:n], y[:n], X[n:], y[n:]))


def unread(model: Any) -> bool:
    """Whether no weights were made, of the model or of its solution."""
    return "coef_" not in vars(model) and callable(vars(model.solution_)["weight"])


def test_no_weights_are_made_to_fit_predict_score_and_pickle() -> None:
    n, d, t = 60, 20_000, 3_000
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((n, d), dtype=np.float32), rng.standard_normal((n, t), dtype=np.float32)
    with Largest() as largest:
        model = RidgeCV(np.logspace(2, 5, 4), cv=5, alpha_per_target=True).fit(X, y)
        model.predict(X[:10])
        model.predict(csr_matrix(X[:2]))
        model.score(X[:20], y[:20])
        check_is_fitted(model)
        repr(model), model._repr_html_(), dir(model), inspect.getmembers(model), copy.copy(model)
        twin = pickle.loads(pickle.dumps(model))
        twin.predict(X[:10])
        clone(model)
    assert largest.bytes < t * d  # a quarter of the weights in float32
    assert unread(model) and unread(twin)
    assert len(pickle.dumps(model)) < 4 * X.nbytes + 40 * y.nbytes


@pytest.mark.parametrize("kind", ["arrays", "tensors", "float32", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_coef_is_that_of_the_function_in_the_callers_kind(way: str, kind: str) -> None:
    X, y, new, _ = rows(dtype=np.float32 if kind == "float32" else np.float64)
    if kind in ("tensors", "bfloat16"):
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float64
        X, y, new = (torch.from_numpy(a).to(dtype) for a in (X, y, new))
    model = WAYS[way]().fit(X, y)
    assert unread(model)
    before = model.predict(new)
    assert unread(model)
    alpha = torch.as_tensor(model.alpha_ if hasattr(model, "alpha_") else model.alpha, dtype=torch.float64)
    own = [a if isinstance(a, torch.Tensor) else torch.from_numpy(a) for a in (X, y, new)]
    peer = ridge(own[0], own[1], alpha, fit_intercept=model.fit_intercept)
    bound = 1e-10 if own[0].dtype is torch.float64 else 1e-5 if kind == "float32" else 1e-2
    assert type(model.coef_) is type(X) and model.coef_.dtype == X.dtype and model.coef_.shape == (40, 70)
    assert relative(torch.as_tensor(model.coef_).double(), peer.weight.double()) < bound
    assert model.coef_ is model.coef_ and "coef_" in vars(model)
    assert type(before) is type(X) and before.dtype == X.dtype
    assert relative(torch.as_tensor(before).double(), peer.predict(own[2]).double()) < bound
    after = model.predict(new)
    assert relative(torch.as_tensor(after).double(), torch.as_tensor(before).double()) < bound
    assert relative(torch.as_tensor(model.to_linear().weight).double(), peer.weight.double()) < bound


def test_the_numbers_are_those_of_scikit_learn() -> None:
    X, y, new, seen = rows()
    s = np.linspace(0.1, 2, len(X))
    for intercept in (True, False):
        model = Ridge(3.0, fit_intercept=intercept).fit(X, y, s)
        peer = linear_model.Ridge(3.0, fit_intercept=intercept).fit(X, y, s)
        np.testing.assert_allclose(model.predict(new), peer.predict(new), rtol=1e-9)
        np.testing.assert_allclose(model.predict(csr_matrix(new)), peer.predict(new), rtol=1e-9)
        assert model.score(new, seen) == pytest.approx(peer.score(new, seen), rel=1e-9)
        np.testing.assert_allclose(model.intercept_, peer.intercept_, rtol=1e-9)
        assert unread(model)
        np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-7, atol=1e-10)


def test_coef_equals_the_weight_of_ridge_cv_bit_for_bit() -> None:
    X, y, new, _ = (torch.from_numpy(a) for a in rows())
    model = RidgeCV(ALPHAS, cv=4, alpha_per_target=True).fit(X, y)
    folds = torch.arange(20) // 5
    found = ridge_cv(X, y, torch.tensor(ALPHAS), folds, scoring="r2", alpha_per_target=True)
    assert torch.equal(model.alpha_, found.alpha)
    assert torch.equal(model.predict(new), found.predict(new)) and torch.equal(model.coef_, found.weight)


def test_a_model_does_not_follow_the_rows_that_it_was_fitted_on() -> None:
    for kind in (lambda a: a, torch.from_numpy):
        for way in ("ridge", "folds", "auto", "leave-one-out"):
            X, y, new, _ = (kind(a.copy()) for a in rows())
            model = WAYS[way]().fit(X, y)
            expected = copy.deepcopy(model.predict(new))
            X *= 0
            y *= 0
            np.testing.assert_array_equal(model.predict(new), expected)
            np.testing.assert_allclose(new @ model.coef_.T + model.intercept_, expected, rtol=1e-9)


def test_what_the_user_sets_is_what_predicts() -> None:
    X, y, new, _ = rows()
    base = Ridge(2.0).fit(X, y)
    expected = base.predict(new)
    shifted = copy.deepcopy(base)
    shifted.intercept_ = shifted.intercept_ + np.arange(40.0)
    np.testing.assert_allclose(shifted.predict(new), expected + np.arange(40.0), rtol=1e-10)
    inside = copy.deepcopy(base)
    inside.intercept_[:] = 0
    np.testing.assert_allclose(inside.predict(new), expected - base.intercept_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(inside.predict(new), new @ inside.coef_.T, rtol=1e-9, atol=1e-9)
    without = Ridge(2.0, fit_intercept=False).fit(X, y)
    plain, without.intercept_ = without.predict(new), 5.0
    np.testing.assert_allclose(without.predict(new), plain + 5, rtol=1e-10)
    given = copy.deepcopy(base)
    given.coef_ = np.zeros((40, 70))
    np.testing.assert_array_equal(given.predict(new), np.tile(given.intercept_, (7, 1)))
    assert pickle.loads(pickle.dumps(given)).predict(new).tolist() == given.predict(new).tolist()
    written = copy.deepcopy(base)
    written.coef_[0] = 0
    np.testing.assert_allclose(written.predict(new)[:, 0], np.full(7, written.intercept_[0]))
    del given.coef_
    np.testing.assert_allclose(given.predict(new), expected, rtol=1e-10)
    assert unread(base)


def test_on_a_device_and_from_another(device: torch.device) -> None:
    X, y, new, seen = (torch.from_numpy(a) for a in rows())
    expected = Ridge(5.0).fit(X, y).predict(new)
    model = Ridge(5.0).fit(X.to(device), y.to(device))
    for given in (new.to(device), new):
        assert model.predict(given).device == given.device
        assert relative(model.predict(given).cpu(), expected) < 1e-10
    sparse = csr_matrix(new.numpy())
    np.testing.assert_allclose(model.predict(sparse), expected.numpy(), rtol=1e-9)
    assert np.isfinite(model.score(new.to(device), seen.to(device))) and unread(model)
    assert model.coef_.device.type == device.type
    moved = Ridge(5.0, device=device).fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(moved.predict(new.numpy()), expected.numpy(), rtol=1e-9)
    np.testing.assert_allclose(moved.predict(sparse), expected.numpy(), rtol=1e-9)
    assert unread(moved) and isinstance(moved.coef_, np.ndarray)
    assert relative(pickle.loads(pickle.dumps(model)).predict(new.to(device)).cpu(), expected) < 1e-10


def test_a_refit_drops_the_weights_that_were_read() -> None:
    X, y, new, _ = rows()
    model = Ridge(2.0).fit(X, y)
    first = model.coef_
    model.set_params(alpha=50.0)
    assert model.coef_ is first
    model.fit(X, y)
    assert unread(model)
    np.testing.assert_allclose(model.coef_, linear_model.Ridge(50.0).fit(X, y).coef_, rtol=1e-7, atol=1e-10)
    model.fit(X, y[:, 0])  # weights outright
    np.testing.assert_allclose(model.coef_, linear_model.Ridge(50.0).fit(X, y[:, 0]).coef_, rtol=1e-7, atol=1e-10)
    model.fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(X * np.nan, y)
    np.testing.assert_allclose(model.predict(new), linear_model.Ridge(50.0).fit(X, y).predict(new), rtol=1e-9)
    model.partial_fit(X, y)
    np.testing.assert_allclose(model.coef_, linear_model.Ridge(50.0).fit(X, y).coef_, rtol=1e-7, atol=1e-9)
    assert unread(model.fit(X, y)) and "moments_" not in vars(model)


def test_before_a_fit_there_is_none() -> None:
    for make in (Ridge, RidgeCV, RidgeClassifier, RidgeClassifierCV):
        assert not hasattr(make(), "coef_")
        with pytest.raises(AttributeError, match=f"'{make.__name__}' object has no attribute 'coef_'"):
            _ = make().coef_
        with pytest.raises(NotFittedError, match="not fitted yet"):
            make().predict(np.ones((2, 3)))
    fitted = Ridge().fit(*rows()[:2])
    assert not hasattr(clone(fitted), "coef_") and unread(fitted)
    check_is_fitted(fitted)
    assert unread(fitted)
    check_is_fitted(fitted, "coef_")
    with pytest.raises(AttributeError, match="has no attribute 'moments_'"):
        _ = fitted.moments_


def test_features_are_selected_by_its_weights() -> None:
    X, y, *_ = rows()
    picked = SelectFromModel(Ridge(2.0), max_features=5, threshold=-np.inf).fit(X, y)
    expected = SelectFromModel(linear_model.Ridge(2.0), max_features=5, threshold=-np.inf).fit(X, y)
    np.testing.assert_array_equal(picked.get_support(), expected.get_support())


@pytest.mark.parametrize("make", [RidgeClassifier, lambda: RidgeClassifierCV(ALPHAS)])
def test_several_labels_of_few_rows(make: Any) -> None:
    X, y, new, _ = rows()
    labels = (y > y.mean(0)).astype(int)
    model = make().fit(X, labels)
    assert unread(model)
    peer = linear_model.RidgeClassifier(getattr(model, "alpha_", 1.0)).fit(X, labels)
    np.testing.assert_array_equal(model.predict(new), peer.predict(new))
    np.testing.assert_allclose(model.decision_function(new), peer.decision_function(new), rtol=1e-9)
    assert unread(model)
    np.testing.assert_allclose(model.coef_, peer.coef_, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize("way", ["strengths", "folds", "gcv"])
def test_saved_models_hold_the_dual_form(way: str, read: bool, tmp_path: Path) -> None:
    joblib, cloudpickle = pytest.importorskip("joblib"), pytest.importorskip("cloudpickle")
    X, y, new, _ = rows()
    model = WAYS[way]().fit(X, y)
    expected = model.coef_ if read else copy.deepcopy(model).coef_
    joblib.dump(model, tmp_path / "model")
    twins = [
        pickle.loads(pickle.dumps(model)),
        cloudpickle.loads(cloudpickle.dumps(model)),
        copy.deepcopy(model),
        copy.copy(model),
        joblib.load(tmp_path / "model"),
        joblib.load(tmp_path / "model", mmap_mode="r"),
    ]
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(model)
    unknown = skops.get_untrusted_types(data=data)
    assert unknown == [f"{type(model).__module__}.{type(model).__name__}"]
    twins.append(skops.loads(data, trusted=unknown))
    for twin in twins:
        assert ("coef_" in vars(twin)) == read and callable(vars(twin.solution_)["weight"])
        np.testing.assert_array_equal(twin.predict(new), model.predict(new))
        np.testing.assert_array_equal(twin.coef_, expected)
        for name in ("unit_variance", "dof", "residual_variance"):
            found, wanted = (getattr(m.solution_, name).nan_to_num(-1.0) for m in (twin, model))
            assert relative(found, wanted) < 1e-10, name


@pytest.mark.parametrize("way", ["plain", "standardize", "free", "weights", "no intercept", "float32"])
def test_variances_of_weights_are_not_made_to_save_them(way: str, tmp_path: Path) -> None:
    X, y, *_ = (torch.from_numpy(a) for a in rows())
    free = torch.ones(70).double()
    free[:2] = 0
    options: dict[str, Any] = {
        "plain": {},
        "standardize": {"standardize": True},
        "free": {"penalty_factors": free},
        "weights": {"sample_weight": torch.linspace(0.1, 2, 20).double()},
        "no intercept": {"fit_intercept": False},
        "float32": {"moments_dtype": torch.float32},
    }[way]
    alpha = torch.linspace(1, 50, 40, dtype=torch.float64)
    solution = ridge(X, y, alpha, **options)
    with Largest() as largest:
        solution.save(tmp_path / "a.safetensors")
        twins = [pickle.loads(pickle.dumps(solution)), RidgeSolution.load(tmp_path / "a.safetensors")]
    assert largest.bytes < 8 * 40 * 70
    few, bound = solution.of_targets([3, 5]), 1e-4 if way == "float32" else 1e-9
    each = [ridge(X, y[:, j], float(alpha[j]), **options) for j in range(40)]
    expected = torch.stack([s.unit_variance for s in each]).nan_to_num(-1.0)  # type: ignore[misc]
    for found in [solution, *twins, pickle.loads(pickle.dumps(twins[0])), twins[1].of_targets(slice(None))]:
        assert relative(found.unit_variance.nan_to_num(-1.0), expected) < bound
    assert relative(few.unit_variance.nan_to_num(-1.0), expected[[3, 5]]) < bound  # type: ignore[union-attr]
    assert solution.standard_errors.shape == (40, 70)
    assert callable(vars(solution)["weight"])


@pytest.mark.parametrize("way", ["plain", "free", "no intercept", "path"])
def test_sparse_rows_and_operators_are_predicted_by_the_dual_form(way: str) -> None:
    X, y, new, seen = (torch.from_numpy(a) for a in rows())
    free = torch.ones(70).double()
    free[:2] = 0
    options = {"free": {"penalty_factors": free}, "no intercept": {"fit_intercept": False}}.get(way, {})
    solution = ridge(X, y, 4.0, **options)  # type: ignore[arg-type]
    solution = ridge_path(X, y, ALPHAS) if way == "path" else solution
    expected = solution.predict(new)
    for given in (csr_matrix(new.numpy()), new.to_sparse_csr(), new.to_sparse()):
        assert relative(solution.predict(given), expected) < 1e-10
        assert relative(solution.predict(given, max_bytes=10_000), expected) < 1e-10
        assert relative(solution.score(given, seen), solution.score(new, seen)) < 1e-10
        for rows_, part, found in solution.predictions(given, 10_000):
            assert relative(found, expected.reshape(-1, 7, 40)[:, rows_, part]) < 1e-10
    assert callable(vars(solution)["weight"])


def test_a_metric_of_folds_is_given_models_in_the_dual_form() -> None:
    X, y, *_ = rows()
    made = []

    def scorer(model: Any, rows: Any, truth: Any) -> float:
        made.append(unread(model))
        return -float(mean_absolute_error(truth, model.predict(rows)))

    model = RidgeCV(ALPHAS, cv=3, scoring=scorer).fit(X, y)
    peer = linear_model.RidgeCV(ALPHAS, cv=3, scoring=make_scorer(mean_absolute_error, greater_is_better=False))
    assert model.alpha_ == peer.fit(X, y).alpha_
    assert model.best_score_ == pytest.approx(peer.best_score_, rel=1e-9)
    assert all(made) and len(made) == 9


def idle() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    X, y, *_ = (torch.from_numpy(a) for a in rows())
    weight = torch.linspace(0.1, 2, 20).double()
    weight[[3, 11]] = 0
    return X, y, weight


def test_left_out_predictions_of_rows_of_no_weight_are_those_of_the_fit() -> None:
    X, y, weight = (a.numpy() for a in idle())
    with Largest() as largest:
        model = RidgeCV(ALPHAS, scoring="neg_mean_absolute_error", store_cv_results=True).fit(X, y, weight)
    for i, alpha in enumerate(ALPHAS):
        expected = linear_model.Ridge(alpha).fit(X, y, weight).predict(X[[3, 11]])
        np.testing.assert_allclose(model.cv_results_[[3, 11], :, i], expected, rtol=1e-9)
    assert largest.bytes < 8 * 40 * 70


@pytest.mark.parametrize("way", ["prior", "free", "factors"])
def test_a_metric_of_rows_of_no_weight_sees_the_predictions_of_the_fit(way: str) -> None:
    X, y, weight = idle()
    factors = torch.linspace(0.5, 2, 70).double()
    factors[:2] = 0 if way == "free" else 1
    prior = torch.randn(40, 70, generator=torch.Generator().manual_seed(0)).double()
    options: dict[str, Any] = {"prior": prior} if way == "prior" else {"penalty_factors": factors}
    seen: list[Any] = []

    def metric(truth: Any, predicted: Any) -> Any:
        seen.append(predicted.clone())
        return (predicted - truth).abs().mean()

    ridge_cv(X, y, ALPHAS, "loo", scoring=metric, sample_weight=weight, **options)
    assert len(seen) == 3
    for predicted, alpha in zip(seen, ALPHAS, strict=True):
        fit = ridge(X, y, alpha, sample_weight=weight, **options)
        assert relative(predicted[[3, 11]], fit.predict(X[[3, 11]])) < 1e-9


@pytest.mark.parametrize("alpha", [2.0, torch.linspace(1, 50, 40).double()], ids=["shared", "each"])
@pytest.mark.parametrize("t", [1, 40])
def test_what_is_known_of_a_float32_dual(alpha: Any, t: int) -> None:
    X, y, *_ = (torch.from_numpy(a) for a in rows())
    alpha = alpha[:t] if isinstance(alpha, torch.Tensor) and t > 1 else alpha if isinstance(alpha, float) else 1.0
    exact = ridge(X, y[:, :t], alpha)
    short = ridge(X, y[:, :t], alpha, moments_dtype=torch.float32, solver="dual")
    for name in ("dof", "condition", "rank", "residual_variance", "unit_variance"):
        found, wanted = (torch.as_tensor(getattr(s, name)).double().nan_to_num(-1.0) for s in (short, exact))
        assert relative(found, wanted) < 1e-3, name

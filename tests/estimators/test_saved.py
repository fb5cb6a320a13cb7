"""Fitted estimators in files and with other packages: pickle, joblib, cloudpickle, skops, mlflow; BaseEstimator."""

import copy
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator

from torchridge.estimators import (
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
)
from torchridge.exceptions import GridEdgeWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of LogisticRegressionCV's defaults, as theirs
    pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning"),
]

ALL: list[Any] = [Ridge, RidgeCV, RidgeClassifier, RidgeClassifierCV, LogisticRegression, LogisticRegressionCV]
X = np.random.default_rng(0).standard_normal((60, 4))
NAMES = np.where(X[:, 0] + X[:, 1] > 0, "above", "below")
KINDS: dict[str, Callable[[Any], Any]] = {
    "arrays": lambda X: X,
    "tensors": torch.from_numpy,
    "bfloat16": lambda X: torch.from_numpy(X).bfloat16(),
}


def fitted(make: Any, kind: str = "arrays") -> tuple[Any, Any]:
    rows = KINDS[kind](X)
    numbers = (NAMES == "above").astype(float)
    y = numbers if make in (Ridge, RidgeCV) else NAMES if kind == "arrays" else numbers.astype(int)
    return make().fit(rows, y if kind == "arrays" else torch.from_numpy(y)), rows


def through_pickle(model: Any, _: Path) -> Any:
    return pickle.loads(pickle.dumps(model))


def through_cloudpickle(model: Any, _: Path) -> Any:
    return cloudpickle.loads(cloudpickle.dumps(model))


def through_joblib(model: Any, folder: Path) -> Any:
    joblib.dump(model, folder / "model")
    return joblib.load(folder / "model")


def through_a_map(model: Any, folder: Path) -> Any:
    joblib.dump(model, folder / "model")
    return joblib.load(folder / "model", mmap_mode="r")


def through_skops(model: Any, _: Path) -> Any:
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(model)
    unknown = skops.get_untrusted_types(data=data)
    assert unknown == [f"{type(model).__module__}.{type(model).__name__}"]  # nothing else needs the reader's trust
    return skops.loads(data, trusted=unknown)


def through_deepcopy(model: Any, _: Path) -> Any:
    return copy.deepcopy(model)


WAYS = [through_pickle, through_cloudpickle, through_joblib, through_a_map, through_skops, through_deepcopy]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return type(ours) is type(theirs) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", ALL)
def test_round_trips_predict_the_same(make: Any, way: Any, tmp_path: Path) -> None:
    for kind in KINDS if way in (through_pickle, through_skops) else ("arrays",):
        model, rows = fitted(make, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of arrays that are not writable
            twin = way(model, tmp_path)
            for method in ("predict", "decision_function", "predict_proba"):
                if hasattr(model, method):
                    assert same(getattr(model, method)(rows), getattr(twin, method)(rows)), (kind, method)
            assert torch.equal(model.to_linear().weight, twin.to_linear().weight)
        assert repr(twin) == repr(model)
        if hasattr(model, "solution_"):
            assert torch.equal(twin.solution_.weight, model.solution_.weight)
            assert type(twin.solution_) is type(model.solution_)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_streamed_models_go_on_from_where_they_were(way: Any, tmp_path: Path) -> None:
    model = Ridge().partial_fit(X[:30], X[:30, 0])
    twin = way(model, tmp_path).partial_fit(X[30:], X[30:, 0])
    np.testing.assert_array_equal(twin.coef_, model.partial_fit(X[30:], X[30:, 0]).coef_)


@pytest.mark.parametrize("make", ALL)
def test_they_are_base_estimators_with_a_picture(make: Any) -> None:
    assert issubclass(make, BaseEstimator)
    assert make.__name__ in make()._repr_html_()


@pytest.mark.parametrize("make", ALL)
def test_rows_mapped_into_a_worker_warn_of_nothing(make: Any) -> None:
    rows, y = X.copy(), (X[:, 0] > 0).astype(np.int64)
    rows.flags.writeable = y.flags.writeable = False  # as joblib hands large arrays to its processes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", GridEdgeWarning)
        model = pickle.loads(pickle.dumps(make().fit(rows, y, sample_weight=np.broadcast_to(1.5, len(y)))))
        assert model.score(rows, y, sample_weight=np.broadcast_to(1.5, len(y))) > 0.5


WITHOUT = """
import sys
sys.modules["sklearn"] = None  # as if it were not installed
import numpy as np
from torchridge import estimators
X = np.random.default_rng(0).standard_normal((30, 3))
for name in {names!r}:
    model = getattr(estimators, name)().fit(X, (X[:, 0] > 0).astype(int))
    model.predict(X), model.score(X, (X[:, 0] > 0).astype(int)), repr(model)
"""


def test_without_scikit_learn_they_import_and_fit() -> None:
    code = WITHOUT.format(names=[make.__name__ for make in ALL])
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_importing_torchridge_from_a_checkout_that_nothing_has_installed() -> None:
    code = """
import importlib.metadata as m
def missing(name): raise m.PackageNotFoundError(name)
m.version = missing
import torchridge
print(torchridge.__version__)
"""
    root = str(Path(__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert out.stdout.strip() == "0+checkout"


@pytest.mark.parametrize("make", [RidgeCV, LogisticRegression])
def test_mlflow_logs_and_loads_by_its_default_format(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    sklearn_flavour = pytest.importorskip("mlflow.sklearn")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs.db'}")
    model, rows = fitted(make)
    with mlflow.start_run():
        trusted = [
            f"{make.__module__}.{make.__name__}"
        ]  # skops asks for the class alone, as for any that is not its own
        logged = sklearn_flavour.log_model(model, name="model", skops_trusted_types=trusted)
    np.testing.assert_array_equal(sklearn_flavour.load_model(logged.model_uri).predict(rows), model.predict(rows))

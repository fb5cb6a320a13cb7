"""Folds of a stream: groups never leak, classes are spread, control tasks stay at chance, intervals cover."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchridge.exceptions import MissingClassWarning
from torchridge.probing import LinearProbe
from torchridge.probing.features.folding import ClassCodes, StreamFolds


def test_groups_stay_whole_in_any_stream() -> None:
    g = torch.Generator().manual_seed(0)
    folds, fold_of = StreamFolds(4), {}
    for _ in range(20):
        groups = torch.randint(30, (11,), generator=g)
        ids, numbers = folds.assign(torch.zeros(11), None, groups)
        assert numbers is not None
        for group, fold in zip(groups.tolist(), ids.tolist(), strict=True):
            assert fold_of.setdefault(group, fold) == fold
    assert max(folds.loads) - min(folds.loads) < 40
    assert sum(folds.loads) == folds.examples == 220


def test_classes_are_spread_evenly() -> None:
    codes, folds = ClassCodes(), StreamFolds(5)
    labels = torch.randint(3, (203,), generator=torch.Generator().manual_seed(0)) * 10 - 5
    ids = torch.cat([folds.assign(y, codes.encode(y), None)[0] for y in labels.split(17)])
    for c in labels.unique():
        sizes = torch.bincount(ids[labels == c], minlength=5)
        assert int(sizes.max() - sizes.min()) <= 1
    assert codes.classes.tolist() == [-5, 5, 15]


def planted_leak() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one group share a signature that says nothing about other groups, and one label."""
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(80).repeat_interleave(10)
    signature = torch.randn(80, 60, generator=g)
    labels = torch.randint(2, (80,), generator=g)[groups]
    order = torch.randperm(800, generator=g)
    X = signature[groups] + 0.1 * torch.randn(800, 60, generator=g)
    return X[order], labels[order], groups[order]


@pytest.mark.parametrize("readout", ["ridge", "lda"])
def test_a_planted_leak_pays_under_random_folds_only(readout: str, device: torch.device) -> None:
    X, y, groups = planted_leak()
    probe = LinearProbe(task="classification", readout=readout, metrics="accuracy")
    leaked = probe.fit(X.to(device), y).best.scores["accuracy"]
    honest = probe.fit(X.to(device), y, groups=groups).best.scores["accuracy"]
    named = probe.fit(X.to(device), y, groups=[f"group {i}" for i in groups.tolist()]).best.scores["accuracy"]
    assert leaked > 0.85
    assert abs(honest - 0.5) < 0.12
    assert named == honest


@pytest.mark.parametrize("readout", ["ridge", "lda", "logistic"])
def test_control_task_is_at_chance(readout: str, device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (3000,), generator=g)
    X = torch.randn(4, 20, generator=g)[y] + torch.randn(3000, 20, generator=g)
    options: dict[str, Any] = {"Cs": [0.1], "metrics": "accuracy", "control": True}
    best = LinearProbe(task="classification", readout=readout, **options).fit(X.to(device), y).best
    assert best.scores["accuracy"] > 0.9
    assert abs(best.control["accuracy"] - 0.25) < 0.03


def test_control_regression_explains_nothing() -> None:
    X = torch.randn(2000, 10)
    best = LinearProbe(control=True).fit(X, X[:, 0] + X[:, 1]).best
    assert best.scores["r2"] > 0.999
    assert abs(best.control["r2"]) < 0.02


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_bootstrap_interval_covers(task: str, grouped: bool) -> None:
    """The interval should hold the score that the folds' own weights have on new data in 95 % of the draws."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(6, generator=g, dtype=torch.float64)

    def draw(n: int) -> tuple[Tensor, Tensor, Tensor]:
        groups = torch.arange(n) // (4 if grouped else 1)
        shared = torch.randn(int(groups[-1]) + 1, 6, generator=g, dtype=torch.float64)[groups]
        X = shared + 0.3 * torch.randn(n, 6, generator=g, dtype=torch.float64)
        noise = torch.randn(int(groups[-1]) + 1, generator=g, dtype=torch.float64)[groups]
        signal = X @ w + 2 * noise
        return X, ((signal > 0).long() if task == "classification" else signal), groups

    new_X, new_y, _ = draw(40_000)
    hits = 0
    for seed in range(120):
        X, y, groups = draw(400)
        probe = LinearProbe(task=task, bootstrap=200, seed=seed, alphas=[1.0])
        best = probe.fit(X, y, groups=groups if grouped else None).best
        if task == "classification":
            truth = float((best.predict(new_X) == new_y).double().mean())
        else:
            truth = float(1 - ((best.predict(new_X) - new_y) ** 2).mean() / new_y.var())
        assert best.interval is not None
        hits += best.interval[0] <= truth <= best.interval[1]
    assert 0.88 <= hits / 120 <= 1.0


def test_given_folds_and_unequal_widths() -> None:
    X, y = torch.randn(60, 5), torch.randn(60)
    ids = torch.arange(60) // 20
    report = LinearProbe(cv=ids).fit({"a": X, "b": X[:, :2]}, y)
    assert report.n_folds == 3
    assert [p.weight.shape for p in report] == [(1, 5), (1, 2)]
    with pytest.raises(ValueError, match="`cv` has 0 rows"):
        LinearProbe(cv=ids).fit(torch.randn(90, 5), torch.randn(90), batch_rows=60)


BAD = {
    "no tensor": ({}, np.ones((9, 2)), torch.ones(9), TypeError, "`features` should be a tensor or a mapping"),
    "length": ({}, torch.ones(9, 2), torch.ones(8), ValueError, r"should have shape \(8, 2\), got \(9, 2\)"),
    "nan": ({}, torch.full((9, 2), torch.nan), torch.ones(9), ValueError, "features of layer features.*NaN"),
    "nan labels": ({}, torch.ones(9, 2), torch.full((9,), torch.nan), ValueError, "`labels` hold NaN"),
    "task": ({"task": "both"}, torch.ones(9, 2), torch.ones(9), ValueError, "`task` should be one of"),
    "option": ({"alpha": 1}, torch.ones(9, 2), torch.ones(9), TypeError, "unexpected keyword argument"),
    "cv": ({"cv": 1}, torch.ones(9, 2), torch.ones(9), ValueError, "`cv` should be an integer of at least 2"),
    "alphas": ({"alphas": [-1.0]}, torch.ones(9, 2), torch.ones(9), ValueError, "`alphas` should not be negative"),
    "metric": ({"metrics": "accuracy"}, torch.ones(9, 2), torch.ones(9), ValueError, "'accuracy' needs task="),
    "float classes": ({"task": "classification"}, torch.ones(9, 2), torch.ones(9), TypeError, "integers or booleans"),
    "one class": ({"task": "classification"}, torch.ones(9, 2), torch.ones(9).long(), ValueError, "single class"),
    "weights": (
        {"class_weight": "balanced"},
        torch.ones(9, 2),
        torch.ones(9),
        ValueError,
        "have no use in a regression",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input(name: str) -> None:
    options, X, y, error, message = BAD[name]
    with pytest.raises(error, match=message):
        LinearProbe(**options).fit(X, y)


def test_a_class_that_a_fold_never_sees_is_said_aloud() -> None:
    X, y = torch.randn(40, 3), torch.arange(40) % 2
    y[7] = 2
    with pytest.warns(MissingClassWarning, match="without one of the classes"):
        report = LinearProbe("classification", ["ridge", "lda"], metrics="accuracy").fit(X, y)
    assert all(bool(torch.isfinite(p.strength_scores).all()) for p in report)


def test_features_that_overflow_half_precision_are_refused() -> None:
    X = torch.full((40, 3), 1e5) + torch.randn(40, 3)
    with pytest.raises(ValueError, match="`keep_dtype`: features of layer features overflow float16"):
        LinearProbe(keep="memory", keep_dtype=torch.float16).fit(X, X[:, 0])

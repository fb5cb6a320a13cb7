"""Warnings name the line of the caller, whatever lies between, and different problems are all shown."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchridge
from torchridge import (
    Moments,
    exceptions,
    logistic,
    logistic_cv,
    penalize_step,
    penalty,
    regularize,
    ridge,
    ridge_cv,
    ridge_path,
    weight_decay_groups,
)
from torchridge.exceptions import (
    ConvergenceWarning,
    DoublePenaltyWarning,
    GridEdgeWarning,
    IllConditionedWarning,
    InertPenaltyWarning,
    MissingClassWarning,
    RankDeficientWarning,
    TorchridgeWarning,
)
from torchridge.probing import LinearProbe
from torchridge.regularizers import L2


def rows(n: int = 30, d: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    return X, X.sum(1) + torch.randn(n, generator=g, dtype=torch.float64)


X, Y = rows()
TWICE = torch.cat([X, X], 1)
LABELS = (Y > 0).long()
RARE = torch.tensor([2, *LABELS[1:].tolist()])  # the third class has one row
HILBERT = 1.0 / (torch.arange(12)[:, None] + torch.arange(12) + 1).double()


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def step_twice_penalized() -> None:
    model = regularize(nn.Linear(4, 1), L2(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalize_step(optimizer, model)
    (model(X.float()).sum() + penalty(model)).backward()
    optimizer.step()


def estimator(name: str, *args: Any, **kwargs: Any) -> Any:
    pytest.importorskip("sklearn")
    return getattr(torchridge.estimators, name)(*args, **kwargs)


# Each is one line, which the warning should name.
ROUTES: dict[str, tuple[type[Warning], Callable[[], Any]]] = {
    "ridge": (RankDeficientWarning, lambda: ridge(TWICE, Y, 0.0)),
    "ridge_path": (RankDeficientWarning, lambda: ridge_path(TWICE, Y, [0.0, 1.0])),
    "moments": (RankDeficientWarning, lambda: ridge(Moments().update(TWICE, Y), alpha=0.0)),
    "dual": (RankDeficientWarning, lambda: ridge(X.T.contiguous(), Y[:4], 0.0)),
    "gradients": (IllConditionedWarning, lambda: ridge(HILBERT.clone().requires_grad_(), HILBERT[:, 0], 1e-11)),
    "cg": (ConvergenceWarning, lambda: ridge(X, Y, 1e-3, solver="cg", rank=0, max_iter=1)),
    "ridge_cv": (GridEdgeWarning, lambda: ridge_cv(X, Y, [1e-9, 1e-8], cv=5)),
    "ridge_cv of moments": (GridEdgeWarning, lambda: ridge_cv(Moments().update(X, Y), alphas=[1e-9, 1e-8])),
    "ridge_cv by cg": (GridEdgeWarning, lambda: ridge_cv(X, Y, [1e-5, 1e-4], cv=5, solver="cg")),
    "logistic": (ConvergenceWarning, lambda: logistic(X, LABELS, [1.0, 10.0], max_iter=1)),
    "logistic_cv": (GridEdgeWarning, lambda: logistic_cv(X, LABELS, [1e-4, 1e-3], cv=3)),
    "folds of logistic_cv": (MissingClassWarning, lambda: logistic_cv(X, RARE, [1e-3, 1e-1, 1e4], cv=5)),
    "Ridge": (RankDeficientWarning, lambda: estimator("Ridge", 0.0).fit(TWICE, Y)),
    "RidgeCV": (GridEdgeWarning, lambda: estimator("RidgeCV", [1e-9, 1e-8], cv="gcv").fit(X, Y)),
    "RidgeClassifierCV": (UserWarning, lambda: estimator("RidgeClassifierCV", cv=5).fit(X, RARE)),
    "LogisticRegressionCV": (Warning, lambda: estimator("LogisticRegressionCV", max_iter=1, cv=2).fit(X, LABELS)),
    "labels in a column": (UserWarning, lambda: estimator("RidgeClassifier").fit(X, LABELS[:, None])),
    "LinearProbe": (GridEdgeWarning, lambda: LinearProbe("regression", alphas=[1e-9, 1e-8]).fit(X, Y)),
    "folds of a probe": (MissingClassWarning, lambda: LinearProbe("classification").fit(X, RARE)),
    "regularize": (InertPenaltyWarning, lambda: regularize(normalized(), L2(0.1))),
    "weight_decay_groups": (InertPenaltyWarning, lambda: weight_decay_groups(normalized(), 0.1)),
    "a step": (DoublePenaltyWarning, step_twice_penalized),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_warning_names_the_line_of_the_caller(route: str) -> None:
    category, call = ROUTES[route]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [w for w in caught if issubclass(w.category, category)]
    lines, first = inspect.getsourcelines(call)
    assert found, [str(w.message) for w in caught]
    for w in found:
        assert w.filename == __file__ and first <= w.lineno < first + len(lines), f"{w.filename}:{w.lineno}"


def test_different_problems_of_one_line_are_all_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # what Python does: equal messages of one line once
        for seed in range(4):
            features, target = rows(seed=seed)
            ridge(torch.cat([features, features], 1), target, 0.0)
    assert [w.category for w in caught] == [RankDeficientWarning] * 4


def test_two_lines_with_one_problem_are_both_shown() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        ridge(TWICE, Y, 0.0)
        ridge(TWICE, Y, 0.0)
    assert len({w.lineno for w in caught}) == len(caught) == 2


def test_a_call_without_any_frame_outside_is_no_error() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.warns(TorchridgeWarning, match="text"):
        patch.setattr(exceptions, "_inside", lambda _: True)
        exceptions.warn("text", TorchridgeWarning)


def test_only_the_base_class_is_at_the_top() -> None:
    assert issubclass(torchridge.TorchridgeWarning, UserWarning)
    assert [n for n in torchridge.__all__ if n.endswith(("Warning", "Error"))] == ["TorchridgeWarning"]
    assert all(hasattr(torchridge.exceptions, name) for name in torchridge.exceptions.__all__)

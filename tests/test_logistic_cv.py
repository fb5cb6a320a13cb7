"""The choice of a strength by held-out rows."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import ShuffleSplit, StratifiedKFold
from test_logistic import planted
from torch import Tensor

from torchridge import LogisticSolution, TorchridgeWarning
from torchridge.exceptions import GridEdgeWarning, MissingClassWarning, UndefinedScoreWarning
from torchridge.linear.logistic.logistic import logistic, logistic_cv
from torchridge.solvers.moments.stratified import stratified_folds

GRID = [1e-3, 1e-1, 1e1]
pytestmark = pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")


@pytest.mark.parametrize(("k", "folds"), [(2, 3), (3, 5), (7, 4)])
def test_folds_are_those_of_scikit_learn(k: int, folds: int) -> None:
    y = torch.cat([torch.randint(k, (60,)), torch.arange(k).repeat(5)])
    ids = stratified_folds(y, folds)
    for fold, (_, test) in enumerate(StratifiedKFold(folds).split(y, y)):
        assert np.array_equal((ids == fold).nonzero()[:, 0].numpy(), test)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("scoring", ["log_loss", "accuracy"])
def test_scores_equal_a_loop_over_scikit_learn(device: torch.device, k: int, scoring: str) -> None:
    X, y = planted(120, 4, k)
    found = logistic_cv(X.to(device), y.to(device), GRID, cv=3, scoring=scoring, tol=1e-13)
    expected = np.empty((3, 3))
    for fold, (train, test) in enumerate(StratifiedKFold(3).split(X, y)):
        for i, C in enumerate(GRID):
            model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12).fit(X[train].numpy(), y[train].numpy())
            proba = model.predict_proba(X[test].numpy())
            hit = model.score(X[test].numpy(), y[test].numpy())
            expected[fold, i] = hit if scoring == "accuracy" else -log_loss(y[test].numpy(), proba)
    assert found.scores is not None and found.fold_scores is not None and found.best_score is not None
    np.testing.assert_allclose(found.fold_scores[..., 0].cpu().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.scores[:, 0].cpu().numpy(), expected.mean(0), atol=1e-6)
    best = int(expected.mean(0).argmax())
    assert float(found.C) == GRID[best] and float(found.best_score) == pytest.approx(expected.mean(0)[best], abs=1e-6)
    torch.testing.assert_close(found.weight, logistic(X.to(device), y.to(device), found.C, tol=1e-13).weight)


def test_every_kind_of_split(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(60, 3, 2))
    groups = torch.arange(60) // 6
    pair = (torch.arange(40), torch.arange(40, 60))
    assert logistic_cv(X, y, GRID, cv=4, groups=groups).fold_scores.shape == (4, 3, 1)
    assert logistic_cv(X, y, GRID, cv=torch.arange(60) % 3).fold_scores.shape == (3, 3, 1)
    assert logistic_cv(X, y, GRID, cv=ShuffleSplit(2, random_state=0)).fold_scores.shape == (2, 3, 1)
    assert logistic_cv(X, y, GRID, cv=[pair]).fold_scores.shape == (1, 3, 1)


def test_callable_takes_labels_and_probabilities(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(60, 3, 2))
    seen: list[Tensor] = []

    def brier(y_true: Tensor, y_score: Tensor) -> Tensor:
        seen.append(y_score)
        return -(y_score - y_true).square().mean()

    found = logistic_cv(X, y == 1, GRID, cv=3, scoring=lambda t, s: brier(t.double(), s))
    assert seen[0].ndim == 1 and found.scores.shape == (3, 1) and found.scoring == "<lambda>"


def test_ties_take_the_stronger_penalty(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(60, 3, 2))
    assert float(logistic_cv(X, y, [10.0, 0.1, 1.0], cv=3, scoring=lambda *_: 0.5).C) == 0.1


@pytest.mark.filterwarnings("default::torchridge.exceptions.GridEdgeWarning")
def test_a_best_strength_at_the_edge_warns(device: torch.device) -> None:
    X, y = (t.to(device) for t in planted(60, 3, 2))
    with pytest.warns(GridEdgeWarning, match="edge"):
        logistic_cv(X, y, [1e-6, 1e-5], cv=3)


def test_a_class_missing_from_a_fold_is_visible(device: torch.device) -> None:
    X, y = planted(60, 3, 3)
    y = torch.where(y == 2, 1, y)
    y[0] = 2
    with pytest.warns(MissingClassWarning, match=r"folds \[0\]"):
        found = logistic_cv(X.to(device), y.to(device), GRID, cv=3)
    assert bool(torch.isfinite(found.scores).all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cv": 1}, ValueError, "`cv`"),
        ({"cv": 50}, ValueError, "Lower `cv`"),
        ({"cv": "best"}, ValueError, "`cv`"),
        ({"scoring": "f2"}, ValueError, "`scoring`"),
        ({"Cs": 0}, ValueError, "`C`"),
        ({"cv": [(torch.tensor([0, 1]), torch.arange(2, 20))]}, ValueError, "one class only"),
        ({"y": torch.stack([torch.arange(20) % 2] * 2, 1)}, ValueError, "once for each column"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    y = torch.arange(20) % 2
    y[:2] = 0
    with pytest.raises(error, match=message):
        logistic_cv(**{"X": torch.randn(20, 2), "y": y, **change})  # type: ignore[arg-type]


def test_the_warnings_are_ours() -> None:
    assert issubclass(MissingClassWarning, TorchridgeWarning)


def test_a_score_of_nan_never_wins() -> None:
    X, y = planted(60, 3, 2)
    given = iter([float("nan"), 0.1, 0.2] * 3)
    with pytest.warns(UndefinedScoreWarning, match=r"NaN in folds \[0, 1, 2\]"):
        found = logistic_cv(X, y, GRID, cv=3, scoring=lambda *_: next(given))
    assert float(found.C) == GRID[2] and float(found.best_score) == pytest.approx(0.2)


@pytest.mark.parametrize("k", [2, 3])
def test_a_solution_is_saved_whole(k: int, tmp_path: Path) -> None:
    X, y = planted(60, 3, k)
    for solution in (logistic_cv(X, y, GRID, cv=3), logistic(X, y, GRID)):
        solution.save(tmp_path / "solution.safetensors")
        loaded = LogisticSolution.load(tmp_path / "solution.safetensors")
        for field in fields(solution):
            a, b = getattr(solution, field.name), getattr(loaded, field.name)
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name
        assert torch.equal(loaded.predict(X), solution.predict(X))

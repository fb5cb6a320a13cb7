"""The frozen result: predictions, layers, copies; and what it says of itself."""

import copy
import dataclasses
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import relative
from torch import Tensor

from torchridge import RidgeSolution, logistic, ridge, ridge_cv, ridge_path
from torchridge.exceptions import GridEdgeWarning


def problem(device: torch.device, *batch: int) -> tuple[Tensor, Tensor]:
    X, y = (torch.randn(*batch, 20, columns, dtype=torch.float64) for columns in (4, 2))
    return X.to(device), y.to(device)


def test_predictions_are_affine_and_shaped_as_the_targets_were(device: torch.device) -> None:
    X, y = problem(device)
    solution = ridge(X, y, 1.0)
    torch.testing.assert_close(solution.predict(X), X @ solution.weight.T + solution.bias)
    assert solution.predict(X[0]).shape == (2,)
    assert solution.predict(X.reshape(4, 5, 4)).shape == (4, 5, 2)
    assert solution.predict(X[:0]).shape == (0, 2)
    assert solution.predict(X.float()).dtype is torch.float64
    vector = ridge(X, y[:, 0], 1.0)
    assert vector.weight.shape == (1, 4) and vector.bias.shape == (1,)
    assert vector.predict(X).shape == (20,) and vector.predict(X[0]).shape == ()
    assert ridge(X, y[:, :1], 1.0).predict(X).shape == (20, 1)


def test_predictions_of_paths_and_batches(device: torch.device) -> None:
    X, y = problem(device, 3)
    batch, path = ridge(X, y, 1.0), ridge_path(X, y, [0.1, 1.0])
    assert batch.weight.shape == (3, 2, 4) and path.weight.shape == (3, 2, 2, 4)
    assert path.predict(X).shape == (3, 2, 20, 2)
    for i in range(3):
        single = ridge(X[i], y[i], 1.0)
        torch.testing.assert_close(batch.predict(X)[i], single.predict(X[i]))
        torch.testing.assert_close(path.predict(X)[i, 1], single.predict(X[i]))
        torch.testing.assert_close(path.at(1).weight[i], single.weight)


def test_a_layer_computes_the_prediction(device: torch.device) -> None:
    X, y = problem(device)
    for solution in (ridge(X, y, 1.0), ridge(X.float(), y, 1.0), ridge(X, y[:, 0], 1.0, fit_intercept=False)):
        layer = solution.to_linear()
        rows = X.to(solution.weight.dtype)
        torch.testing.assert_close(layer(rows).squeeze(-1), solution.predict(rows))
        assert (layer.bias is not None) == solution.fit_intercept
        assert layer.weight.requires_grad and layer.weight.device == X.device
        layer.weight.data.zero_()
        assert solution.weight.any()
    with pytest.raises(ValueError, match=r"path\.at\(0\)\.to_linear\(\)"):
        ridge_path(X, y, [1.0]).to_linear()
    with pytest.raises(ValueError, match="`index`=0"):
        ridge(X, y, 1.0).at(0)


@pytest.mark.parametrize(
    ("error", "match", "X"),
    [
        (TypeError, "`X` should be a torch.Tensor, got list", [[1.0] * 4]),
        (TypeError, "`X` should be a torch.Tensor, got ndarray", np.ones((2, 4))),
        (ValueError, r"`X` has shape \(2, 3\), expected \(\.\.\., 4\)", torch.ones(2, 3)),
        (ValueError, r"`X` has shape \(\), expected", torch.tensor(1.0)),
        (TypeError, "`X` should be real", torch.ones(2, 4) + 0j),
        (ValueError, "one device, got .*meta", torch.ones(2, 4, device="meta")),
        (ValueError, r"`X` has shape \(2, 3\), expected \(n, 4\)", torch.ones(2, 3).to_sparse()),
    ],
)
def test_refused_rows_to_predict(error: type[Exception], match: str, X: object) -> None:
    with pytest.raises(error, match=match):
        ridge(*problem(torch.device("cpu")), 1.0).predict(X)


def test_a_solution_is_frozen_and_can_be_copied(device: torch.device) -> None:
    X, y = problem(device)
    solution = ridge_cv(X, y, cv=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.weight = solution.bias
    for copied in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        assert isinstance(copied, RidgeSolution)
        for field in dataclasses.fields(RidgeSolution):
            before, after = getattr(solution, field.name), getattr(copied, field.name)
            assert before.equal(after) if isinstance(before, Tensor) else before == after, field.name
    assert f"{solution.solver}: {solution.reason}" in repr(solution)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
@pytest.mark.parametrize("name", ["X", "y", "sample_weight", "penalty_factors", "prior", "alphas"])
def test_the_arguments_are_left_as_they_were(name: str, device: torch.device) -> None:
    X, y = problem(device)
    given = {
        "X": X,
        "y": y,
        "sample_weight": torch.rand(20, dtype=torch.float64, device=device),
        "penalty_factors": torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64, device=device),
        "prior": torch.ones(2, 4, dtype=torch.float64, device=device),
        "alphas": torch.tensor([1e-3, 1.0, 1e9], dtype=torch.float64, device=device),
    }
    before = given[name].clone()
    for solver in ("spectral", "dual"):
        for cv in ("loo", 4):
            ridge_cv(**given, cv=cv, solver=solver, standardize=True)
    ridge_path(**given)
    assert given[name].equal(before)


def test_the_edge_of_a_grid_warns_and_its_inside_does_not(device: torch.device) -> None:
    X, y = problem(device)
    y = y + 3 * X[:, :2]
    with pytest.warns(GridEdgeWarning, match="lies at the edge of the grid from 1e-05 to 0.0001"):
        ridge_cv(X, y, [1e-5, 1e-4], cv=4)
    with pytest.warns(GridEdgeWarning, match="1 of 2 targets"):
        y[:, 0] = torch.randn(20, dtype=torch.float64).to(device) * 1e-3
        ridge_cv(X, y, [1e-3, 1.0, 30.0], cv=4, alpha_per_target=True)
    assert ridge_cv(X, y, [1e-5], cv=4).alpha == 1e-5


def test_a_strength_for_each_target_is_chosen_as_if_alone(device: torch.device) -> None:
    X, y = problem(device)
    y = torch.stack([X[:, 0] + 0.5 * y[:, 0], X[:, 1] + 5 * y[:, 1]], 1)
    alphas = torch.logspace(-6, 9, 40, dtype=torch.float64)
    together = ridge_cv(X, y, alphas, cv=4, alpha_per_target=True)
    for k in range(2):
        alone = ridge_cv(X, y[:, k], alphas, cv=4)
        assert together.alpha[k] == alone.alpha
        torch.testing.assert_close(together.weight[k], alone.weight[0])
        torch.testing.assert_close(together.best_score[k], alone.best_score)


BOTH_POOLS = """
import threading
import numpy as np, torch
from sklearn.linear_model import Ridge
from torchridge import ridge
rng = np.random.default_rng(0)
X, y = rng.normal(size=(600, 200)), rng.normal(size=(600, 3))
expected = Ridge(2.0).fit(X, y).coef_
def work():
    for _ in range(4):
        np.matmul(X.T, X); torch.from_numpy(X).T @ torch.from_numpy(X)
        got = ridge(torch.from_numpy(X), torch.from_numpy(y), 2.0).weight.numpy()
        results.append(float(np.abs(got - expected).max()))
results = []
threads = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(results) == 12 and max(results) < 1e-10, results
"""


def test_right_beside_other_users_of_blas_in_several_threads() -> None:
    subprocess.run([sys.executable, "-c", BOTH_POOLS], check=True)


@pytest.mark.parametrize("index", [3, 99, -4, 1.5, True])
def test_a_strength_that_a_path_does_not_have(index: Any) -> None:
    X = torch.randn(20, 3, dtype=torch.float64)
    paths = (ridge_path(X, X[:, 0], [1.0, 2.0, 3.0]), logistic(X, (X[:, 0] > 0).long(), [1.0, 2.0, 3.0]))
    for path in paths:
        with pytest.raises(ValueError, match="`index`"):
            path.at(index)
        assert path.at(-1).weight.equal(path.at(2).weight)


def test_a_vector_of_rows_that_need_gradients() -> None:
    with pytest.raises(ValueError, match=r"expected \(\*b, n, d\).*`X\[:, None\]`"):
        ridge(torch.ones(5, requires_grad=True), torch.ones(5), 1.0)


def test_what_is_read_later_does_not_follow_the_callers_tensors(device: torch.device) -> None:
    X, y = torch.randn(30, 5, device=device).double(), torch.randn(30, device=device).double()
    alpha, factors = torch.tensor(2.0, device=device).double(), torch.ones(5, device=device).double()
    solution = ridge(X, y, alpha, penalty_factors=factors)
    want = ridge(X, y, 2.0).dof
    alpha.zero_()
    factors.zero_()
    assert float(solution.alpha) == 2.0 and abs(float(solution.dof) - float(want)) <= 1e-9
    wide = torch.randn(6, 30, device=device).double()
    few = ridge(wide, torch.randn(6, device=device).double(), 1.0)
    wide.mul_(0.5)
    with pytest.raises(ValueError, match="`X` was changed in place after the fit"):
        _ = few.unit_variance


@pytest.mark.parametrize("scale", [1e-8, 1e-5, 1.0, 1e6])
def test_what_is_known_of_a_batch_does_not_depend_on_units(scale: float, device: torch.device) -> None:
    X, y = torch.randn(2, 50, 4, device=device).double(), torch.randn(2, 50, device=device).double()
    want = ridge(X[0], y[0], 10.0, standardize=True)
    got = ridge(X * scale, y, 10.0, standardize=True)
    assert abs(float(got.dof[0]) - float(want.dof)) <= 1e-8
    assert relative(got.standard_errors[0] * scale, want.standard_errors) <= 1e-8


def test_a_solution_is_saved_whole(tmp_path: Path) -> None:
    X, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    made = [
        ridge(X, y, 1.0),
        ridge_path(X, y[:, 0], [0.1, 1.0]),
        ridge_cv(X, y, cv=5),
        ridge_cv(X.float(), y.float(), cv="loo", alpha_per_target=True),
        ridge(X, y, 1.0, solver="cg"),
    ]
    for solution in made:
        solution.save(tmp_path / "solution.safetensors")
        loaded = RidgeSolution.load(tmp_path / "solution.safetensors")
        for name in [f.name for f in fields(solution)] + ["dof", "rank", "residual_variance", "unit_variance"]:
            a, b = getattr(solution, name), getattr(loaded, name)
            same = a.equal(b) or bool((a.isnan() & b.isnan()).all()) if isinstance(a, Tensor) else a == b
            assert same or name == "diagnosis", name
        assert loaded.predict(X.to(loaded.weight.dtype)).equal(solution.predict(X.to(solution.weight.dtype)))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    solution = logistic(torch.randn(20, 2), torch.arange(20) % 2)
    solution.save(tmp_path / "solution.safetensors")
    with pytest.raises(ValueError, match=r"should be a file of kind 'torchridge\.ridge-solution/1'"):
        RidgeSolution.load(tmp_path / "solution.safetensors")

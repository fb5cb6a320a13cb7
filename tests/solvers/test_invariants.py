"""What must hold whatever the data: equalities between calls, and the statistics against their dense formulas."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import relative
from scipy.optimize import minimize_scalar
from torch import Tensor

from torchridge import Moments, RidgeSolution, ridge, ridge_cv, ridge_path

EDGES = "ignore::torchridge.exceptions.GridEdgeWarning"
SOLVERS = ("cholesky", "spectral", "dual", "svd")
sizes = st.integers(1, 12)


def problem(n: int, d: int, t: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64) + 2
    return X, torch.randn(n, t, generator=generator, dtype=torch.float64)


def hat(X: Tensor, alpha: float, s: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return centred rows times root weight, the inverse of gram + alpha I, and the hat matrix without intercept."""
    s = torch.ones_like(X[:, 0]) if s is None else s
    x = (X - s / s.sum() @ X) * s.sqrt()[:, None]
    inverse = torch.linalg.inv(x.T @ x + alpha * torch.eye(X.shape[1], dtype=torch.float64))
    return x, inverse, x @ inverse @ x.T


@settings(deadline=None, derandomize=True, max_examples=60, database=None)
@given(
    n=sizes, d=sizes, t=st.integers(1, 3), exponent=st.integers(-3, 4), intercept=st.booleans(), seed=st.integers(0, 9)
)
def test_the_gradient_of_the_objective_is_zero(
    n: int, d: int, t: int, exponent: int, intercept: bool, seed: int
) -> None:
    X, y = problem(n, d, t, seed)
    s = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    alpha = 10.0**exponent
    solution = ridge(X, y, alpha, sample_weight=s, fit_intercept=intercept)
    error = (solution.predict(X) - y) * s[:, None]
    gradient = error.T @ X + alpha * solution.weight
    size = (y * s[:, None]).abs().sum() * X.abs().max() + 1
    assert float(gradient.abs().max() / size) <= 1e-12
    assert float((error.sum(0).abs().max() if intercept else solution.bias.abs().max()) / size) <= 1e-12


@settings(deadline=None, derandomize=True, max_examples=40, database=None)
@given(n=st.integers(2, 12), d=sizes, seed=st.integers(0, 9))
def test_all_solvers_and_all_doors_agree(n: int, d: int, seed: int) -> None:
    X, y = problem(n, d, 2, seed)
    reference = ridge(X, y, 0.5)
    solutions = [ridge(X, y, 0.5, solver=name) for name in SOLVERS]
    solutions += [ridge(Moments().update(X, y), 0.5), ridge_path(X, y, [9.0, 0.5]).at(1)]
    solutions += [ridge_cv(X, y, [0.5]), ridge_cv(X, y, [0.5], cv=2)]
    for solution in solutions:
        for name in ("weight", "bias", "dof", "unit_variance"):
            got, expected = getattr(solution, name), getattr(reference, name)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11, msg=f"{name} of {solution.solver}")
        assert solution.rank == min(n - 1, d)
        assert solution.n_samples == n


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (12, 12)])
def test_order_and_repetition_of_rows_and_columns(shape: tuple[int, int], solver: str, device: torch.device) -> None:
    X, y = (v.to(device) for v in problem(*shape))
    n, d = shape
    weight = ridge(X, y, 0.7, solver=solver).weight
    rows, columns = torch.randperm(n, device=device), torch.randperm(d, device=device)
    assert relative(ridge(X[rows], y[rows], 0.7, solver=solver).weight, weight) <= 1e-10
    assert relative(ridge(X[:, columns], y, 0.7, solver=solver).weight, weight[:, columns]) <= 1e-10
    assert relative(ridge(X, y[:, [1, 0]], 0.7, solver=solver).weight, weight[[1, 0]]) <= 1e-12
    counts = torch.randint(0, 4, (n,), device=device)
    counts[:3] = torch.tensor([1, 2, 3])
    repeated = ridge(X.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0), 0.7, solver=solver).weight
    assert relative(ridge(X, y, 0.7, sample_weight=counts, solver=solver).weight, repeated) <= 1e-10
    for factor in (1e-12, 3.0, 1e12):
        scaled = ridge(
            X, y, 0.7 * factor, sample_weight=torch.full((n,), factor, dtype=X.dtype, device=device), solver=solver
        )
        assert relative(scaled.weight, weight) <= 1e-9


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_standardizing_undoes_the_units(shape: tuple[int, int], device: torch.device) -> None:
    X, y = (v.to(device) for v in problem(*shape))
    units = torch.logspace(-4, 4, shape[1], dtype=torch.float64, device=device)
    plain, scaled = (ridge(x, y, 0.7, standardize=True) for x in (X, X * units + 5))
    assert relative(scaled.weight * units, plain.weight) <= 1e-9
    assert relative(scaled.dof, plain.dof) <= 1e-9


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
@pytest.mark.parametrize("via_moments", [False, True])
def test_a_strength_for_each_target_is_separate_calls(
    shape: tuple[int, int], via_moments: bool, device: torch.device
) -> None:
    X, y = (v.to(device) for v in problem(*shape, 3))
    source: tuple[Any, ...] = (Moments().update(X, y),) if via_moments else (X, y)
    alphas = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64, device=device)
    together = ridge(*source, alpha=alphas)
    path = ridge_path(*source, alphas=alphas)
    for k, alpha in enumerate(alphas.tolist()):
        alone = ridge(X, y[:, k : k + 1], alpha)
        for solution in (together, path.at(k)):
            assert relative(solution.weight[k], alone.weight[0]) <= 1e-9
            assert relative(solution.bias[k], alone.bias[0]) <= 1e-9
            assert relative(solution.standard_errors[k], alone.standard_errors[0]) <= 1e-8 or shape[0] < shape[1]
        assert relative(together.dof[k], alone.dof) <= 1e-9
        assert relative(path.dof[k], alone.dof) <= 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_degrees_of_freedom_and_standard_errors(
    alpha: float, weighted: bool, solver: str, device: torch.device
) -> None:
    X, y = problem(30, 5)
    s = torch.rand(30, dtype=torch.float64) + 0.2 if weighted else None
    solution = ridge(
        X.to(device), y.to(device), alpha, sample_weight=None if s is None else s.to(device), solver=solver
    )
    x, inverse, h = hat(X, alpha, s)
    assert relative(solution.dof, h.trace()) <= 1e-9
    residual = (y - solution.predict(X.to(device)).cpu()) ** 2
    squares = residual.sum(0) if s is None else s @ residual
    variance = squares / (30 - h.trace() - 1)
    assert relative(solution.residual_variance, variance) <= 1e-9
    expected = (variance[:, None] * (inverse @ x.T @ x @ inverse).diagonal()).sqrt()
    assert relative(solution.standard_errors, expected) <= 1e-9


def test_standard_errors_without_penalty_are_those_of_least_squares(device: torch.device) -> None:
    X, y = problem(40, 4, 1)
    design = torch.cat([torch.ones(40, 1, dtype=torch.float64), X], 1)
    inverse = torch.linalg.inv(design.T @ design)
    residual = y - design @ inverse @ design.T @ y
    expected = (residual.square().sum() / (40 - 5) * inverse.diagonal()).sqrt()[1:]
    assert relative(ridge(X.to(device), y.to(device), 0.0).standard_errors[0], expected) <= 1e-10


def test_degrees_of_freedom_and_norm_fall_with_the_strength(device: torch.device) -> None:
    for shape in ((30, 6), (6, 30)):
        X, y = (v.to(device) for v in problem(*shape))
        path = ridge_path(X, y, torch.logspace(-6, 6, 40))
        assert (path.dof.diff() < 0).all()
        assert (path.weight.square().sum((1, 2)).diff() < 0).all()


@pytest.mark.filterwarnings(EDGES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(25, 5), (8, 20)])
def test_generalized_cross_validation(shape: tuple[int, int], weighted: bool, device: torch.device) -> None:
    X, y = problem(*shape)
    n = shape[0]
    s = torch.rand(n, dtype=torch.float64) + 0.2 if weighted else torch.ones(n, dtype=torch.float64)
    alphas = torch.tensor([0.3, 3.0, 30.0], dtype=torch.float64)
    solution = ridge_cv(X.to(device), y.to(device), [*alphas.tolist(), 100000.0, 1e-05], sample_weight=s.to(device))
    assert solution.scores is not None
    for i, alpha in enumerate(alphas.tolist()):
        _, _, h = hat(X, alpha, s)
        centred = (y - s / s.sum() @ y) * s.sqrt()[:, None]
        squares = (centred - h @ centred).square().sum(0) / s.sum()
        assert relative(-solution.scores[i], squares / (1 - (h.trace() + 1) / n) ** 2) <= 1e-9


@pytest.mark.filterwarnings(EDGES)
@pytest.mark.parametrize("shape", [(25, 5), (8, 20)])
def test_evidence_is_the_marginal_likelihood(shape: tuple[int, int], device: torch.device) -> None:
    X, y = problem(*shape, 1)
    n = shape[0]
    x, z = X - X.mean(0), (y - y.mean(0))[:, 0]
    basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), torch.eye(n, dtype=torch.float64)], 1))[
        0
    ][:, 1:]
    kernel, target = basis.T @ x @ x.T @ basis, basis.T @ z  # the intercept is integrated out

    def minus_twice_log_likelihood(log_noise: float, alpha: float) -> float:
        covariance = math.exp(log_noise) * (torch.eye(n - 1, dtype=torch.float64) + kernel / alpha)
        return float(torch.logdet(covariance) + target @ torch.linalg.solve(covariance, target))

    alphas = [0.1, 1.0, 10.0, 100.0]
    dense = [
        minimize_scalar(minus_twice_log_likelihood, args=(a,), bounds=(-20, 20), method="bounded").fun for a in alphas
    ]
    solution = ridge_cv(X.to(device), y.to(device), alphas, cv="evidence")
    assert solution.scores is not None
    scores = -solution.scores[:, 0].cpu() * (n - 1)
    expected = torch.tensor(dense, dtype=torch.float64)
    assert relative(scores.diff(), expected.diff()) <= 1e-5


@pytest.mark.filterwarnings(EDGES)
@pytest.mark.parametrize("cv", ["gcv", "loo", "evidence", 5])
@pytest.mark.parametrize("noise", [0.1, 3.0, 1000.0])
@pytest.mark.parametrize("shape", [(60, 6), (20, 50)])
def test_the_automatic_grid_is_as_good_as_a_dense_one(
    shape: tuple[int, int], noise: float, cv: Any, device: torch.device
) -> None:
    X, y = (v.to(device) for v in problem(*shape, 1, seed=3))
    X = X * torch.logspace(-2, 1, shape[1], dtype=torch.float64, device=device)
    y = X.sum(1) + noise * y[:, 0]
    auto = ridge_cv(X, y, cv=cv)
    top = float(torch.linalg.matrix_norm(X - X.mean(0), 2)) ** 2
    dense = ridge_cv(X, y, torch.logspace(-9, 2, 1000, dtype=torch.float64) * top, cv=cv)
    assert auto.best_score is not None and dense.best_score is not None
    assert float(dense.best_score - auto.best_score) <= 1e-3 * abs(float(dense.best_score))


@pytest.mark.parametrize("cv", ["gcv", "loo", "evidence", 5])
def test_the_automatic_grid_has_no_units(cv: Any, device: torch.device) -> None:
    X, y = (v.to(device) for v in problem(60, 6, 1))
    y = X.sum(1, keepdim=True) + y
    plain = ridge_cv(X, y, cv=cv)
    for factor in (1e-6, 1e6):
        assert float(ridge_cv(X * factor, y, cv=cv).alpha) == pytest.approx(float(plain.alpha) * factor**2, rel=1e-6)
        assert float(ridge_cv(X, y * factor, cv=cv).alpha) == pytest.approx(float(plain.alpha), rel=1e-6)


def chosen(solution: RidgeSolution) -> float:
    return float(solution.alpha)


def test_ties_take_the_stronger_penalty(device: torch.device) -> None:
    X, y = (v.to(device) for v in problem(20, 3, 1))
    y = torch.full_like(y, 2.5)  # every strength predicts it alike
    for alphas in ([1.0, 10.0, 5.0, 0.1], [10.0, 1.0, 10.0]):
        with pytest.warns(UserWarning, match="edge of the grid"):
            assert chosen(ridge_cv(X, y, alphas, cv=4)) == 10.0


@pytest.mark.filterwarnings("ignore::torchridge.TorchridgeWarning")
@pytest.mark.parametrize("cv", ["loo", "gcv", "evidence", 3, "splits", None])
@pytest.mark.parametrize("n, d", [(30, 4), (9, 14), (9, 300)])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_call_leaves_what_it_was_given_as_it_was(
    intercept: bool, standardize: bool, n: int, d: int, cv: Any, device: torch.device
) -> None:
    X, y = (a.to(device) for a in problem(n, d, t=40))
    given = [X, y, torch.rand(n, dtype=X.dtype, device=device) + 0.5, torch.rand(d, dtype=X.dtype, device=device) + 0.5]
    given[3][1] = 0
    before = [a.clone() for a in given]
    options: dict[str, Any] = {"fit_intercept": intercept, "standardize": standardize}
    options |= {"sample_weight": given[2], "penalty_factors": given[3]}
    ids = torch.arange(n, device=device)
    splits = [(ids[ids % 3 != k].tolist(), ids[ids % 3 == k].tolist()) for k in range(3)]
    if cv is None:
        ridge(X, y, 0.1, **options).predict(X)
        ridge_path(X, y, [0.1, 1.0], **options).predict(X)
    else:
        ridge_cv(X, y, [0.1, 1.0, 10.0], cv=splits if cv == "splits" else cv, **options).score(X, y)
    assert all(a.equal(b) for a, b in zip(given, before, strict=True))

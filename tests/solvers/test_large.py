"""Conjugate gradients on products with X: against direct solves in float64, in every shape that X can come in."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import aslinearoperator
from sklearn.linear_model import Ridge
from tolerances import FOLD_SCORES, ITERATED, ROUNDED_ONCE

import torchridge
from torchridge import LinearOperator, Moments, ridge, ridge_cv, ridge_path
from torchridge.exceptions import ConvergenceWarning, GridEdgeWarning
from torchridge.linear.ridge import choose as select
from torchridge.solvers.iterative import conjugate_gradients as krylov
from torchridge.solvers.iterative import nystrom, solve_many, trace
from torchridge.solvers.iterative.operators import Dense
from torchridge.solvers.iterative.sparse import SparseTensor
from torchridge.solvers.iterative.standard_form import design
from torchridge.solvers.least_squares.objective import Objective

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:Sparse invariant checks")

KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "dense": lambda X: X,
    "dense columns": lambda X: X.T.contiguous().T,
    "torch CSR": lambda X: X.to_sparse_csr(),
    "torch CSC": lambda X: X.to_sparse_csc(),
    "torch COO": lambda X: X.to_sparse(),
    "scipy matrix": lambda X: sparse.csr_matrix(X.numpy()),
    "scipy array, columns": lambda X: sparse.csc_array(X.numpy()),
    "operator": lambda X: LinearOperator((X.shape[0], X.shape[1]), lambda v: X @ v, lambda r: X.T @ r),
    "scipy operator": lambda X: aslinearoperator(X.numpy()),
}
SHAPES = {"tall": (60, 25), "wide": (25, 60), "very wide": (12, 60)}
OPTIONS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "plain": lambda n, d: {},
    "no intercept": lambda n, d: {"fit_intercept": False},
    "weights": lambda n, d: {"sample_weight": torch.arange(n).remainder(4).double()},
    "factors": lambda n, d: {"penalty_factors": torch.linspace(0.1, 3, d, dtype=torch.float64)},
    "free features": lambda n, d: {"penalty_factors": (torch.arange(d) != 2).double() * (torch.arange(d) != 5)},
    "prior": lambda n, d: {"prior": torch.arange(2 * d, dtype=torch.float64).reshape(2, d).cos()},
    "standardize": lambda n, d: {"standardize": True},
    "standardize, no intercept": lambda n, d: {"standardize": True, "fit_intercept": False},
    "all": lambda n, d: {
        "sample_weight": torch.arange(n).remainder(4).double(),
        "penalty_factors": (torch.arange(d) != 2) * torch.linspace(0.5, 2, d, dtype=torch.float64),
        "prior": torch.arange(2 * d, dtype=torch.float64).reshape(2, d).cos(),
        "standardize": True,
    },
}


def rows(n: int, d: int, t: int = 2, mean: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(n + d)
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    X = torch.where(X.abs() < 0.8, 0.0, X + mean) * torch.linspace(2, 0.3, d, dtype=torch.float64)
    return X, torch.randn(n, t, generator=g, dtype=torch.float64) + 3


def residual(X: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, alpha: float) -> float:
    """Without intercept: ‖Xᵀ(y − Xw) − αw‖ / ‖Xᵀy‖ in float64."""
    X, y, w = X.double(), y.double(), weight.double().T
    return float((X.T @ (y - X @ w) - alpha * w).norm() / (X.T @ y).norm())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_strength(kind: str, shape: str, options: str) -> None:
    if "operator" in kind and "standardize" in OPTIONS[options](1, 1):
        pytest.skip("an operator does not tell its variances; refused, see below")
    n, d = SHAPES[shape]
    X, y = rows(n, d)
    given = OPTIONS[options](n, d)
    expected = ridge(X, y, 0.7, **given)
    got = ridge(KINDS[kind](X), y, 0.7, solver="cg", tol=1e-13, **given)
    assert got.solver == "cg"
    assert bool(got.converged.all())
    assert oracles.relative(got.weight, expected.weight) < ITERATED
    assert float((got.bias - expected.bias).abs().max()) < ITERATED * 10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["dense", "scipy matrix", "operator"])
def test_paths_and_a_strength_for_each_target(kind: str, shape: str) -> None:
    X, y = rows(*SHAPES[shape], t=3)
    alphas = torch.tensor([10.0, 0.1, 1.0], dtype=torch.float64)
    for function in (ridge, ridge_path):
        expected = function(X, y, alphas)
        got = function(KINDS[kind](X), y, alphas, solver="cg", tol=1e-13)
        assert oracles.relative(got.weight, expected.weight) < ITERATED
        assert oracles.relative(got.bias, expected.bias) < ITERATED
        assert got.alpha.tolist() == expected.alpha.tolist()
        assert got.residual.shape == got.converged.shape == got.bias.shape == expected.residual_variance.shape
    assert torch.equal(got.at(1).weight, got.weight[1])
    assert torch.equal(got.at(1).residual, got.residual[1])


def test_against_scikit_learn() -> None:
    X, y = rows(200, 90, t=1)
    s = torch.rand(200, dtype=torch.float64)
    theirs = Ridge(alpha=0.3, solver="sparse_cg", tol=1e-14).fit(
        sparse.csr_matrix(X.numpy()), y[:, 0].numpy(), s.numpy()
    )
    ours = ridge(X.to_sparse_csr(), y[:, 0], 0.3, sample_weight=s, solver="cg", tol=1e-12)
    np.testing.assert_allclose(ours.weight[0].numpy(), theirs.coef_, atol=1e-7 * np.abs(theirs.coef_).max())
    assert float(ours.bias) == pytest.approx(theirs.intercept_, rel=1e-7)
    assert ours.vector_target


@pytest.mark.parametrize("shape", [(512, 128), (128, 512)])
def test_the_residual_is_what_it_says_and_float32_data_reach_it(shape: tuple[int, int]) -> None:
    plan = oracles.planted(*shape, t=1, decades=3)
    X, y = plan.X.float(), plan.y
    alpha = 1e-6 * float(plan.sigma[0]) ** 2
    got = ridge(X, y, alpha, solver="cg", fit_intercept=False)
    assert got.weight.dtype is torch.float64  # the wider of X and y
    true = residual(X, y, got.weight, alpha)
    assert true <= 1e-8
    assert true == pytest.approx(float(got.residual), rel=1e-3, abs=1e-14)
    rounded = ridge(X, y.float(), alpha, solver="cg", fit_intercept=False, tol=1e-10)
    assert rounded.weight.dtype is torch.float32
    exact = ridge(X.double(), y.float().double(), alpha, fit_intercept=False)
    assert oracles.relative(rounded.weight, exact.weight) < 10 * ROUNDED_ONCE


def test_half_precision_and_integers_are_taken() -> None:
    X, y = rows(60, 25)
    for narrow in (X.bfloat16(), X.half(), X.round().int()):
        expected = ridge(narrow.double(), y, 1.0)
        assert oracles.relative(ridge(narrow, y, 1.0, solver="cg", tol=1e-12).weight, expected.weight) < ITERATED


@pytest.mark.parametrize("rank", [None, 40])
def test_the_preconditioner_takes_fewer_steps_on_a_falling_spectrum(rank: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(600, 300, generator=g, dtype=torch.float64) * torch.arange(1, 301).double() ** -1.5
    y = X.sum(1) + torch.randn(600, generator=g, dtype=torch.float64)
    plain = ridge(X, y, 1e-3, solver="cg", rank=0)
    ours = ridge(X, y, 1e-3, solver="cg", rank=rank)
    assert 3 * ours.n_iter <= plain.n_iter
    assert "rank 0" in plain.reason
    assert oracles.relative(ours.weight, plain.weight) < 1e-4


def test_a_flat_spectrum_gets_no_sketch_beyond_the_first_look() -> None:
    """Where few steps do, the products of a sketch of 16 columns would cost more than it could save."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(3000, 400, generator=g, dtype=torch.float64)
    X = torch.where(X.abs() < 2, 0, X)
    y = X.sum(1) + torch.randn(3000, generator=g, dtype=torch.float64)
    ones = torch.ones(400, dtype=torch.float64)  # without factors a sparse matrix is first tried without a sketch
    plain = ridge(X.to_sparse_csr(), y, 100.0, solver="cg", rank=0, penalty_factors=ones)
    ours = ridge(X.to_sparse_csr(), y, 100.0, solver="cg", penalty_factors=ones)
    assert "of rank 4," in ours.reason
    assert ours.n_iter <= plain.n_iter + 1
    many = ridge(
        X.to_sparse_csr(), torch.stack([y] * 50, 1), 100.0, solver="cg", penalty_factors=ones
    )  # whose steps share the sketch
    assert int(many.reason.split("of rank ")[1].split(",")[0]) >= 16
    assert oracles.relative(ours.weight, ridge(X, y, 100.0).weight) < 1e-7


def test_directions_of_one_size_do_not_hide_each_other() -> None:
    """Eight equal eigenvalues look flat to a sketch of four columns, and must not end it there."""
    g = torch.Generator().manual_seed(0)
    scale = torch.ones(300, dtype=torch.float64)
    scale[:8] = 300
    X = torch.randn(900, 300, generator=g, dtype=torch.float64) * scale
    y = X @ torch.randn(300, generator=g, dtype=torch.float64)
    ours, plain = (ridge(X, y, 1.0, solver="cg", rank=rank) for rank in (None, 0))
    assert int(ours.reason.split("of rank ")[1].split(",")[0]) >= 16
    assert ours.n_iter < plain.n_iter


def test_mean_far_from_zero_does_not_cost_the_tolerance() -> None:
    X, y = rows(80, 20, mean=1e4)
    X = X + 1e4
    got = ridge(X.float(), y, 1.0, solver="cg")
    expected = ridge(X.float().double(), y, 1.0)
    assert oracles.relative(got.weight, expected.weight) < 1e-6


def test_no_penalty_gives_the_minimum_norm() -> None:
    X, y = rows(20, 50)
    got = ridge(X, y, 0.0, solver="cg", tol=1e-12)
    assert oracles.relative(got.weight, oracles.least_norm(X, y)) < 1e-5


def test_a_target_of_zeros_is_solved_by_zeros() -> None:
    X, y = rows(30, 10)
    got = ridge(X, y * torch.tensor([0.0, 1.0]), 1.0, solver="cg")
    assert not got.weight[0].any()
    assert got.residual[0] == 0
    assert bool(got.converged.all())


@pytest.mark.parametrize("scoring", ["mse", "r2"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_folds_equal_the_dense_route(shape: str, options: str, scoring: str) -> None:
    n, d = SHAPES[shape]
    X, y = rows(n, d)
    given, alphas = OPTIONS[options](n, d), [0.1, 1.0, 30.0]
    expected = ridge_cv(X, y, alphas, cv=4, scoring=scoring, **given)
    got = ridge_cv(sparse.csr_matrix(X.numpy()), y, alphas, cv=4, scoring=scoring, solver="cg", tol=1e-13, **given)
    assert oracles.relative(got.fold_scores, expected.fold_scores) < FOLD_SCORES
    assert oracles.relative(got.scores, expected.scores) < FOLD_SCORES
    assert got.alpha == expected.alpha
    assert got.scoring == scoring
    assert oracles.relative(got.weight, expected.weight) < ITERATED


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_splits_ids_groups_and_a_strength_for_each_target() -> None:
    X, y = rows(40, 15, t=3)
    ids = torch.arange(40).remainder(3)
    pairs = [(range(20), range(20, 40)), (range(10, 40), range(8))]
    for given in ({"cv": ids}, {"cv": pairs}, {"cv": 3, "groups": torch.arange(40) // 5}):
        expected = ridge_cv(X, y, [0.1, 5.0, 50.0], alpha_per_target=True, **given)
        got = ridge_cv(X, y, [0.1, 5.0, 50.0], alpha_per_target=True, solver="cg", tol=1e-12, **given)
        assert oracles.relative(got.fold_scores, expected.fold_scores) < FOLD_SCORES
        assert got.alpha.tolist() == expected.alpha.tolist()
        assert got.best_score.shape == (3,)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ["tall", "wide"])
@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_gcv_within_its_reported_error(shape: str, options: str) -> None:
    n, d = SHAPES[shape]
    X, y = rows(n, d)
    given, alphas = OPTIONS[options](n, d), [3.0, 10.0, 30.0, 100.0]
    expected = ridge_cv(X, y, alphas, cv="gcv", **given)
    got = ridge_cv(X, y, alphas, cv="gcv", solver="cg", tol=1e-12, rank=5, **given)
    assert got.score_errors.shape == got.scores.shape
    # Student's t with 14 degrees of freedom passes 5 once in 10,000 times.
    assert bool(((got.scores - expected.scores).abs() <= 5 * got.score_errors - 1e-6 * expected.scores).all())
    if shape == "tall":  # of few rows the effective degrees leave few, and GCV divides by their square
        assert float(got.score_errors.max()) < 0.2 * float((-expected.scores).max())


def test_the_trace_is_exact_where_the_approximation_is_and_its_error_is_honest() -> None:
    g = torch.Generator().manual_seed(3)
    X = torch.randn(100, 60, generator=g, dtype=torch.float64)
    form = design(Dense(X), None, Objective(intercept=False))
    alpha = torch.tensor([1.0, 50.0], dtype=torch.float64)
    eigvals = torch.linalg.svdvals(X) ** 2
    exact = (eigvals / (eigvals + alpha[:, None])).sum(1)
    rule = solve_many.Rule(1e-12, 500)
    full = trace.degrees_of_freedom(form, solve_many.approximate(form, 1.0, 1, 60, 1e-8), alpha, rule)
    torch.testing.assert_close(full.value, exact, atol=1e-3, rtol=0)
    for rank in (0, 20):
        some = trace.degrees_of_freedom(form, solve_many.approximate(form, 1.0, 1, rank, 1e-8), alpha, rule)
        assert bool(((some.value - exact).abs() <= 5 * some.error).all())
        assert bool((some.error < 1.0).all())


def test_nystrom_eigenvalues_and_vectors() -> None:
    plan = oracles.planted(256, 64, decades=4)
    gram = plan.X.T @ plan.X
    sketch = nystrom.Sketch(lambda v: (gram @ v.double()).to(v.dtype), 64, torch.float64, torch.device("cpu"))
    sketch.grow(40)
    before = sketch.eigvals()
    found = sketch.finish()
    eye = found.vectors.T @ found.vectors
    torch.testing.assert_close(eye, torch.eye(found.rank, dtype=torch.float64), atol=1e-8, rtol=0)
    assert bool((found.eigvals <= plan.sigma[: found.rank] ** 2 * (1 + 1e-8)).all())  # never above
    torch.testing.assert_close(found.eigvals[:10], plan.sigma[:10] ** 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(before[:10], found.eigvals[:10], rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_not_converged_is_a_warning_and_a_status() -> None:
    X, y = rows(60, 40)
    with pytest.warns(ConvergenceWarning, match=r"`max_iter`=2 steps.*above `tol`=1e-08. Raise `max_iter`"):
        got = ridge(X, y, 1e-6, solver="cg", max_iter=2, rank=0)
    assert got.n_iter == 2
    assert not bool(got.converged.any())
    assert bool((got.residual > 1e-8).all())
    with pytest.warns(ConvergenceWarning, match=r"at the limit of rounding.*Raise `tol`"):
        got = ridge(X, y, 1e-3, solver="cg", tol=1e-20)
    assert not bool(got.converged.any())
    assert float(got.residual.max()) < 1e-12
    with pytest.warns(ConvergenceWarning, match="`max_iter`=2"):
        ridge_cv(X, y, [1e-6, 1e-5], cv=3, solver="cg", max_iter=2, rank=0)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_auto_takes_products_where_a_gram_matrix_is_out_of_reach() -> None:
    choose = select.choose_products
    assert choose("auto", "dense", n=2000, d=2000, columns=1) is None
    assert choose("auto", "dense", n=20_000, d=50_000, columns=1).solver == "cg"
    assert choose("auto", "dense", n=20_000, d=50_000, columns=1000) is None
    assert choose("auto", "sparse", n=100, d=100, columns=1) is None
    assert choose("auto", "sparse", n=200_000, d=200_000, columns=1).solver == "cg"
    X, y = rows(60, 25)
    assert ridge(KINDS["operator"](X), y, 1.0).solver == "cg"
    for kind in ("torch CSR", "torch COO", "scipy matrix"):
        small = ridge(KINDS[kind](X), y, 1.0)
        assert small.solver != "cg"
        assert torch.equal(small.weight, ridge(X, y, 1.0).weight)
        assert torch.equal(
            ridge_cv(KINDS[kind](X), y, [1.0, 2.0, 3e3], cv="loo").scores,
            ridge_cv(X, y, [1.0, 2.0, 3e3], cv="loo").scores,
        )


def test_auto_on_a_sparse_matrix_that_is_never_filled() -> None:
    g = np.random.default_rng(0)
    X = sparse.random_array((6_000, 9_000), density=1e-3, rng=g, format="csr")  # 432 MB when dense
    y = torch.from_numpy(X @ g.standard_normal(9_000))
    got = ridge(X, y, 1.0)
    assert got.solver == "cg"
    assert "GiB if it were made dense" in got.reason
    w, b = got.weight[0].numpy(), float(got.bias)
    error = y.numpy() - X @ w - b
    gradient = X.T @ error - w
    assert abs(error.sum()) < 1e-6 * np.abs(error).sum()
    centred = X.T @ (y.numpy() - y.numpy().mean())
    assert np.linalg.norm(gradient) < 2e-8 * np.linalg.norm(centred)
    with pytest.warns(GridEdgeWarning):
        found = ridge_cv(X, y, [10.0, 30.0], cv="gcv", tol=1e-6)
    assert found.solver == "cg"
    assert found.score_errors.shape == found.scores.shape
    np.testing.assert_allclose(got.predict(X).numpy(), X @ w + b, rtol=1e-9, atol=1e-12)


def test_predict_takes_what_fit_took() -> None:
    X, y = rows(30, 12)
    solution = ridge(X, y, 1.0)
    path = ridge_path(X, y, [1.0, 2.0])
    for make in KINDS.values():
        torch.testing.assert_close(solution.predict(make(X)), solution.predict(X))
        torch.testing.assert_close(path.predict(make(X)), path.predict(X))


def test_sparse_tensors_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(50, 20)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    for given in (OPTIONS["all"](50, 20), {}):
        got = ridge(X.to_sparse_csr(), y, 0.5, solver="cg", tol=1e-13, **given)
        assert oracles.relative(got.weight, ridge(X, y, 0.5, **given).weight) < ITERATED


def test_products_of_sparse_tensors(device: torch.device) -> None:
    X, _ = rows(30, 12)
    matrix = SparseTensor(X.to(device).to_sparse_csr())
    v, r = (
        torch.randn(12, 3, dtype=torch.float64, device=device),
        torch.randn(30, 3, dtype=torch.float64, device=device),
    )
    X = X.to(device)
    torch.testing.assert_close(matrix.matmul(v), X @ v)
    torch.testing.assert_close(matrix.rmatmul(r), X.T @ r)
    torch.testing.assert_close(matrix.matmul(v.float()), X.float() @ v.float())
    torch.testing.assert_close(matrix.squares(r, v[:, 0]), ((X - v[:, 0]) ** 2).T @ r)


def test_duplicate_entries_add_up() -> None:
    X, y = rows(30, 12)
    coo = sparse.coo_matrix(X.numpy())
    twice = sparse.coo_matrix((np.r_[coo.data, coo.data], (np.r_[coo.row, coo.row], np.r_[coo.col, coo.col])))
    got = ridge(twice, y, 1.0, solver="cg", standardize=True, tol=1e-12)
    assert oracles.relative(got.weight, ridge(2 * X, y, 1.0, standardize=True).weight) < ITERATED


X, Y = rows(12, 4)
NAN = torch.where(torch.arange(48).reshape(12, 4) == 17, float("nan"), X)
CG: dict[str, Any] = {"solver": "cg"}
BAD: dict[str, tuple[type[Exception], str, Any, Any, dict[str, Any]]] = {
    "dense NaN": (ValueError, "`X` holds NaN, first in row 4", NAN, Y, CG),
    "CSR NaN": (ValueError, "`X` holds NaN, first in row 4", NAN.to_sparse_csr(), Y, CG),
    "scipy NaN": (ValueError, "`X` holds NaN, first in row 4", sparse.csr_matrix(NAN.numpy()), Y, CG),
    "complex": (TypeError, "`X` should be real", X + 0j, Y, CG),
    "complex CSR": (TypeError, "`X` should be real", (X + 0j).to_sparse_csr(), Y, CG),
    "complex scipy": (TypeError, "`X` should hold real numbers", sparse.csr_matrix((X + 0j).numpy()), Y, CG),
    "batch": (ValueError, r"`X` should have shape \(rows, features\)", X[None], Y[None], CG),
    "empty": (ValueError, r"`X` is empty, got shape \(0, 4\)", sparse.csr_matrix((0, 4)), Y[:0], CG),
    "a list": (TypeError, "`X` should be a torch.Tensor", X.tolist(), Y, CG),
    "y an array": (TypeError, "`y` should be a torch.Tensor", X.to_sparse_csr(), Y.numpy(), CG),
    "y missing": (TypeError, "`y` is missing", X, None, CG),
    "y sparse": (TypeError, "`y` should be a dense tensor", X, Y.to_sparse(), CG),
    "y short": (ValueError, "`y` has 11 rows, but `X` has 12", X.to_sparse_csr(), Y[:-1], CG),
    "y NaN": (ValueError, "`y` holds NaN, first in row 0", X, Y * float("nan"), CG),
    "y elsewhere": (ValueError, "one device", X, Y.to("meta"), CG),
    "weights": (ValueError, "`sample_weight` should not be negative", X, Y, {**CG, "sample_weight": -torch.ones(12)}),
    "weights zero": (ValueError, "`sample_weight` is zero", X, Y, {**CG, "sample_weight": torch.zeros(12)}),
    "factors": (ValueError, "`penalty_factors` should have shape", X, Y, {**CG, "penalty_factors": [1.0]}),
    "tol": (ValueError, "`tol` should be a finite number above 0", X, Y, {**CG, "tol": 0.0}),
    "max_iter": (ValueError, "`max_iter` should be an integer of at least 1", X, Y, {**CG, "max_iter": 0}),
    "rank": (ValueError, "`rank` should be an integer of at least 0", X, Y, {**CG, "rank": -1}),
    "tol of a direct solver": (ValueError, "`tol` belongs to solver='cg'", X, Y, {"tol": 1e-3}),
    "rank of a direct solver": (ValueError, "`rank` belongs to solver='cg'", X, Y, {"rank": 3, "solver": "dual"}),
    "moments_dtype": (ValueError, "`moments_dtype` has no use", X, Y, {**CG, "moments_dtype": torch.float32}),
    "gradients": (ValueError, "gives no gradients", X.clone().requires_grad_(), Y, CG),
    "gradients in y": (ValueError, "gives no gradients", X, Y.clone().requires_grad_(), CG),
    "direct on an operator": (ValueError, "needs the entries of `X`", KINDS["operator"](X), Y, {"solver": "dual"}),
    "standardized operator": (
        ValueError,
        "`standardize` needs the entries",
        KINDS["operator"](X),
        Y,
        {"standardize": True},
    ),
    "wrong transpose": (
        ValueError,
        "`rmatmul` is not the transpose",
        LinearOperator((12, 4), lambda v: X @ v, lambda r: 2 * X.T @ r),
        Y,
        {},
    ),
    "wrong product": (
        ValueError,
        r"`matmul` of \(4, 1\) should be a tensor \(12, 1\), got \(4, 1\)",
        LinearOperator((12, 4), lambda v: v, lambda r: X.T @ r),
        Y,
        {},
    ),
}


@pytest.mark.parametrize("entry", [ridge, ridge_path, ridge_cv])
@pytest.mark.parametrize("name", BAD)
def test_refused(name: str, entry: Any) -> None:
    error, match, X_, y, given = BAD[name]
    with pytest.raises(error, match=match):
        entry(X_, y, 1.0 if entry is ridge else [1.0], **given)


def test_refused_of_cross_validation_and_of_too_much() -> None:
    operator = KINDS["operator"](X)
    for cv in ("loo", "evidence"):
        with pytest.raises(ValueError, match=f"`cv`='{cv}' needs .*, which solver='cg' does not offer"):
            ridge_cv(operator, Y, [1.0], cv=cv)
    with pytest.raises(ValueError, match="`scoring`='r2' needs held-out targets"):
        ridge_cv(operator, Y, [1.0], scoring="r2")
    with pytest.raises(ValueError, match="`alphas` should be positive for cv='gcv'"):
        ridge_cv(operator, Y, [0.0, 1.0])
    with pytest.raises(ValueError, match="`alphas` should be 'auto' or strengths"):
        ridge_cv(operator, Y, "best")
    with pytest.raises(ValueError, match="`solver`='cg' needs the rows"):
        ridge(Moments().update(X, Y), alpha=1.0, solver="cg")
    with pytest.raises(ValueError, match="`solver`='cg' needs the rows"):
        ridge_cv(Moments().update(X, Y), solver="cg")
    with pytest.raises(ValueError, match=r"needs a dense `X`.*would take 298 GiB"):
        ridge(sparse.csr_matrix((200_000, 200_000)), torch.ones(200_000), 1.0, solver="cholesky")
    with pytest.raises(ValueError, match=r"`penalty_factors` is zero for 300 features"):
        ridge(torch.ones(2, 300), torch.ones(2), 1.0, solver="cg", penalty_factors=torch.zeros(300))
    with pytest.raises(ValueError, match="`solver`='cg' gives no standard errors"):
        _ = ridge(X, Y, 1.0, solver="cg").standard_errors


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (ValueError, "`shape` should be two positive whole numbers", {"shape": (3,)}),
        (ValueError, "`dtype` should be", {"dtype": torch.int32}),
        (TypeError, "`matmul` should be a function", {"matmul": X}),
    ],
)
def test_refused_operators(error: type[Exception], match: str, given: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        LinearOperator(**({"shape": (3, 2), "matmul": torch.sin, "rmatmul": torch.sin} | given))


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.GridEdgeWarning")
def test_an_automatic_grid_finds_the_strength_of_the_dense_one() -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(120, 40, generator=g, dtype=torch.float64)
    y = X[:, 0] + 3 * torch.randn(120, generator=g, dtype=torch.float64)
    for cv in ("gcv", 5):
        dense, ours = ridge_cv(X, y, cv=cv), ridge_cv(X, y, cv=cv, solver="cg")
        assert float(ours.best_score) == pytest.approx(float(dense.best_score), rel=0.01)
    assert ours.alphas.tolist() == sorted(ours.alphas.tolist())
    gcv = ridge_cv(X, y, cv="gcv", solver="cg")
    direct = ridge(X, y, gcv.alpha)
    assert float(gcv.dof) == pytest.approx(float(direct.dof), abs=0.5)
    assert float(gcv.residual_variance) == pytest.approx(float(direct.residual_variance), rel=0.02)
    assert bool(torch.isnan(ours.dof))


def test_conjugate_gradients_stop_column_by_column() -> None:
    diagonal = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None]
    rhs = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64)
    system = krylov.System(lambda v, _: diagonal * v, lambda r, _: r.clone(), alpha)

    def measure(x: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left = rhs[:, at] - (diagonal + alpha[at]) * x
        return left, left.norm(dim=0) / rhs[:, at].norm(dim=0)

    solved = krylov.solve(system, rhs, measure, 1e-12, 100, 1e-12 * rhs.norm(dim=0))
    torch.testing.assert_close(solved.solution, rhs / (diagonal + alpha))
    assert solved.steps.tolist() == [1, 4]  # as many as there are eigenvalues in the right-hand side
    assert torchridge.LinearOperator is LinearOperator
    assert issubclass(GridEdgeWarning, Warning)


def test_the_data_are_never_changed() -> None:
    X, y = rows(40, 15)
    matrix = sparse.csr_matrix(X.numpy())
    before = matrix.copy(), X.clone(), y.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridEdgeWarning)
        for data in (X, matrix):
            ridge_cv(data, y, [1.0, 2.0], cv=3, solver="cg", standardize=True)
            ridge(data, y, 1.0, solver="cg")
    assert (matrix != before[0]).nnz == 0
    assert torch.equal(X, before[1])
    assert torch.equal(y, before[2])

"""The solvers against exact answers: planted singular value decompositions, and long arithmetic."""

import warnings

import pytest
import torch
from oracles import Planted, exact_ridge, least_norm, planted, relative
from tolerances import EXACT, EXACT_PER_CONDITION, ROUNDED_ONCE

from torchridge import Moments, ridge, ridge_path
from torchridge.exceptions import IllConditionedWarning, RankDeficientWarning

EXPONENTS = (-12, -10, -8, -6, -4, -2, 0, 3, 6)
PROBLEMS = {
    "tall": {"n": 256, "d": 16, "decades": 1},
    "tall, condition 1e8": {"n": 256, "d": 32, "decades": 4},
    "tall, condition 1e16": {"n": 256, "d": 32, "decades": 8},
    "tall, mean 1e6": {"n": 256, "d": 32, "decades": 4, "mean": 2.0**20},
    "square": {"n": 64, "d": 64, "decades": 3},
    "square, condition 1e12": {"n": 64, "d": 64, "decades": 6},
    "wide": {"n": 32, "d": 128, "decades": 2},
    "wide, condition 1e12": {"n": 32, "d": 128, "decades": 6},
    "wide, mean 1e6": {"n": 32, "d": 128, "decades": 4, "mean": 2.0**20},
    "tall, rank 20 of 32": {"n": 128, "d": 32, "decades": 3, "rank": 20},
    "wide, rank 20 of 31": {"n": 32, "d": 128, "decades": 3, "rank": 20},
    "rank 20, mean 1e6": {"n": 128, "d": 32, "decades": 3, "rank": 20, "mean": 2.0**20},
}


def allowed(problem: Planted, alpha: float) -> float:
    condition = problem.condition(alpha)
    return EXACT if condition < 1e10 else EXACT_PER_CONDITION * condition


@pytest.mark.parametrize("solver", ["auto", "cholesky", "spectral", "dual", "svd"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_solver_gives_the_planted_answer(name: str, solver: str, device: torch.device) -> None:
    problem = planted(**PROBLEMS[name])
    for exponent in EXPONENTS:
        alpha = 10.0**exponent * float(problem.sigma[0]) ** 2
        solution = ridge(problem.X.to(device), problem.y.to(device), alpha, solver=solver)
        error = relative(solution.weight, problem.weight(alpha))
        assert error <= allowed(problem, alpha), (exponent, solution.solver, solution.reason)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_path_gives_the_planted_answers(name: str, device: torch.device) -> None:
    problem = planted(**PROBLEMS[name])
    alphas = [10.0**e * float(problem.sigma[0]) ** 2 for e in EXPONENTS]
    path = ridge_path(problem.X.to(device), problem.y.to(device), alphas)
    for i, alpha in enumerate(alphas):
        assert relative(path.weight[i], problem.weight(alpha)) <= allowed(problem, alpha), alpha


@pytest.mark.parametrize("decades", [0, 1, 2])
@pytest.mark.parametrize("solver", ["auto", "cholesky", "spectral"])
def test_moments_alone_give_the_planted_answer_of_a_well_conditioned_problem(
    decades: int, solver: str, device: torch.device
) -> None:
    problem = planted(128, 16, decades=decades, mean=1024.0)
    moments = Moments().update(problem.X.to(device), problem.y.to(device))
    for exponent in EXPONENTS:
        alpha = 10.0**exponent * float(problem.sigma[0]) ** 2
        assert relative(ridge(moments, alpha, solver=solver).weight, problem.weight(alpha)) <= EXACT


@pytest.mark.parametrize("solver", ["auto", "cholesky", "spectral", "dual", "svd"])
@pytest.mark.parametrize("shape", [(128, 32, 20), (32, 128, 20), (64, 64, None), (32, 128, None)])
def test_without_penalty_a_dependent_problem_gets_the_least_norm_and_a_warning(
    shape: tuple[int, int, int | None], solver: str, device: torch.device
) -> None:
    n, d, rank = shape
    problem = planted(n, d, decades=2, rank=rank)
    expected = rank or min(n - 1, d)
    with pytest.warns(RankDeficientWarning, match=f"rank {expected} of {d}"):
        solution = ridge(problem.X.to(device), problem.y.to(device), 0.0, solver=solver)
    assert solution.rank == expected
    assert relative(solution.weight, problem.weight(0.0)) <= EXACT


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.IllConditionedWarning")
@pytest.mark.parametrize("decades", [4, 6, 8, 10])
def test_without_penalty_an_ill_conditioned_but_full_rank_problem_keeps_its_digits(
    decades: int, device: torch.device
) -> None:
    # The gram matrix is singular to rounding from 8 decades on; the rows are not.
    problem = planted(128, 8, decades=decades)
    solution = ridge(problem.X.to(device), problem.y.to(device), 0.0)
    assert solution.rank == 8
    assert solution.condition == pytest.approx(problem.condition(0.0), rel=1e-3)
    # As good as an orthogonal method that knows the rows to eps: eps * kappa(X), with room for n and d.
    assert relative(solution.weight, problem.weight(0.0)) <= 1e3 * 2.2e-16 * 10.0**decades


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", [(200, 12), (40, 60)])
@pytest.mark.parametrize("alpha", [1e-6, 1.0, 1e4])
def test_float32_rows_give_the_float64_answer_rounded(
    shape: tuple[int, int], mean: float, alpha: float, device: torch.device
) -> None:
    X = torch.randn(shape) + mean
    y = X.double() @ torch.randn(shape[1], 3).double() + torch.randn(shape[0], 3)
    y = y.float()
    single = ridge(X.to(device), y.to(device), alpha)
    double = ridge(X.double().to(device), y.double().to(device), alpha)
    assert single.weight.dtype is torch.float32
    assert relative(single.weight, double.weight) <= ROUNDED_ONCE


GENERAL = {
    "plain": {},
    "no intercept": {"fit_intercept": False},
    "weights": {"weights": True},
    "standardize": {"standardize": True, "weights": True},
    "penalty factors": {"penalty_factors": torch.tensor([1.0, 0.01, 3.0, 100.0, 0.5, 2.0])},
    "free features": {"penalty_factors": torch.tensor([1.0, 0.0, 3.0, 0.0, 0.5, 2.0]), "weights": True},
    "prior": {"prior": torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 100.0])},
    "all": {
        "prior": torch.arange(12.0).reshape(2, 6),
        "penalty_factors": torch.tensor([1.0, 0.0, 3.0, 0.2, 0.5, 2.0]),
        "weights": True,
        "standardize": True,
    },
}


@pytest.mark.parametrize("solver", ["auto", "cholesky", "spectral", "dual", "svd"])
@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("collinear", [1.0, 1e-4])
def test_the_whole_objective_against_long_arithmetic(
    name: str, solver: str, collinear: float, device: torch.device
) -> None:
    options = dict(GENERAL[name])
    if solver == "svd" and name in ("free features", "all"):
        pytest.skip("the svd solver takes positive penalty factors only")
    X = torch.randn(24, 6, dtype=torch.float64) + 5
    X[:, 2] = X[:, 1] + collinear * X[:, 2]  # condition of S up to about 1e10
    y = torch.randn(24, 2, dtype=torch.float64) * 3 + X[:, :2]
    weight = torch.rand(24, dtype=torch.float64) * 3 if options.pop("weights", False) else None
    if weight is not None:
        weight[:3] = torch.tensor([0.0, 1e-3, 50.0])
    exact = {"fit_intercept": "intercept", "penalty_factors": "penalty"}
    given = {exact.get(k, k): v for k, v in options.items()}
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    for alpha in (1e-8, 1e-2, 10.0):
        expected, bias = exact_ridge(X, y, alpha, sample_weight=weight, **given)
        on = None if weight is None else weight.to(device)
        solution = ridge(X.to(device), y.to(device), alpha, sample_weight=on, solver=solver, **moved)
        assert relative(solution.weight, expected) <= 1e-10, (alpha, solution.reason)
        assert relative(solution.bias, bias) <= 1e-9 if solution.fit_intercept else not solution.bias.any()


def test_hilbert_matrix_against_long_arithmetic(device: torch.device) -> None:
    i = torch.arange(12, dtype=torch.float64)
    X = 1 / (i[:, None] + i[None, :6] + 1)  # condition of S about 1e14
    y = torch.randn(12, dtype=torch.float64)
    for alpha in (1e-14, 1e-10, 1e-6):
        expected, _ = exact_ridge(X, y, alpha)
        assert relative(ridge(X.to(device), y.to(device), alpha).weight, expected) <= 1e-9


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e145])
@pytest.mark.parametrize("shape", [(40, 5), (6, 20)])
def test_extreme_scales_of_X_change_the_units_and_nothing_else(
    scale: float, shape: tuple[int, int], device: torch.device
) -> None:
    X = torch.randn(shape, dtype=torch.float64, device=device)
    y = torch.randn(shape[0], dtype=torch.float64, device=device)
    plain, scaled = ridge(X, y, 0.1), ridge(X * scale, y, 0.1 * scale**2)
    if shape[0] > shape[1]:
        assert relative(scaled.residual_variance, plain.residual_variance) <= 1e-10
    assert relative(scaled.weight * scale, plain.weight) <= 1e-10
    assert relative(scaled.dof, plain.dof) <= 1e-10
    assert relative(scaled.unit_variance.sqrt() * scale, plain.unit_variance.sqrt()) <= 1e-10


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e145])
def test_extreme_scales_of_y_scale_the_weights(scale: float, device: torch.device) -> None:
    X = torch.randn(40, 5, dtype=torch.float64, device=device)
    y = torch.randn(40, dtype=torch.float64, device=device)
    plain, scaled = ridge(X, y, 1.0), ridge(X, y * scale, 1.0)
    assert relative(scaled.weight / scale, plain.weight) <= 1e-12
    assert relative(scaled.residual_variance.sqrt() / scale, plain.residual_variance.sqrt()) <= 1e-10


def test_dead_and_duplicate_columns(device: torch.device) -> None:
    X = torch.randn(30, 6, dtype=torch.float64) * 2
    X[:, 1], X[:, 3], X[:, 5] = 0.0, 7.0, X[:, 0]
    y = torch.randn(30, 2, dtype=torch.float64)
    with pytest.warns(RankDeficientWarning, match="rank 3 of 6"):
        solution = ridge(X.to(device), y.to(device), 0.0)
    assert relative(solution.weight, least_norm(X, y)) <= 1e-10
    assert solution.weight[:, [1, 3]].abs().max() <= 1e-14
    penalized = ridge(X.to(device), y.to(device), 1.0)
    assert relative(penalized.weight, exact_ridge(X, y, 1.0)[0]) <= 1e-12
    standard = ridge(X.to(device), y.to(device), 1.0, standardize=True)
    assert standard.weight[:, [1, 3]].abs().max() <= 1e-14
    keep = [0, 2, 4, 5]
    expected, _ = exact_ridge(X[:, keep], y, 1.0, standardize=True)
    assert relative(standard.weight[:, keep], expected) <= 1e-12


@pytest.mark.parametrize("name", GENERAL)
def test_the_whole_objective_on_few_rows_against_long_arithmetic(name: str, device: torch.device) -> None:
    options = {k: v for k, v in GENERAL[name].items() if k != "weights"}
    X, y = torch.randn(5, 6, dtype=torch.float64) + 5, torch.randn(5, 2, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5, 10.0], dtype=torch.float64) if "weights" in GENERAL[name] else None
    exact = {"fit_intercept": "intercept", "penalty_factors": "penalty"}
    given = {exact.get(k, k): v for k, v in options.items()}
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    on = None if weight is None else weight.to(device)
    for alpha in (1e-3, 1.0, 1e3):
        expected, bias = exact_ridge(X, y, alpha, sample_weight=weight, **given)
        solution = ridge(X.to(device), y.to(device), alpha, sample_weight=on, **moved)
        assert relative(solution.weight, expected) <= 1e-10, (alpha, solution.reason)
        assert relative(solution.bias, bias) <= 1e-9 if solution.fit_intercept else not solution.bias.any()


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("d", [1, 3])
def test_a_single_row(d: int, fit_intercept: bool, device: torch.device) -> None:
    X, y = torch.randn(1, d, dtype=torch.float64, device=device), torch.randn(1, 2, dtype=torch.float64, device=device)
    solution = ridge(X, y, 1.0, fit_intercept=fit_intercept)
    if fit_intercept:
        assert not solution.weight.any()
        torch.testing.assert_close(solution.bias, y[0])
    else:
        torch.testing.assert_close(solution.weight, y.T @ X / (1 + (X**2).sum()))


@pytest.mark.parametrize("shape", [(20, 4), (20, 1), (6, 3)])
def test_without_any_penalized_feature_it_is_least_squares(shape: tuple[int, int], device: torch.device) -> None:
    X, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], 2, dtype=torch.float64)
    solution = ridge(X.to(device), y.to(device), 5.0, penalty_factors=torch.zeros(shape[1]).to(device))
    assert relative(solution.weight, least_norm(X, y)) <= 1e-11
    assert float(solution.dof) == pytest.approx(shape[1])


@pytest.mark.parametrize("shape", [(20, 5), (4, 9)])
def test_dependent_features_without_penalty_warn_whatever_the_strength(
    shape: tuple[int, int], device: torch.device
) -> None:
    X, y = torch.randn(shape, dtype=torch.float64), torch.randn(shape[0], dtype=torch.float64)
    X[:, 1] = X[:, 0]
    factors = torch.ones(shape[1])
    factors[:2] = 0
    with pytest.warns(RankDeficientWarning):
        weight = ridge(X.to(device), y.to(device), 1.0, penalty_factors=factors.to(device)).weight
    torch.testing.assert_close(weight[:, 0], weight[:, 1])


@pytest.mark.parametrize("solver", ["cholesky", "spectral", "auto"])
def test_moments_alone_of_dependent_features_give_the_least_norm(solver: str, device: torch.device) -> None:
    for seed in range(5):  # rounding decides whether a singular matrix has a Cholesky factor
        X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        X[:, 4], y = X[:, 0] + X[:, 1], torch.randn(40, dtype=torch.float64)
        moments = Moments().update(X.to(device), y.to(device))
        with pytest.warns(RankDeficientWarning, match="rank 5 of 6"):
            weight = ridge(moments, 0.0, solver=solver).weight
        assert relative(weight, least_norm(X, y[:, None])) <= 1e-10


@pytest.mark.parametrize("alpha", [0.0, 1e-15, 1e-14])
def test_a_feature_of_a_far_smaller_scale_is_not_called_dependent(device: torch.device, alpha: float) -> None:
    """The gram matrix squares the scales and loses it; the rows hold it to every digit."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(60, 4, generator=g, dtype=torch.float64)
    scale = torch.tensor([1e-8, 1.0, 1.0, 1.0], dtype=torch.float64)
    y = X.sum(1)
    centred = X - X.mean(0)
    # The same problem in the units in which all features are alike: the penalty is α / scale² there.
    stacked = torch.cat([centred, torch.diag(alpha**0.5 / scale)])
    want = torch.linalg.lstsq(stacked, torch.cat([y - y.mean(), torch.zeros(4)])).solution / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        found = ridge((X * scale).to(device), y.to(device), alpha)
    assert found.rank == 4
    torch.testing.assert_close(found.weight.cpu().reshape(-1), want, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore::torchridge.exceptions.RankDeficientWarning")
def test_a_feature_twice_shares_its_weight_at_alpha_zero(device: torch.device) -> None:
    g = torch.Generator().manual_seed(0)
    X = torch.randn(60, 4, generator=g, dtype=torch.float64)
    found = ridge(torch.cat([X, X[:, :1]], 1).to(device), X.sum(1).to(device), 0.0)
    assert found.rank == 4
    want = torch.tensor([[0.5, 1.0, 1.0, 1.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found.weight.cpu(), want, rtol=1e-12, atol=0)

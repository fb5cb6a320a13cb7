"""Ridge regression in closed form: `ridge` at one strength, `ridge_path` at many, `ridge_cv` at the best.

All three minimize, over W (t, d) and b (t,),

    Σ_i s_i ‖y_i − W x_i − b‖² + α Σ_j p_j Σ_k (W_kj − W⁰_kj)²

with sample weights s, penalty factors p and prior W⁰ (by default 1, 1 and 0). The bias b is never penalized. α is
scikit-learn's; `convert_strength` turns others into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchridge._ranks import Group
from torchridge.linear.arguments import Options, alpha_of, one_of
from torchridge.linear.products.products import solve as solve_by_products
from torchridge.linear.ridge import differentiable
from torchridge.linear.ridge.problem import dense_problem, route
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.ridge.solve import solve, solve_rows
from torchridge.solvers.iterative.operators import LinearOperator
from torchridge.solvers.moments.moments import Moments


def ridge(
    X: Tensor | Moments | LinearOperator | Any,
    y: Tensor | None = None,
    alpha: float | Tensor | None = None,
    *,
    strength: float | Tensor | None = None,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    penalty_factors: Tensor | None = None,
    prior: Tensor | None = None,
    solver: str = "auto",
    moments_dtype: torch.dtype = torch.float64,
    tol: float | None = None,
    max_iter: int | None = None,
    rank: int | None = None,
    kernel: str | None = None,
    process_group: Group | None = None,
) -> RidgeSolution:
    r"""Minimize Σ s ‖y − Wx − b‖² + α Σ p (W − prior)² at one strength.

    Source: Hoerl & Kennard 1970, doi:10.1080/00401706.1970.10488634.

    The data are summed and solved in float64 and the answer is rounded to the dtype of X. If the condition number
    calls for it, the solve goes back to the rows (orthogonal factors, refinement in twice the precision), so digits
    are not lost silently. At α = 0 on linearly dependent features it returns the minimum-norm solution and warns.

    What is too large for a Gram matrix is solved by Nyström-preconditioned conjugate gradients (solver "cg"): products
    with X alone, summed in float64, until ‖Xᵀ S (y − Xw − b) − αp(w − prior)‖ is `tol` of its value at w = prior. A
    sparse X is never filled nor centred. If the iteration does not converge, `RidgeSolution.converged` is False and a
    `ConvergenceWarning` says so.

    Differentiable in X, y, alpha, sample_weight, penalty_factors and prior, to any order, under `torch.func.vmap` and
    `torch.compile`; then, and for batches, it is solved in plain torch operations.

    Args:
        X: (n, d) rows; (\*b, n, d) a batch of problems; or `Moments`, then ``ridge(moments, alpha=...)``. Also a sparse
            tensor (CSR, CSC, COO), a scipy.sparse matrix, a `LinearOperator`, or that of scipy.sparse.linalg.
        y: (n,) or (n, t); for a batch (\*b, n) or (\*b, n, t). None with `Moments`.
        alpha: α ≥ 0: a number; (t,) a strength for each target; for a batch also (\*b,) or (\*b, t).
        strength: instead of alpha, λ against the mean loss: α = λ Σ s.
        sample_weight: (n,) or (\*b, n), s ≥ 0.
        fit_intercept: whether b is fitted; if not, it is zero.
        standardize: multiply p by the variance of each feature (ddof 0), which is ridge on standardized features,
            with the weights given back in the units of X.
        penalty_factors: (d,), p ≥ 0; zero leaves a feature unpenalized.
        prior: (d,) or (t, d), the weights to shrink to.
        solver: "auto", "cholesky", "spectral", "dual" (n × n, for n < d), "svd", or "cg" (products with X alone).
            "auto" takes "cg" for operators, for a sparse X of over 128 MiB when dense, and where the Gram matrix has a
            side of 16384 or more and there are few targets × strengths.
        moments_dtype: torch.float32 sums float32 rows in float32: faster, and its rounding is squared.
        tol: for "cg", the relative residual to reach, by default 1e-8.
        max_iter: for "cg", the most steps, by default 2000.
        rank: for "cg", the rank of the preconditioner, 0 for none; by default it grows for as long as it pays.
        kernel: "precomputed" if X is a kernel of the rows, (n, n), positive semidefinite: minimize
            Σ s (y − f(x) − b)² + α ‖f‖² over its functions f. The solution then predicts from kernels (m, n).
        process_group: "world" or a `torch.distributed.ProcessGroup`: X, y and sample_weight are this rank's rows
            (or its `Moments`), uneven and empty ranks, (0, d), included. The moments of all ranks are added, solved on
            each, and the answer is that of one process on all rows. Solved from moments: no "dual" or "svd", no
            refinement, no gradients.

    Returns:
        `RidgeSolution` with weight (t, d) and bias (t,); from "cg" in the wider dtype of X and y.

    Raises:
        ValueError: on wrong shapes, NaN or infinity (naming the first row), negative strengths, mixed devices; on
            features too large or too small to square, and weights too large for their dtype; on what "cg" cannot give
            (gradients, batches).
        TypeError: on inputs of the wrong type.
        RankError: over ranks, if another one died, failed or disagrees, within the group's timeout.

    Warns:
        ConvergenceWarning: if "cg" stopped above `tol`.

    With fewer rows than features, and more targets (× strengths) than rows, the solution keeps dual coefficients (n, t)
    and X itself, not a copy: `weight` is made when it is read, and `predict` and `score` do not need it.

    Cost: n·d·min(n, d)/2 multiply-adds for the Gram matrix and min(n, d)³ for the solve. "cg" of rank k in s steps
    takes s·t + k products with X and Xᵀ, and 8·min(n, d)·k bytes. Source: Frangella, Tropp & Udell 2023,
    doi:10.1137/21M1466244.

    Example:
        >>> import torch
        >>> from torchridge import ridge
        >>> X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
        >>> solution = ridge(X, X @ torch.tensor([2.0, -1.0]) + 3.0, alpha=0.0)
        >>> solution.weight, solution.bias
        (tensor([[ 2., -1.]]), tensor([3.]))
    """
    given = one_of(alpha, strength, "alpha")
    options = Options(
        fit_intercept, standardize, penalty_factors, prior, solver, moments_dtype, tol, max_iter, rank, kernel
    )
    if process_group is not None:
        from torchridge.linear.ridge.over_ranks import pooled  # rare, and a third of the time of an import

        X, y, given = pooled(X, y, given, "alpha", sample_weight, options, process_group)
        sample_weight = None
    alpha = alpha_of(given, strength is not None, X, sample_weight)
    X, choice = route(X, y, alpha, options)
    if choice is not None:
        return solve_by_products(X, y, alpha, "alpha", sample_weight, options, choice)
    problem = dense_problem(X, y, alpha, "alpha", sample_weight, options)
    if problem is None:
        return differentiable.solve(X, y, alpha, "alpha", sample_weight, options, solve_rows)
    return solve(problem)


def ridge_path(
    X: Tensor | Moments | LinearOperator | Any,
    y: Tensor | None = None,
    alphas: Tensor | Sequence[float] | None = None,
    *,
    strength: Tensor | Sequence[float] | None = None,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    penalty_factors: Tensor | None = None,
    prior: Tensor | None = None,
    solver: str = "auto",
    moments_dtype: torch.dtype = torch.float64,
    tol: float | None = None,
    max_iter: int | None = None,
    rank: int | None = None,
    kernel: str | None = None,
    process_group: Group | None = None,
) -> RidgeSolution:
    r"""Minimize Σ s ‖y − Wx − b‖² + α Σ p (W − prior)² at many strengths, from one eigendecomposition.

    Source: Hastie, Tibshirani & Friedman 2009, §3.4.1, doi:10.1007/978-0-387-84858-7.

    Args:
        X: as in `ridge`.
        y: as in `ridge`.
        alphas: (L,) strengths, in any order.
        strength: instead of alphas, (L,) λ against the mean loss: α = λ Σ s.
        sample_weight: as in `ridge`.
        fit_intercept: as in `ridge`.
        standardize: as in `ridge`.
        penalty_factors: as in `ridge`.
        prior: as in `ridge`.
        solver: as in `ridge`.
        moments_dtype: as in `ridge`.
        tol: as in `ridge`.
        max_iter: as in `ridge`.
        rank: as in `ridge`.
        kernel: as in `ridge`.
        process_group: as in `ridge`.

    Returns:
        `RidgeSolution` with weight (L, t, d) and bias (L, t); ``path.at(i)`` is strength i.

    Raises:
        ValueError: as `ridge`.
        TypeError: as `ridge`.

    Cost: that of `ridge`, 9·min(n, d)³ for the eigendecomposition, and d·min(n, d)·t for each strength.

    Example:
        >>> import torch
        >>> from torchridge import ridge_path
        >>> X, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([-1.0, 1.0])
        >>> ridge_path(X, y, [0.0, 2.0, 6.0]).weight[:, 0, 0]
        tensor([1.0000, 0.5000, 0.2500])
    """
    given = one_of(alphas, strength, "alphas")
    options = Options(
        fit_intercept, standardize, penalty_factors, prior, solver, moments_dtype, tol, max_iter, rank, kernel
    )
    if process_group is not None:
        from torchridge.linear.ridge.over_ranks import pooled

        X, y, given = pooled(X, y, given, "alphas", sample_weight, options, process_group)
        sample_weight = None
    alphas = alpha_of(given, strength is not None, X, sample_weight, path=True)
    X, choice = route(X, y, alphas, options)
    if choice is not None:
        return solve_by_products(X, y, alphas, "alphas", sample_weight, options, choice)
    problem = dense_problem(X, y, alphas, "alphas", sample_weight, options)
    if problem is None:
        return differentiable.solve(X, y, alphas, "alphas", sample_weight, options, solve_rows)
    return solve(problem)

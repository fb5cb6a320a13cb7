"""Prepare what scores the strengths: of moments, of all rows, of folds, or of splits of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchridge import _check
from torchridge.linear.arguments import Options, Strengths
from torchridge.linear.ridge.choose import Choice, choose_cross_validation
from torchridge.linear.ridge.dense import Dense
from torchridge.linear.ridge.few_rows import counted_of, kernel_folds, refuse_memory
from torchridge.linear.ridge.fits import fit_spectral
from torchridge.linear.ridge.fits_dual import fit_from_dual
from torchridge.linear.ridge.problem import Problem
from torchridge.linear.ridge.solution.diagnosis import once
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.linear.ridge.solve import rounded, solve
from torchridge.linear.search import refuse_one_row
from torchridge.solvers.kernels import dual, gram_matrix
from torchridge.solvers.kernels.each_row import EachRow
from torchridge.solvers.kernels.few_rows import WholeDual
from torchridge.solvers.kernels.kernel_folds import KernelFolds
from torchridge.solvers.least_squares import target_scores
from torchridge.solvers.least_squares.criteria import CRITERIA, criterion_of
from torchridge.solvers.least_squares.each_fold import FoldMoments
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.scorers import Scorer, Whole
from torchridge.solvers.least_squares.scoring import train_spectrum
from torchridge.solvers.moments import blocks, finite, folds, one_pass
from torchridge.solvers.moments.blocks import Block
from torchridge.solvers.moments.moments import Moments
from torchridge.solvers.moments.rows import Rows, result_dtype


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A scorer, and what the fit at the chosen strength starts from."""

    scorer: Scorer
    objective: Objective
    source: Rows | Moments
    options: Options
    moments: Callable[[], Block] | None = None  # of all rows, if the scorer has summed them
    rows: Rows | None = None  # those that count

    def problem(self, strengths: Strengths) -> Problem:
        """Return the problem of all rows at the chosen strengths."""
        if isinstance(self.source, Moments):
            block, dtype, device = self.source.block(), self.source.result_dtype, self.source.device
            n, d, t = block.rows, *block.cross.shape
        else:
            assert self.rows is not None
            (n, d), t, device = self.rows.X.shape, self.rows.y.shape[1], self.rows.X.device
            dtype = result_dtype(self.rows.X.dtype)
        exact = self.options.moments_dtype is torch.float64
        dense = Dense(self.objective, strengths, dtype, self.moments or self._summed, self.rows, exact)
        solver = "auto" if self.moments is None else "cholesky"  # the moments are there, though rows may be few
        solver = "spectral" if solver == "cholesky" and strengths.per_target else solver
        return Problem(dense, self.source, solver, n, (d, t), device or torch.device("cpu"))

    @property
    def dead(self) -> Tensor:
        """Whether each target is constant over the rows that count, (t,)."""
        if self.rows is not None:
            return ~target_scores.varies(self.rows.y)
        assert self.moments is not None
        block = self.moments()
        return block.yy <= block.weight * (10 * torch.finfo(block.yy.dtype).eps * block.mean_y) ** 2

    def _summed(self) -> Block:
        assert self.rows is not None
        return one_pass.block_of(*self.rows[:3], None, self.options.moments_dtype, self.rows.X.device)

    def solution(self, strengths: Strengths) -> RidgeSolution:
        """Fit all rows at the chosen strengths, with what scoring has factored already."""
        problem, scorer = self.problem(strengths), self.scorer
        if isinstance(scorer, (KernelFolds, WholeDual)) and scorer.problem is not None:
            choice = Choice("dual", "the strength was chosen from the gram matrix of the rows")
            return rounded(fit_from_dual(scorer.problem, problem.dense, choice), problem)
        if isinstance(scorer, Whole):
            choice = Choice("spectral", "the strength was chosen from this eigendecomposition")
            return rounded(fit_spectral(problem.dense, choice, scorer.spectrum), problem)
        found = solve(problem)
        if problem.solver == "auto":
            return found
        reason = found.reason.replace("asked for", "the moments that scored the strengths serve the fit too", 1)
        return found.with_changes(reason=reason)


def prepare_moments(moments: Moments, cv: Any, options: Options) -> Prepared:
    """Return what scores the strengths of moments by a criterion of all rows, or by the folds they hold."""
    block = moments.block()
    d, t = block.cross.shape
    objective = options.objective(d, t, block.gram, dtype=moments.dtype)
    cv = ("folds" if moments.folds else "gcv") if cv is None else cv
    criterion = criterion_of(cv)
    if criterion is not None:
        if criterion.holds_out:
            raise ValueError(
                f"`cv`={cv!r} needs the rows, which moments do not hold. Use cv='gcv', or folds in `Moments`."
            )
        refuse_one_row(block.rows, cv, objective)
        scorer = Whole(criterion, train_spectrum(block, objective), block, objective, None)
        return Prepared(scorer, objective, moments, options, lambda: block)
    k = len(moments.folds)
    if k < 2 or (cv != "folds" and cv != k):
        raise ValueError(
            f"`cv`={cv!r}: these moments hold {k} folds. Give every batch its fold, `update(X, y, fold=...)`, or use "
            f"cv='gcv'."
        )
    held = [moments.block(f) for f in moments.folds]
    train = [moments.without(f) for f in moments.folds]
    folded = FoldMoments(train, held, objective)
    return Prepared(folded, objective, moments, options, lambda: block)


def prepare_rows(rows: Rows, cv: Any, groups: Any, options: Options) -> Prepared:
    """Return what scores the strengths of checked rows by any criterion."""
    options = options.for_rows(rows.X)
    objective = options.objective(rows.X.shape[1], rows.y.shape[1], rows.X)
    options = options._replace(solver="dual") if objective.precomputed else options
    if isinstance(cv, str):
        _check.option(cv, "cv", CRITERIA)
        if groups is not None:
            raise ValueError(f"`groups` has no use with `cv`={cv!r}. Pass a number of folds, e.g. cv=5.")
        return _prepare_whole(rows, cv, objective, options)
    n = rows.X.shape[0]
    cv = folds.as_ids(cv)
    if isinstance(cv, Tensor) or (isinstance(cv, int) and not isinstance(cv, bool)):
        ids: Tensor | None = folds.fold_ids(cv, n, groups)
        parts = None
    else:
        parts = folds.splits(cv, n, rows.y, groups)
        ids = folds.partition(parts, n)
    if ids is not None:
        return _prepare_folds(rows, ids, objective, options)
    assert parts is not None
    return _prepare_splits(rows, parts, objective, options)


def _prepare_whole(rows: Rows, cv: str, objective: Objective, options: Options) -> Prepared:
    (n, d), criterion = rows.X.shape, CRITERIA[cv]
    counted = counted_of(rows, objective)
    refuse_memory(options)
    refuse_one_row(counted.X.shape[0], cv, objective)
    few = options.solver == "dual" or (options.solver == "auto" and n < d)
    if criterion.holds_out and objective.standardize:  # the scales are those of the other rows
        finite.check_squares(counted)
        dtype = torch.float64 if few else options.moments_dtype
        return Prepared(EachRow(counted, objective.to(dtype), few, dtype), objective, rows, options, None, counted)
    if few:
        objective = objective.to(torch.float64)
        problem = _diagonalized(counted, objective, rows)
        return Prepared(WholeDual(criterion, problem, counted, objective), objective, rows, options, None, counted)
    block = one_pass.block_of(*counted[:3], None, options.moments_dtype, rows.X.device)
    finite.check_finite(block, rows)
    scorer = Whole(criterion, train_spectrum(block, objective), block, objective, counted)
    return Prepared(scorer, objective, rows, options, lambda: block, counted)


def _diagonalized(counted: Rows, objective: Objective, rows: Rows) -> dual.Dual:
    kernel = gram_matrix.kernel(counted, objective, torch.float64)
    finite.check_kernel(kernel.gram, kernel.target, rows)
    return dual.diagonalized(kernel, counted)


def _prepare_folds(rows: Rows, ids: Tensor, objective: Objective, options: Options) -> Prepared:
    """Prepare folds that partition the rows; `ids` (n,) lie on the host."""
    counted, count = counted_of(rows, objective), int(ids.max()) + 1
    if counted is not rows and rows.sample_weight is not None:
        ids = ids[rows.sample_weight.cpu() > 0]
    index = [(ids == k).nonzero()[:, 0] for k in range(count)]
    if any(len(i) == 0 for i in index):
        raise ValueError("`cv`: a fold has no row of positive weight; expected some in every fold.")
    n, d = counted.X.shape
    choice = choose_cross_validation(options.solver, n=n, smallest_train=n - max(len(i) for i in index), d=d)
    if choice.solver == "dual":
        everything = torch.arange(n)
        parts = [(everything[ids != k], i) for k, i in enumerate(index)]
        return _kernel_folds(counted, parts, objective, rows, options)
    refuse_memory(options)
    held = one_pass.fold_blocks(counted, index, options.moments_dtype)
    train = blocks.merge_others(held)
    scorer = FoldMoments(train, held, objective, counted, index)
    return Prepared(scorer, objective, rows, options, once(lambda: blocks.merge(held)), counted)


def _kernel_folds(
    rows: Rows, parts: list[folds.Split], objective: Objective, source: Rows, options: Options
) -> Prepared:
    objective = objective.to(options.moments_dtype)
    scorer = kernel_folds(rows, parts, objective, source, options)
    return Prepared(scorer, objective, source, options, None, rows)


def _prepare_splits(rows: Rows, parts: list[folds.Split], objective: Objective, options: Options) -> Prepared:
    """Prepare splits that do not partition the rows: each part is gathered by itself."""
    if rows.sample_weight is not None and rows.idle:
        counts = rows.sample_weight.cpu() > 0
        parts = [(a[counts[a]], b[counts[b]]) for a, b in parts]
        if any(len(a) == 0 or len(b) == 0 for a, b in parts):
            raise ValueError("`cv`: a part has no row of positive weight; expected some in every part.")
    n, d = rows.X.shape
    choice = choose_cross_validation(options.solver, n=n, smallest_train=min(len(a) for a, _ in parts), d=d)
    if choice.solver == "dual":
        if rows.idle and rows.sample_weight is not None:
            place = (rows.sample_weight.cpu() > 0).cumsum(0) - 1
            parts = [(place[a], place[b]) for a, b in parts]
        return _kernel_folds(counted_of(rows, objective), parts, objective, rows, options)
    refuse_memory(options)
    finite.check_squares(rows)
    train = one_pass.fold_blocks(rows, [a for a, _ in parts], options.moments_dtype)
    held = one_pass.fold_blocks(rows, [b for _, b in parts], options.moments_dtype)
    scorer = FoldMoments(train, held, objective, rows, [b for _, b in parts], [a for a, _ in parts])
    return Prepared(scorer, objective, rows, options, None, rows.counted)

"""What `RidgeCV` and `RidgeClassifierCV` share: parameters, metadata, the way from scores to weights."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._few_rows import own_rows
from torchridge.estimators._folds import make_parts
from torchridge.estimators._input import Container, Table, as_tensor, filled, fits, too_large
from torchridge.estimators._judges import FoldJudge
from torchridge.estimators._linear import LinearModel
from torchridge.estimators._scorers import Routed, resolve
from torchridge.estimators._search import (
    Found,
    ScoreRows,
    by_folds,
    by_sparse_folds,
    follows_from_moments,
    leave_one_out,
    sparse_leave_one_out,
)
from torchridge.linear.ridge.ridge_cv import ridge_cv
from torchridge.linear.ridge.solution.solution import RidgeSolution
from torchridge.solvers.iterative import sparse_gram
from torchridge.solvers.iterative.sparse_ridge import folds_pay, gram_pays, pays
from torchridge.solvers.least_squares import criteria

# Scores of folds that products tell, by their names in `ridge_cv`.
_OF_FOLDS = {None: "r2", "r2": "r2", "neg_mean_squared_error": "mse", "correlation": "correlation"}


class Problem(NamedTuple):
    """Rows to choose a strength by."""

    X: Any  # (n, d) a tensor, or a scipy.sparse matrix in rows
    y: Tensor  # (n, t)
    weight: Tensor | None  # (n,)


class RidgeCVModel(LinearModel):
    """A ridge model that chooses its strength."""

    alphas: Any
    scoring: Any
    cv: Any
    store_cv_results: bool
    alpha_: Any
    best_score_: Any
    cv_results_: Any
    solution_: RidgeSolution

    def _check_alphas(self) -> Any:
        """Return the strengths as an array, or "auto"."""
        if isinstance(self.alphas, str):
            _check.option(self.alphas, "alphas", ("auto",))
            return self.alphas
        given = self.alphas.detach().cpu().numpy() if isinstance(self.alphas, Tensor) else self.alphas
        single = np.ndim(given) == 0
        for i, alpha in enumerate([given] if single else given):
            _check_alpha(alpha, "alphas" if single or len(given) == 1 else f"alphas[{i}]", self.cv is None)
        values = np.asarray(given, dtype=np.float64).reshape(-1)
        if not values.size:
            raise ValueError("`alphas` is empty; expected at least one strength.")
        return values

    def _check_options(self) -> None:
        for name in ("fit_intercept", "store_cv_results"):
            _check.option(getattr(self, name), name, (True, False))
        if self.cv is not None and self.store_cv_results:
            raise ValueError("cv!=None and store_cv_results=True are incompatible: leave `cv` out, or the results.")

    def get_metadata_routing(self) -> Any:
        """Return which metadata `fit` hands to the scorer and the splitter, as scikit-learn's `MetadataRouter`."""
        from sklearn.metrics import get_scorer
        from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping

        name = "accuracy" if self._estimator_type == "classifier" else "r2"
        scorer = resolve(self.scoring, self._estimator_type) or get_scorer(name).set_score_request(sample_weight=True)
        router = MetadataRouter(owner=self).add_self_request(self._metadata_requests())
        router.add(scorer=scorer, method_mapping=MethodMapping().add(caller="fit", callee="score"))
        return router.add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))

    def _parts(self, X: Any, y: Any, n: int, codes: Tensor | None, routed: Routed) -> Any:
        """Return folds as row numbers; None for leave-one-out, or the name of a criterion."""
        if self.cv is None or isinstance(self.cv, str):
            return self.cv
        return make_parts(self.cv, X, y, n, codes, dict(routed.split))

    def _choose(
        self, problem: Problem, alphas: Any, parts: Any, rows: ScoreRows | None, fold: FoldJudge | None
    ) -> Found:
        """Choose by leave-one-out, which `rows` judges, or by folds, which `fold` judges."""
        if isinstance(problem.X, Tensor):
            problem = problem._replace(X=own_rows(problem.X, problem.y.shape[1]))
        per_target = getattr(self, "alpha_per_target", False)
        if isinstance(alphas, str) or isinstance(parts, str):
            return self._criterion(problem, alphas, "loo" if parts is None else parts, per_target)
        grid = as_tensor(alphas).to(problem.y.device)
        return self._scored(problem, grid, parts, rows, fold)

    def _scored(
        self, problem: Problem, grid: Tensor, parts: Any, rows: ScoreRows | None, fold: FoldJudge | None
    ) -> Found:
        X, y, weight = problem
        per_target = getattr(self, "alpha_per_target", False)
        if not isinstance(X, Tensor):
            return self._scored_sparse(problem, grid, parts, rows, fold)
        if parts is not None:
            asked = {"intercept": self.fit_intercept, "scoring": self.scoring, "per_target": per_target}
            return by_folds(X, y, weight, grid, parts, score=fold, **asked)
        store = self.store_cv_results
        return leave_one_out(
            X, y, weight, grid, intercept=self.fit_intercept, score=rows, store=store, per_target=per_target
        )

    def _scored_sparse(
        self, problem: Problem, grid: Tensor, parts: Any, rows: ScoreRows | None, fold: FoldJudge | None
    ) -> Found:
        X, y, weight = problem
        if parts is not None:
            if getattr(self, "alpha_per_target", False):
                raise ValueError("`alpha_per_target`=True with folds of a sparse `X`: pass a dense one, or cv='gcv'.")
            assert fold is not None
            return by_sparse_folds(X, y, weight, grid, parts, intercept=self.fit_intercept, score=fold)
        if X.shape[0] > sparse_gram.ROWS:
            raise ValueError(
                f"leave-one-out of a sparse `X` needs the Gram matrix of its rows, which is made for up to "
                f"{sparse_gram.ROWS} rows; got {X.shape[0]}. Choose by folds, e.g. `cv`=5, or by `cv`='gcv'."
            )
        asked = {"score": rows, "store": self.store_cv_results}
        asked["per_target"] = getattr(self, "alpha_per_target", False)
        return sparse_leave_one_out(X, y, weight, grid, intercept=self.fit_intercept, **asked)

    def _prepared(self, table: Table, targets: int, alphas: Any, parts: Any) -> Table:
        """Return a table that is made dense if that costs less, and fits."""
        if not table.sparse or not fits(table):
            return table
        (n, d), entries = table.X.shape, int(table.X.nnz)
        if parts is None:  # leave-one-out needs the Gram matrix of the rows: from products, or filled
            few = n <= sparse_gram.ROWS and gram_pays(n, d, entries)
            return table if few and not isinstance(alphas, str) else filled(table)
        above = isinstance(alphas, str) or bool((alphas > 0).all())
        if isinstance(parts, list):
            cheaper = folds_pay(n, d, entries, targets, 40 if isinstance(alphas, str) else len(alphas))
        else:
            cheaper = pays(n, d, entries, targets * (4 if isinstance(alphas, str) else min(len(alphas), 4)))
        return table if above and cheaper else filled(table)

    def _criterion(self, problem: Problem, alphas: Any, cv: Any, per_target: bool) -> Found:
        """Choose by what the front door has besides scikit-learn's: a grid of its own, GCV, the evidence."""
        _check.option(self.scoring, "scoring", (None, "neg_mean_squared_error"))
        if isinstance(cv, str):
            _check.option(cv, "cv", criteria.CRITERIA)
        X, y, weight = problem
        solution = ridge_cv(
            X, y, alphas, cv, sample_weight=weight, fit_intercept=self.fit_intercept, alpha_per_target=per_target
        )
        return _from_solution(solution)

    def _by_products(
        self, table: Table, y: Tensor, weight: Tensor | None, alphas: Any, parts: Any, routed: Routed
    ) -> Found:
        """Choose for a sparse matrix that is only multiplied with: by GCV, or by squared errors of folds."""
        criterion = isinstance(parts, str)
        if parts is None or not (criterion or follows_from_moments(self.scoring, weight, routed.score)):
            raise ValueError(too_large(table.X.shape))
        _check.option(self.scoring, "scoring", (None, "neg_mean_squared_error") if criterion else _OF_FOLDS)
        solution = ridge_cv(
            table.X,
            y.double(),
            "auto" if isinstance(alphas, str) else as_tensor(alphas),
            parts,
            scoring="mse" if criterion else _OF_FOLDS[self.scoring],
            sample_weight=weight,
            fit_intercept=self.fit_intercept,
            alpha_per_target=getattr(self, "alpha_per_target", False),
            solver="cg",
        )
        return _from_solution(solution)

    def _keep_found(self, table: Table, found: Found, vector: bool) -> None:
        self._forget()
        self.__dict__.pop("cv_results_", None)
        self._note_features(table)
        self._keep_choice(found, table.container, vector)
        if found.results is not None:
            results = found.results[:, 0] if vector else found.results
            self.cv_results_ = table.container.give(results)

    def _keep_choice(self, found: Found, container: Container, vector: bool) -> None:
        self._keep_solution(found.solution, container, vector)
        self.alpha_, self.best_score_ = found.alpha, found.score
        if container.tensor and isinstance(found.alpha, np.ndarray):
            self.alpha_ = container.give(torch.from_numpy(found.alpha))
            self.best_score_ = container.give(torch.from_numpy(found.score))

    def _solve_moments(self) -> None:
        solution = ridge_cv(
            self.moments_,
            alphas=self._check_alphas(),
            cv=self.cv if isinstance(self.cv, str) else None,
            scoring="r2" if self.moments_.folds and _check.one_of(self.scoring, None, "r2") else "mse",
            fit_intercept=self.fit_intercept,
            alpha_per_target=getattr(self, "alpha_per_target", False),
        )
        vector = self.moments_.vector_target and self._estimator_type == "regressor"
        self._keep_choice(_from_solution(solution), self._container, vector)

    def _check_streamed(self, fold: Any) -> None:
        _check.option(self.scoring, "scoring", (None, "r2", "neg_mean_squared_error"))
        if fold is None and not _check.one_of(self.cv, None, *criteria.from_moments()):
            raise ValueError(
                f"`fold` is missing: `cv`={self.cv!r} holds out rows, and moments keep none. Give every batch its "
                f"fold, or leave `cv` out, which is generalized cross-validation for streamed rows."
            )


def _from_solution(solution: RidgeSolution) -> Found:
    assert solution.best_score is not None
    score = solution.best_score
    if solution.alpha.ndim == 0:
        return Found(float(solution.alpha), float(score), solution)
    return Found(solution.alpha.cpu().numpy(), score.cpu().numpy(), solution)


def _check_alpha(alpha: Any, name: str, strict: bool) -> None:
    """Raise in scikit-learn's words unless a strength is a number, at least zero or, for leave-one-out, above."""
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise TypeError(f"{name} must be an instance of float, not {type(alpha).__name__}.")
    if not float(alpha) >= 0 or (strict and alpha == 0):
        bound = "> 0.0. Leave-one-out needs positive `alphas`" if strict else ">= 0.0"
        raise ValueError(f"{name} == {alpha}, must be {bound}.")

"""`LogisticRegression` and `LogisticRegressionCV`, as scikit-learn names them, with the L2 penalty."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from torchridge import _check
from torchridge.estimators._folds import make_parts
from torchridge.estimators._logistic_model import LogisticModel
from torchridge.estimators._logistic_search import best_of, fold_paths, fold_scores, keep_paths, mean_of_best
from torchridge.estimators._scorers import resolve, route
from torchridge.exceptions import IgnoredOptionWarning, warn


class LogisticRegression(LogisticModel):
    r"""Logistic regression with an L2 penalty: minimize C Σ s CE(y, W x + b) + ½ ‖W‖².

    CE is the cross-entropy of the softmax over all classes, or of the one logit of the second of two. b is never
    penalized. Parameters and attributes mean what they mean in `sklearn.linear_model.LogisticRegression`; one solver
    stands in for all its names, and stops on the relative gap of the objective. Sparse rows are only multiplied with.

    Args:
        penalty: kept for scikit-learn's signature: "l2", or None as C = ∞. Deprecated there, and warns.
        C: strength, C = 1 / (2 λ Σ s) for λ Σ W² added to the mean loss; with `np.inf` there is no penalty.
        l1_ratio: kept for scikit-learn's signature; 0.
        dual: kept for scikit-learn's signature, which takes True with solver="liblinear" only.
        tol: stops at a relative gap of the objective of 100 tol², at most 1e-6, which is at least as exact as
            scikit-learn's bound on the gradient; at most 1e-10 when an evaluation takes milliseconds.
        fit_intercept: whether to fit b.
        intercept_scaling: kept for scikit-learn's signature; another value than 1 warns that it has no effect.
        class_weight: weights by label that multiply the sample weights, or "balanced". It may name classes that the
            rows lack, if it names all that they have.
        random_state: kept for scikit-learn's signature; nothing is random.
        solver: a name of scikit-learn's, all of which minimize the objective above; "liblinear", which penalizes the
            intercept there, warns.
        max_iter: iterations; ten evaluations of loss and gradient are allowed for each.
        verbose: kept for scikit-learn's signature; warns that nothing is printed.
        warm_start: kept for scikit-learn's signature; warns, as fits start anew. A path is cheaper by
            `torchridge.logistic`.
        n_jobs: kept for scikit-learn's signature; warns that it has no effect.
        device: where to compute; by default where X is.

    Attributes:
        coef_: (1, d) for two classes, (k, d) for more.
        intercept_: (1,) or (k,).
        classes_: (k,) labels, a tensor if y came as one.
        n_iter_: (1,) evaluations.
        solution_: the `LogisticSolution`.

    Shape:
        - X: (n, d); y: (n,); sample_weight: (n,)

    Cost: as `torchridge.logistic`, of one strength.

    Example:
        >>> import torch
        >>> from torchridge.estimators import LogisticRegression
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> model = LogisticRegression().fit(X, torch.tensor([0, 1, 0, 1]))
        >>> model.coef_.round(decimals=4)
        tensor([[0.4529]], dtype=torch.float64)
    """

    def __init__(
        self,
        penalty: Any = "deprecated",
        *,
        C: float = 1.0,
        l1_ratio: float | None = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: Any = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: int | None = None,
        device: Any = None,
    ) -> None:
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
        self.dual = dual
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.intercept_scaling = intercept_scaling
        self.class_weight = class_weight
        self.random_state = random_state
        self.solver = solver
        self.max_iter = max_iter
        self.verbose = verbose
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LogisticRegression:
        """Fit to rows, and return self.

        Args:
            X: (n, d), as in `Ridge.fit`; a sparse matrix is never filled, nor centred in memory.
            y: (n,) labels of any kind.
            sample_weight: a number, or (n,), s ≥ 0.

        Raises:
            ValueError: as `Ridge.fit`; on labels that are not discrete, or of one class only.

        Warns:
            ConvergenceWarning: if `max_iter` was reached before the tolerance.
            SeparationWarning: without a penalty, if classes are separable, so that no optimum exists.
            IgnoredOptionWarning: on options that have no effect.
        """
        self._check_options(self.l1_ratio)
        self._say_ignored(n_jobs=self.n_jobs, warm_start=self.warm_start)
        rows = self._rows(X, y, sample_weight)
        solution = self._solved(rows, self._strength())
        self._forget()
        self._note_features(rows.table)
        self._keep_labels(rows.labels)
        self._keep_logits(solution.weight, solution.bias, rows.table.container)
        self.n_iter_ = rows.table.container.kind(np.asarray([int(solution.n_iter)], dtype=np.int32))
        self.solution_ = solution
        return self

    def _strength(self) -> Any:
        if self.penalty is not None:
            return self.C
        if self.C != 1.0:
            warn(
                f"Setting penalty=None will ignore the C and l1_ratio parameters, got `C`={self.C!r}. Leave it out.",
                IgnoredOptionWarning,
            )
        return np.inf


class LogisticRegressionCV(LogisticModel):
    r"""Logistic regression that chooses C by folds: minimize C Σ s CE(y, W x + b) + ½ ‖W‖².

    All folds and strengths are solved together in one eigenbasis. Parameters and attributes mean what they mean in
    `sklearn.linear_model.LogisticRegressionCV`: of equal scores the first C wins. See `LogisticRegression`.

    Args:
        Cs: (L,) strengths, or how many between 1e-4 and 1e4; with `np.inf` there is no penalty.
        l1_ratios: kept for scikit-learn's signature; zeros, which give the legacy attributes their last axis but one.
        fit_intercept: as in `LogisticRegression`.
        cv: a number of folds (5 by default), stratified by class as scikit-learn's `StratifiedKFold` makes them; a
            splitter; or (train, test) row numbers.
        dual: as in `LogisticRegression`.
        penalty: as in `LogisticRegression`.
        scoring: None or "warn" for accuracy, or what `RidgeCV` takes, a metric of probabilities; weighted by
            `sample_weight`. A scorer of scikit-learn is told all classes, as a held-out part may lack one. A score of
            NaN is the worst, and warns; a fold of nothing else is left out.
        solver: as in `LogisticRegression`.
        tol: as in `LogisticRegression`.
        max_iter: as in `LogisticRegression`.
        class_weight: as in `LogisticRegression`.
        n_jobs: as in `LogisticRegression`.
        verbose: as in `LogisticRegression`.
        refit: fit all rows at the best C; otherwise average the weights of the folds, each at its own best.
        intercept_scaling: as in `LogisticRegression`.
        random_state: as in `LogisticRegression`.
        use_legacy_attributes: as in scikit-learn 1.8 and later: False for the shapes it will have from 1.10 on.
        device: as in `LogisticRegression`.

    Attributes:
        C_: the best strength; (1,) or (k,) with the legacy attributes.
        Cs_: (L,).
        scores_: (K, m, L) for m values of `l1_ratios`; legacy, a dict by class of (K, L, m).
        coefs_paths_: (K, m, L, c, d + 1), the intercept last; legacy, a dict by class of (K, L, m, d + 1).
        n_iter_: (K, m, L); legacy (1, K, L, m). Without `l1_ratios` m is 1, and the legacy attributes lack it.
        coef_: as in `LogisticRegression`.
        intercept_: as in `LogisticRegression`.
        classes_: as in `LogisticRegression`.

    Cost: as `torchridge.logistic_cv`.

    Example:
        >>> import torch
        >>> from torchridge.estimators import LogisticRegressionCV
        >>> X = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]
        >>> y = (X[:, 0] + torch.sin(40 * X[:, 0]) > 0).long()
        >>> options = {"cv": 4, "scoring": "neg_log_loss", "use_legacy_attributes": False}
        >>> LogisticRegressionCV(Cs=[1e-3, 1e-1, 1e3], **options).fit(X, y).C_
        0.1
    """

    _requests: ClassVar[dict[str, tuple[str, ...]]] = {"fit": ("sample_weight",)}  # `score` hands all to the scorer
    C_: Any
    l1_ratio_: Any

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Any = "warn",
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        penalty: Any = "deprecated",
        scoring: Any = "warn",
        solver: str = "lbfgs",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1.0,
        random_state: Any = None,
        use_legacy_attributes: Any = "warn",
        device: Any = None,
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.fit_intercept = fit_intercept
        self.cv = cv
        self.dual = dual
        self.penalty = penalty
        self.scoring = scoring
        self.solver = solver
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.refit = refit
        self.intercept_scaling = intercept_scaling
        self.random_state = random_state
        self.use_legacy_attributes = use_legacy_attributes
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> LogisticRegressionCV:
        """Choose C, fit all rows at it, and return self.

        Args:
            X: as in `LogisticRegression.fit`.
            y: as in `LogisticRegression.fit`.
            sample_weight: as in `LogisticRegression.fit`.
            **params: metadata for the scorer and the splitter, if scikit-learn's metadata routing is enabled.

        Raises:
            ValueError: as `LogisticRegression.fit`; on folds that cannot be made.

        Warns:
            ConvergenceWarning: if `max_iter` was reached before the tolerance.
            UndefinedScoreWarning: if a score is NaN.
            GridEdgeWarning: if the best strength is the first or last of several.
            SeparationWarning: as `LogisticRegression.fit`.
            IgnoredOptionWarning: as `LogisticRegression.fit`.
        """
        self._check_options(None if isinstance(self.l1_ratios, str) else self.l1_ratios)
        self._say_ignored()
        scorer = self._scorer()
        routed = route(self, sample_weight, params, scorer)
        rows = self._rows(X, y, sample_weight)
        n = rows.codes.shape[0]
        parts = make_parts(5 if self.cv is None else self.cv, X, y, n, rows.labels.codes, dict(routed.split))
        Cs = np.inf if self.penalty is None else self.Cs
        paths = fold_paths(rows, parts, Cs, self._settings(rows))
        scores = fold_scores(paths, rows, parts, scorer, routed.score)
        best = best_of(paths.Cs, scores)
        self._forget()
        self._note_features(rows.table)
        self._keep_labels(rows.labels)
        if self.refit:
            C = float(paths.Cs[best])
            solution = self._solved(rows, C)
            self._keep_logits(solution.weight, solution.bias, rows.table.container)
        else:
            C, weight, bias = mean_of_best(paths, scores)
            self._keep_logits(weight, bias, rows.table.container)
        keep_paths(self, paths, scores, C, rows.table.container)
        return self

    def _scorer(self) -> Any:
        return None if _check.one_of(self.scoring, None, "warn", "accuracy") else resolve(self.scoring)

    def score(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> float:
        """Return the score named by `scoring` (accuracy by default), weighted."""
        scorer = self._scorer()
        routed = route(self, sample_weight, params, scorer, "score")
        if scorer is None:
            return super().score(X, y, sample_weight)
        return float(scorer(self, X, y, **routed.score))

    def get_metadata_routing(self) -> Any:
        """Return what `fit` and `score` hand to the scorer and the splitter, as scikit-learn's `MetadataRouter`."""
        from sklearn.metrics import get_scorer
        from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping

        to_scorer = MethodMapping().add(caller="fit", callee="score").add(caller="score", callee="score")
        router = MetadataRouter(owner=self).add_self_request(self._metadata_requests())
        router.add(scorer=self._scorer() or get_scorer("accuracy"), method_mapping=to_scorer)
        return router.add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))

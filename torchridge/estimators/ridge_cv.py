"""`RidgeCV` and `RidgeClassifierCV`, as scikit-learn names them, with every strength scored in closed form."""

from __future__ import annotations

from typing import Any

from torchridge import _check
from torchridge.estimators._cv_model import Problem, RidgeCVModel
from torchridge.estimators._input import Table, beside, is_sparse, read_table, read_target, read_weight
from torchridge.estimators._judges import judge_class_folds, judge_classes, judge_folds, judge_rows
from torchridge.estimators._kinds import Classifier, Regressor
from torchridge.estimators._labels import Labels, class_weights, joined_weights, read_labels
from torchridge.estimators._scorers import Routed, Scorer, resolve, route
from torchridge.estimators._search import Found, follows_from_moments
from torchridge.exceptions import warn


class RidgeCV(RidgeCVModel, Regressor):
    r"""Ridge regression that chooses α among strengths by leave-one-out or folds.

    Minimizes Σ s ‖y − Wx − b‖² + α ‖W‖² at the α that predicts best; b is never penalized. Parameters and attributes
    mean what they mean in `sklearn.linear_model.RidgeCV` (1.9): of equal scores the first strength wins, and held-out
    rows are weighted if the scorer takes weights. Beyond it: ``alphas="auto"``, ``cv="gcv"``, ``cv="evidence"``,
    tensors, streams.

    Args:
        alphas: (L,) strengths, positive for leave-one-out; or "auto", a grid from the data.
        fit_intercept: whether to fit b.
        scoring: None: minus the mean squared error for leave-one-out, R² for folds; a name of
            scikit-learn's, or "correlation", Pearson's of held-out predictions, the mean over targets; a callable
            ``scorer(estimator, X, y)`` or ``metric(y_true, y_score)``, larger for a better fit; or an object with
            `update` and `compute` such as torchmetrics', or a collection of them, of which the first chooses; scores
            are the negative of a metric for which smaller is better. Leave-one-out scores all held-out predictions
            together.
        cv: None for exact leave-one-out; a number of folds, contiguous runs of rows as scikit-learn's `KFold`
            makes them; a splitter; (train, test) row numbers; "gcv"; "evidence".
        gcv_mode: kept for scikit-learn's signature; one exact method serves them all.
        store_cv_results: keep `cv_results_`.
        alpha_per_target: choose α for each target. With folds (which scikit-learn refuses) the score has to follow from
            squared errors: None, "r2", "neg_mean_squared_error", "neg_root_mean_squared_error".
        device: where to compute; by default where X is.

    Attributes:
        alpha_: the best strength; (t,) with `alpha_per_target`.
        best_score_: its score; (t,) with `alpha_per_target`.
        cv_results_: (n, L) or (n, t, L): s e² of the held-out rows, or their predictions if `scoring` is given.
        coef_: as in `Ridge`; with many targets made when it is read.
        intercept_: as in `Ridge`.
        n_features_in_: as in `Ridge`.
        feature_names_in_: as in `Ridge`.
        solution_: the `RidgeSolution` at alpha_.
        moments_: the `Moments` that `partial_fit` gathered.

    Shape:
        - X: (n, d); y: (n,) or (n, t); sample_weight: (n,)

    Cost: one Gram matrix, one eigendecomposition (K for folds), and n·d·t·L for leave-one-out.

    Example:
        >>> import numpy as np
        >>> from torchridge.estimators import RidgeCV
        >>> rng = np.random.RandomState(0)
        >>> X = rng.randn(50, 4)
        >>> y = X @ [1.0, 2.0, 0.0, 0.0] + 3 * rng.randn(50)
        >>> model = RidgeCV(alphas=[1e-2, 1.0, 1e2]).fit(X, y)
        >>> model.alpha_, round(model.score(X, y), 4)
        (1.0, 0.5218)
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        gcv_mode: str | None = None,
        store_cv_results: bool = False,
        alpha_per_target: bool = False,
        device: Any = None,
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.gcv_mode = gcv_mode
        self.store_cv_results = store_cv_results
        self.alpha_per_target = alpha_per_target
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> RidgeCV:
        """Choose α, fit all rows at it, and return self.

        Args:
            X: (n, d), as in `Ridge.fit`; a sparse matrix that would not fit in memory when made dense needs cv="gcv" or
                folds, and is only multiplied with.
            y: (n,) or (n, t).
            sample_weight: a number, or (n,), s ≥ 0.
            **params: metadata for the scorer and the splitter, if scikit-learn's metadata routing is enabled.

        Raises:
            ValueError: as `Ridge.fit`; on strengths that are not positive, on folds that cannot be made.
            TypeError: on what is not numbers.
        """
        _check.option(self.alpha_per_target, "alpha_per_target", (True, False))
        self._check_options()
        _check.option(self.gcv_mode, "gcv_mode", (None, "auto", "svd", "eigen"))
        alphas, scorer = self._check_alphas(), resolve(self.scoring, self._estimator_type)
        routed = route(self, sample_weight, params, scorer)
        if self.gcv_mode == "svd" and self.cv is None and is_sparse(X):
            warn(
                "The 'svd' mode is not supported for sparse X from scikit-learn 1.11 on. Leave `gcv_mode` out; the "
                "numbers are the same.",
                FutureWarning,
            )
        table = read_table(X, self.device, sparse=True)
        y_, weight = read_target(y, table), read_weight(sample_weight, table)
        vector = y_.ndim == 1
        parts = self._parts(X, y, len(y_), None, routed)
        table = self._prepared(table, 1 if vector else y_.shape[1], alphas, parts)
        squares = isinstance(parts, str) or follows_from_moments(self.scoring, weight, routed.score)
        if table.sparse and parts is not None and squares:
            found = self._by_products(table, y_[:, None] if vector else y_, weight, alphas, parts, routed)
            self._keep_found(table, found, vector)
            return self
        rows = None if scorer is None else judge_rows(scorer, routed.score, vector, self.alpha_per_target)
        fold = None
        if isinstance(parts, list) and not squares:
            fold = judge_folds(table, y_, parts, self.fit_intercept, scorer, routed.score)
        problem = Problem(table.X, y_[:, None] if vector else y_, weight)
        self._keep_found(table, self._choose(problem, alphas, parts, rows, fold), vector)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, fold: Any = None) -> RidgeCV:
        """Add rows to those that `partial_fit` has seen since `fit`, and return self; see `Ridge.partial_fit`.

        α is chosen when the weights are next looked at: by the folds if they are given; otherwise by generalized
        cross-validation, which approximates leave-one-out from moments alone, or by cv="evidence".

        Args:
            X: as in `fit`.
            y: as in `fit`.
            sample_weight: as in `fit`; here held-out errors are weighted, too.
            fold: the fold of the batch, or (n,) integer ids; if given, held-out errors choose α.

        Raises:
            ValueError: as `fit`; without `fold` if `cv` asks for folds.
        """
        self._check_options()
        self._check_streamed(fold)
        self._check_alphas()
        table = self._read_batch(X)
        target, weight = read_target(y, table), read_weight(sample_weight, table)
        self._add_rows(table, target, weight, fold)
        return self


class RidgeClassifierCV(RidgeCVModel, Classifier):
    r"""Ridge classification that chooses α among strengths by leave-one-out or folds.

    Minimizes Σ s ‖y − Wx − b‖² + α ‖W‖² on targets of ±1; b is never penalized. Parameters and attributes mean what
    they mean in `sklearn.linear_model.RidgeClassifierCV`; see `RidgeCV`. If a scorer judges leave-one-out for two
    classes, it is given the two classes (scikit-learn 1.9 gives it one, and scores 1.0 throughout).

    Args:
        alphas: as in `RidgeCV`.
        fit_intercept: as in `RidgeCV`.
        scoring: as in `RidgeCV`; None is accuracy for folds.
        cv: as in `RidgeCV`, but a number of folds makes them stratified by class, as scikit-learn's `StratifiedKFold`.
        class_weight: as in `RidgeClassifier`.
        store_cv_results: as in `RidgeCV`.
        device: as in `RidgeCV`.

    Attributes:
        alpha_: the best strength.
        best_score_: its score.
        cv_results_: (n, t, L) as in `RidgeCV`, t = 1 for two classes.
        coef_: as in `RidgeClassifier`.
        intercept_: as in `RidgeClassifier`.
        classes_: as in `RidgeClassifier`.

    Shape:
        - X: (n, d); y: (n,) labels; sample_weight: (n,)

    Cost: as `RidgeCV`, with one target for two classes, else one for each class.

    Example:
        >>> import torch
        >>> from torchridge.estimators import RidgeClassifierCV
        >>> X = torch.linspace(-1, 1, 20)[:, None]
        >>> RidgeClassifierCV([1.0]).fit(X, X[:, 0] > 0).predict(torch.tensor([[-0.5], [0.5]]))
        tensor([False,  True])
    """

    def __init__(
        self,
        alphas: Any = (0.1, 1.0, 10.0),
        *,
        fit_intercept: bool = True,
        scoring: Any = None,
        cv: Any = None,
        class_weight: Any = None,
        store_cv_results: bool = False,
        device: Any = None,
    ) -> None:
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.class_weight = class_weight
        self.store_cv_results = store_cv_results
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> RidgeClassifierCV:
        """Choose α, fit all rows at it, and return self.

        Args:
            X: as in `RidgeCV.fit`; a sparse matrix that would not fit in memory when made dense needs cv="gcv".
            y: as in `RidgeClassifier.fit`.
            sample_weight: as in `RidgeCV.fit`.
            **params: as in `RidgeCV.fit`.

        Raises:
            ValueError: as `RidgeCV.fit`; on labels that are not discrete.
        """
        self._check_options()
        alphas = self._check_alphas()
        table = read_table(X, self.device, sparse=True)
        labels = read_labels(y, table.X.shape[0])
        weight = joined_weights(read_weight(sample_weight, table), class_weights(self.class_weight, labels))
        scorer = resolve(self.scoring)
        routed = route(self, None if weight is None else weight.cpu().numpy(), params, scorer)
        parts = self._parts(X, y, len(labels.codes), None if labels.multilabel else labels.codes, routed)
        table = self._prepared(table, labels.signs.shape[1], alphas, parts)
        if table.sparse and isinstance(parts, str):
            found = self._by_products(table, labels.signs, weight, alphas, parts, routed)
        else:
            found = self._judged(table, labels, weight, alphas, parts, scorer, routed)
        self._keep_labels(labels)
        self._keep_found(table, found, False)
        return self

    def _judged(
        self, table: Table, labels: Labels, weight: Any, alphas: Any, parts: Any, scorer: Scorer | None, routed: Routed
    ) -> Found:
        """Choose by leave-one-out or folds of dense rows."""
        rows = None if scorer is None else judge_classes(scorer, routed.score, labels)
        fold = None
        if isinstance(parts, list):
            fold = judge_class_folds(table, labels, weight, parts, self.fit_intercept, scorer, routed.score)
        return self._choose(Problem(table.X, beside(table, labels.signs), weight), alphas, parts, rows, fold)

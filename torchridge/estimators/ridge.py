"""`Ridge` and `RidgeClassifier`, as scikit-learn names them, solved in closed form."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from torchridge.estimators._input import Container, beside, is_sparse, read_table, read_target, read_weight
from torchridge.estimators._kinds import Classifier, Regressor
from torchridge.estimators._labels import class_weights, joined_weights, read_labels
from torchridge.estimators._linear import LinearModel, is_stream
from torchridge.estimators._solve import Fitted, Request, check_request, solve_moments, solve_rows
from torchridge.linear.ridge.solution.solution import RidgeSolution


class _RidgeModel(LinearModel):
    """The parameters and the solve that regression and classification share."""

    _requests: ClassVar[dict[str, tuple[str, ...]]] = dict.fromkeys(("fit", "partial_fit", "score"), ("sample_weight",))
    alpha: Any
    max_iter: Any
    tol: Any
    solver: str
    positive: bool
    n_iter_: Any
    solver_: str
    solution_: RidgeSolution | None

    def _request(self) -> Request:
        return Request(self.alpha, self.fit_intercept, self.solver, self.positive, self.max_iter, self.tol)

    def _keep(self, fitted: Fitted, container: Container, vector: bool) -> None:
        self._keep_solution(fitted.solution, container, vector)
        self.solver_, self.n_iter_ = fitted.solver, None
        if self.solver in ("auto", "sag", "saga", "lsqr"):
            steps = getattr(fitted.solution, "n_iter", None) or 1  # one direct solve
            self.n_iter_ = container.kind(np.full(len(fitted.solution.bias), steps, dtype=np.int32))

    def _solve_moments(self) -> None:
        fitted = solve_moments(self.moments_, self._request())
        self._keep(fitted, self._container, self.moments_.vector_target)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.solver != "svd" and (
            self.solver not in ("cholesky", "saga") or not self.fit_intercept
        )
        return tags


class Ridge(_RidgeModel, Regressor):
    r"""Ridge regression: minimize Σ s ‖y − Wx − b‖² + α ‖W‖² over W and b.

    b is never penalized. Parameters and attributes mean what they mean in `sklearn.linear_model.Ridge`; the answer is
    exact whichever `solver` is named: float32 rows are summed and solved in float64 and rounded once, ill-conditioned
    problems go back to the rows, and α = 0 on linearly dependent features gives the minimum-norm weights (and a
    `RankDeficientWarning`). What is too large for that, a sparse matrix of many columns above all, is solved by
    preconditioned conjugate gradients to a relative residual of 1e-8 (see `torchridge.ridge`), or a
    `ConvergenceWarning` says that it was not.

    Tensors give tensors of the same device and dtype, anything else numpy arrays. scikit-learn need not be installed.

    Args:
        alpha: α ≥ 0; an array of shape (t,) gives each target its own.
        fit_intercept: whether to fit b.
        copy_X: kept for scikit-learn's signature; X is never written to.
        max_iter: with `positive`, the most exchanges of the active set; the most steps of conjugate gradients on a
            sparse matrix; the direct solvers have no iterations.
        tol: conjugate gradients go to a relative residual of tol·1e-4, at most 1e-8; the direct solvers to rounding.
        solver: "auto", "svd" (of the rows), or a name of scikit-learn's that the exact solve then stands in for:
            "cholesky", "lsqr", "sparse_cg", "sag", "saga"; "lbfgs" for `positive`.
        positive: constrain W ≥ 0 (exact, by block principal pivoting on the d × d moments).
        random_state: kept for scikit-learn's signature; nothing is random.
        device: where to compute; by default where X is.

    Attributes:
        coef_: (d,), or (t, d) for several targets. If n < d and n < t it is made when it is first read, and then kept:
            the model holds a copy of the rows and n numbers for each target, and predicts, scores and is saved without
            weights. Once it was read or set, predictions follow it.
        intercept_: a number, or (t,) if y came as (n, t).
        n_features_in_: d.
        feature_names_in_: (d,), if X came with names.
        n_iter_: (t,), one for a direct solve, the steps of conjugate gradients; None for the solvers that scikit-learn
            has None for.
        solver_: the solver named, or the one that "auto" chose.
        solution_: the `RidgeSolution`, with condition number, degrees of freedom and the reason for the solver; None
            for `positive`.
        moments_: the `Moments` that `partial_fit` gathered.

    Shape:
        - X: (n, d); y: (n,) or (n, t); sample_weight: (n,)

    Cost: n·d·min(n, d)/2 multiply-adds and min(n, d)³.

    Example:
        >>> import numpy as np
        >>> from torchridge.estimators import Ridge
        >>> rng = np.random.RandomState(0)
        >>> y, X = rng.randn(10), rng.randn(10, 5)
        >>> model = Ridge(alpha=2.0).fit(X, y)
        >>> model
        Ridge(alpha=2.0)
        >>> round(model.score(X, y), 4)
        0.5576
    """

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        solver: str = "auto",
        positive: bool = False,
        random_state: Any = None,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.solver = solver
        self.positive = positive
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Ridge:
        """Fit to rows, or to an iterable of batches (X, y) or (X, y, sample_weight), and return self.

        Args:
            X: (n, d): a tensor, an array, a data frame, a scipy.sparse matrix; or the iterable, without y.
            y: (n,) or (n, t).
            sample_weight: a number, or (n,), s ≥ 0.

        Raises:
            ValueError: on wrong shapes, NaN or infinity, negative numbers, unknown options.
            TypeError: on what is not numbers.

        Warns:
            RankDeficientWarning: if the penalty does not decide between solutions.
        """
        if is_stream(X, y):
            return self._fit_stream(X, sample_weight)
        request = self._request()
        check_request(request, is_sparse(X))
        table = read_table(X, self.device, sparse=True)
        target, weight = read_target(y, table), read_weight(sample_weight, table)
        fitted = solve_rows(table, target, weight, request)
        self._forget()
        self._note_features(table)
        self._keep(fitted, table.container, target.ndim == 1)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Ridge:
        """Add rows to those that `partial_fit` has seen since `fit`, and return self.

        Only their moments are kept; the weights are solved for when they are next looked at. A refused batch changes
        nothing. Any order of the rows gives the same model, to rounding.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            sample_weight: as in `fit`.

        Raises:
            ValueError: as `fit`, and if the batch does not fit the earlier ones.
        """
        self._gather(X, y, sample_weight)
        return self

    def _gather(self, X: Any, y: Any, sample_weight: Any) -> None:
        check_request(self._request(), False)
        table = self._read_batch(X)
        self._add_rows(table, read_target(y, table), read_weight(sample_weight, table))


class RidgeClassifier(_RidgeModel, Classifier):
    r"""Classification by ridge regression on targets of ±1: one for two classes, one per class for more.

    Minimizes Σ s ‖y − Wx − b‖² + α ‖W‖² for these targets; b is never penalized. Parameters and attributes mean what
    they mean in `sklearn.linear_model.RidgeClassifier`; see `Ridge` for how it is solved, and in what kind of array
    the answers come.

    Args:
        alpha: as in `Ridge`.
        fit_intercept: as in `Ridge`.
        copy_X: as in `Ridge`.
        max_iter: as in `Ridge`.
        tol: as in `Ridge`.
        class_weight: weights by label that multiply the sample weights, or "balanced": n / (k · rows of the class).
        solver: as in `Ridge`.
        positive: as in `Ridge`.
        random_state: as in `Ridge`.
        device: as in `Ridge`.

    Attributes:
        coef_: (d,) for two classes, (k, d) for more, or for several labels; made when it is read in the same case as
            that of `Ridge`.
        intercept_: (1,) or (k,).
        classes_: (k,) labels, a tensor if y came as one.

    Shape:
        - X: (n, d); y: (n,), or (n, k) zeros and ones for several labels; sample_weight: (n,)

    Cost: as `Ridge`, with one target for two classes, else one for each class.

    Example:
        >>> import torch
        >>> from torchridge.estimators import RidgeClassifier
        >>> X = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> model = RidgeClassifier().fit(X, torch.tensor([0, 0, 1, 1]))
        >>> model.predict(torch.tensor([[0.4], [2.6]]))
        tensor([0, 1])
    """

    _requests: ClassVar[dict[str, tuple[str, ...]]] = {
        **_RidgeModel._requests,
        "partial_fit": ("classes", "sample_weight"),
    }

    def __init__(
        self,
        alpha: Any = 1.0,
        *,
        fit_intercept: bool = True,
        copy_X: bool = True,
        max_iter: int | None = None,
        tol: float = 1e-4,
        class_weight: Any = None,
        solver: str = "auto",
        positive: bool = False,
        random_state: Any = None,
        device: Any = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.solver = solver
        self.positive = positive
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RidgeClassifier:
        """Fit to rows, and return self.

        Args:
            X: (n, d), as in `Ridge.fit`; batches go to `partial_fit`, which is told their classes.
            y: (n,) labels, or (n, k) zeros and ones.
            sample_weight: as in `Ridge.fit`.

        Raises:
            ValueError: as `Ridge.fit`; on labels that are not discrete.
        """
        request = self._request()
        check_request(request, is_sparse(X))
        table = read_table(X, self.device, sparse=True)
        labels, weight = read_labels(y, table.X.shape[0]), read_weight(sample_weight, table)
        weight = joined_weights(weight, class_weights(self.class_weight, labels))
        fitted = solve_rows(table, beside(table, labels.signs), weight, request)
        self._forget()
        self._note_features(table)
        self._keep_labels(labels)
        self._keep(fitted, table.container, False)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> RidgeClassifier:
        """Add rows to those that `partial_fit` has seen since `fit`, and return self; see `Ridge.partial_fit`.

        Args:
            X: as in `fit`.
            y: as in `fit`.
            classes: all labels of all batches; needed with the first, if `fit` has not seen them.
            sample_weight: as in `fit`.

        Raises:
            ValueError: as `fit`; without `classes` in the first batch; on labels that they do not hold.
        """
        check_request(self._request(), False)
        if "moments_" in self.__dict__ or classes is None:
            classes = getattr(self, "classes_", None)
        if classes is None:
            raise ValueError("`classes` is missing: the first batch should come with all labels of all batches.")
        table = self._read_batch(X)
        labels = read_labels(y, table.X.shape[0], classes)
        weight = class_weights(self.class_weight, labels, streamed=True)
        weight = joined_weights(read_weight(sample_weight, table), weight)
        self._add_rows(table, beside(table, labels.signs), weight)
        self._keep_labels(labels)
        return self

"""What `LogisticRegression` and `LogisticRegressionCV` share: parameters, data, probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import _check
from torchridge.estimators._input import Container, Table, beside, read_table, read_weight
from torchridge.estimators._kinds import Classifier
from torchridge.estimators._labels import Labels, class_weights, joined_weights, read_labels
from torchridge.estimators._protocol import convergence_warning
from torchridge.exceptions import IgnoredOptionWarning, SeparationWarning, warn
from torchridge.linear.logistic.logistic import solve
from torchridge.linear.logistic.problem import Settings, check_data, check_settings, check_strengths
from torchridge.linear.logistic.solution import LogisticSolution

SOLVERS = ("lbfgs", "liblinear", "newton-cg", "newton-cholesky", "sag", "saga")

# Their `tol` bounds the gradient, whose square is what the objective lacks: at their default 1e-4 from 1e-7 to 1e-4 of
# it. When an evaluation takes milliseconds, the gap is closed to 1e-10 all the same.
_GAP, _LITTLE_GAP, _LITTLE = 1e-6, 1e-10, 2**25

# Evaluations of loss and gradient that one of `max_iter` stands for.
EVALUATIONS = 10

MAX_ELEMENTS = 2**24  # logits held at once


class Rows(NamedTuple):
    """Checked rows of classes."""

    table: Table
    labels: Labels
    codes: Tensor  # (n,), on the device of the features
    own: Tensor | None  # (n,) sample weights as they were given
    weight: Tensor | None  # (n,) times the weights of the classes


def _check_penalty(penalty: Any, l1: Any) -> None:
    """Raise on an L1 penalty; say that `penalty` is deprecated if it was given."""
    if isinstance(penalty, str) and penalty in ("l1", "elasticnet"):
        raise ValueError(f"an L1 penalty is not offered, got `penalty`={penalty!r}. Leave it out for L2.")
    _check.option(penalty, "penalty", ("deprecated", "l2", None))
    if l1 is not None and np.any(np.asarray(l1, dtype=float) != 0):
        raise ValueError(f"an L1 penalty is not offered, got an L1 ratio of {l1!r}. Leave it at 0.")
    if not isinstance(penalty, str) or penalty != "deprecated":
        warn(
            f"'penalty' was deprecated in scikit-learn 1.8, got {penalty!r}. Leave it out for L2; C=np.inf for no "
            f"penalty.",
            FutureWarning,
        )


class LogisticModel(Classifier):
    """A classifier of which the scores are logits."""

    C: Any
    penalty: Any
    solver: str
    dual: bool
    verbose: Any
    intercept_scaling: Any
    tol: float
    max_iter: int
    class_weight: Any
    n_iter_: Any

    def _check_options(self, l1: Any) -> None:
        _check_penalty(self.penalty, l1)
        _check.option(self.solver, "solver", SOLVERS)
        _check.option(self.fit_intercept, "fit_intercept", (True, False))
        _check.option(self.dual, "dual", (True, False))
        _check.number(self.tol, "tol")
        _check.integer(self.max_iter, "max_iter", minimum=1)
        if self.dual and self.solver != "liblinear":
            raise ValueError(f"Solver {self.solver} supports only dual=False, got `dual`=True. Leave `dual` out.")

    def _say_ignored(self, n_jobs: Any = None, warm_start: Any = False) -> None:
        """Warn of options that were given and have no effect."""
        said = []
        if self.solver == "liblinear":
            said.append("`solver`='liblinear' penalizes the intercept in scikit-learn; here no solver does")
        if self.intercept_scaling != 1:
            said.append(
                f"`intercept_scaling`={self.intercept_scaling} has no effect, as the intercept is not penalized"
            )
        if warm_start:
            said.append("`warm_start`=True has no effect, as every fit starts anew; `torchridge.logistic` has paths")
        if self.verbose:
            said.append(f"`verbose`={self.verbose} has no effect; nothing is printed")
        for message in said:
            warn(f"{message}. Leave it out.", IgnoredOptionWarning)
        if n_jobs is not None:
            warn(
                f"'n_jobs' has no effect, got {n_jobs!r}: torch's threads serve one fit. Leave it out.",
                FutureWarning,
            )

    def _settings(self, rows: Rows) -> Settings:
        settings = check_settings(
            rows.table.X,
            fit_intercept=self.fit_intercept,
            tol=self._tolerance(rows),
            max_iter=EVALUATIONS * self.max_iter,
            max_elements=MAX_ELEMENTS,
            dtype=None,
        )
        return replace(settings, unconverged=convergence_warning(), separable=convergence_warning(SeparationWarning))

    def _solved(self, rows: Rows, C: Any) -> LogisticSolution:
        """Return all rows fitted at C."""
        data = check_data(rows.table.X, rows.codes, rows.weight)
        return solve(data, check_strengths(C, None, data).reshape(()), self._settings(rows))

    def _rows(self, X: Any, y: Any, sample_weight: Any) -> Rows:
        table = read_table(X, self.device, sparse=True)
        labels = read_labels(y, table.X.shape[0])
        if labels.multilabel:
            raise ValueError("y should be a 1d array of labels, got several columns. Fit one model for each.")
        if len(labels.classes) < 2:
            raise ValueError(
                f"This solver needs samples of at least 2 classes in the data, but the data contains only one class: "
                f"{labels.classes[0]!r}."
            )
        own = read_weight(sample_weight, table)
        weight = joined_weights(own, class_weights(self.class_weight, labels, sample_weight=own))
        return Rows(table, labels, beside(table, labels.codes), own, weight)

    def _tolerance(self, rows: Rows) -> float:
        """Return the relative gap of the objective to stop at."""
        X, classes = rows.table.X, len(rows.labels.classes)
        work = (int(X.nnz) if rows.table.sparse else X.numel()) * (classes if classes > 2 else 1)
        most = _LITTLE_GAP if work <= _LITTLE else _GAP
        most = max(most, _GAP) if rows.table.container.dtype is torch.float32 else most
        return max(min(most, 100 * float(self.tol) ** 2), 1e-15)

    def _keep_logits(self, weight: Tensor, bias: Tensor, container: Container) -> None:
        """Take over weights (c, d) and biases (c,)."""
        self.coef_ = container.give(weight)
        self.intercept_ = container.give(bias)

    def _stacked(self, X: Any) -> tuple[Tensor, Any]:
        """Return log-odds against nothing, (n, k): for two classes those of the first are zero."""
        scores = self._logits(X)
        tensor = torch.as_tensor(scores)
        return torch.stack([torch.zeros_like(tensor), tensor], 1) if tensor.ndim == 1 else tensor, scores

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, (n, k), in the kind of X."""
        logits, like = self._stacked(X)
        proba = logits.softmax(1)
        return proba if isinstance(like, Tensor) else proba.numpy()

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`, without its underflow."""
        logits, like = self._stacked(X)
        proba = logits.log_softmax(1)
        return proba if isinstance(like, Tensor) else proba.numpy()

    def decision_function(self, X: Any) -> Any:
        """Return the logits, (n,) of the second of two classes, (n, k) for more, in the kind of X.

        A class without weight has the least finite number in place of −∞, which metrics refuse.
        """
        scores = self._logits(X)
        least = torch.finfo(torch.as_tensor(scores[:0]).dtype).min
        return scores.clip(least)

    def _logits(self, X: Any) -> Any:
        scores = self._raw(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False
        return tags

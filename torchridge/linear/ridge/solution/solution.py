"""The frozen result of a ridge problem."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchridge import _files as files
from torchridge.linear import curves
from torchridge.linear.curves import Curve, Lines
from torchridge.linear.ridge.solution import describe, parts, predictions, saving
from torchridge.linear.ridge.solution.diagnosed import Diagnosed
from torchridge.linear.ridge.solution.diagnosis import Diagnosis
from torchridge.linear.ridge.solution.dual_solution import DualForm, MadeWhenRead, weight_of
from torchridge.linear.ridge.solution.score import score


@dataclass(frozen=True, eq=False, repr=False)
class RidgeSolution(Diagnosed):
    """Weights that minimize Σ s (y − Wx − b)² + α Σ p (W − prior)², and what is known about them.

    α multiplies the squared weights against the *sum* of squared errors (scikit-learn's convention; see
    `convert_strength`). The intercept is never penalized. A path has a leading dimension of strengths, a batch of
    problems leading dimensions of its own, on every field.

    Attributes:
        weight: (t, d); a path (L, t, d). Of few rows and many targets it is made when it is first read, from `dual`.
        bias: (t,), zero if no intercept was fitted; a path (L, t).
        alpha: the strength, (); (t,) if each target has its own; a path (L,).
        solver: "cholesky", "spectral", "dual", "svd" or "cg".
        reason: why this solver was taken.
        n_samples: rows that were fitted.
        diagnosis: what the next five are computed from, when one of them is first read.
        dof: effective degrees of freedom tr X (XᵀX + αD)⁻¹ Xᵀ of the centred rows: the intercept is not counted. "cg"
            knows them after ``cv="gcv"`` alone, which estimates them, and gives NaN otherwise.
        condition: condition number of XᵀX + αD, features scaled by their penalty, at the weakest strength;
            "cg" gives its bound (λ₁ + α) / α, NaN at rank 0.
        rank: numerical rank of the centred rows, as far as the solver resolved it; None for "cg".
        residual_variance: (t,) Σ s (y − ŷ)² / (n − dof − 1), the −1 with an intercept; NaN if dof is.
        unit_variance: (d,) diagonal of (XᵀX + αD)⁻¹ XᵀX (XᵀX + αD)⁻¹; (t, d) for one strength a target. None from "cg".
        fit_intercept: whether a bias was fitted.
        vector_target: whether y came as (n,), so that predictions are (n,) too.
        is_path: whether there is a leading dimension of strengths.
        alphas: (L,) strengths that cross-validation tried, ascending for an automatic grid.
        scores: (L, t) score of every strength for every target, the mean over folds; larger is better, so that errors
            and losses carry a minus sign.
        fold_scores: (K, L, t) score in every fold.
        best_score: that of the chosen strength, () or (t,).
        scoring: what `scores` hold: "mse" (−Σ s (y − ŷ)² / Σ s of held-out rows), "r2", "correlation", "gcv" (minus the
            criterion), "evidence" (2/n · log evidence), or the name of a metric (minus it, if smaller is better).
        metrics: (K, L, t) of every metric that was asked for, as it is, by name; (K, L, 1) if of all targets together.
        score_errors: (L, t) standard error of `scores` where they hold a random estimate: "gcv" of "cg".
        n_iter: steps of the iteration, of the column that took most; None for direct solvers.
        residual: (t,) ‖e ∘ (Xᵀ S (y − Xw − b) − αD(w − prior))‖ / ‖e ∘ Xᵀ S (y − ȳ − X prior)‖ of centred X, e = 1/√p,
            computed anew in float64 before the weights are rounded; a path (L, t); None for direct solvers.
        converged: whether `residual` is at most the tolerance, shaped as it.
        dual: if n < d and there are more targets (× strengths) than rows, or a kernel was given, the `DualForm` that
            stands for the weights: n numbers for each target, and the rows themselves, not copied.
        dead_targets: (t,) whether a target is constant over all rows: cross-validation gives it NaN for R² and
            correlation, and leaves it out if targets share a strength. None without cross-validation.

    Example:
        >>> import torch
        >>> from torchridge import ridge
        >>> solution = ridge(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.0, 2.0]), alpha=2.0)
        >>> solution.weight, solution.bias, solution.dof.item(), solution.predict(torch.tensor([[3.0]]))
        (tensor([[0.5000]]), tensor([1.]), 0.5, tensor([2.5000]))
        >>> solution.to_linear()
        Linear(in_features=1, out_features=1, bias=True)
    """

    KIND: ClassVar[str] = "torchridge.ridge-solution/1"

    weight: Tensor
    bias: Tensor
    alpha: Tensor
    solver: str
    reason: str
    n_samples: int
    diagnosis: Diagnosis = field(repr=False)
    fit_intercept: bool = True
    vector_target: bool = False
    is_path: bool = False
    alphas: Tensor | None = None
    scores: Tensor | None = None
    fold_scores: Tensor | None = None
    best_score: Tensor | None = None
    scoring: str | None = None
    metrics: dict[str, Tensor] | None = None
    score_errors: Tensor | None = None
    n_iter: int | None = None
    residual: Tensor | None = None
    converged: Tensor | None = None
    dual: DualForm | None = field(default=None, repr=False)
    dead_targets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.dual is not None and self.__dict__["weight"] is None:
            object.__setattr__(self, "weight", weight_of(self.dual, self.is_path))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `weight`, which is not made for it."""
        if self.dual is None:
            return tuple(self.weight.shape)
        _, L, t = self.dual.coef.shape
        return (L, t, self.dual.features) if self.is_path else (t, self.dual.features)

    def with_changes(self, **changes: Any) -> RidgeSolution:
        """Return the solution with some fields changed; weights that were not made are not made for it."""
        changed = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(changed, name, value)
        return changed

    @property
    def dual_coef(self) -> Tensor:
        """Coefficients c of the rows, (n, t), a path (L, n, t): W = cᵀ (X − x̄) D⁻¹ for the rows X that were fitted.

        Raises:
            ValueError: if the solution was not kept in its dual form.
        """
        if self.dual is None:
            raise ValueError(
                f"this solution holds weights, solved by {self.solver!r}; dual coefficients are kept if rows are fewer "
                f"than features and than targets (× strengths). Use `weight`."
            )
        coef = self.dual.coef.movedim(1, 0)
        return coef if self.is_path else coef[0]

    def __repr__(self) -> str:
        return describe.text(self)

    def predict(self, X: Tensor | Any, *, max_bytes: int | None = None) -> Tensor:
        """Return X Wᵀ + b, (n, t), or (n,) if y came as (n,); a path gives a leading dimension of strengths.

        X may be sparse, or an operator, as in `ridge`. In the dual form, predictions come from the kernel of X with the
        rows that were fitted, in chunks; weights are not made. For a given kernel, X is that kernel, (m, n).

        Args:
            X: (n, d), (d,), or with leading dimensions.
            max_bytes: in the dual form, what a call may take above its answer, by default 256 MiB.

        Raises:
            ValueError: on a shape that does not fit, or another device than that of the weights; in the dual form, if
                the rows that were fitted have been changed in place.
            TypeError: on anything but a dense real tensor.
        """
        return predictions.predict(self, X, max_bytes)

    def predictions(self, X: Tensor, max_bytes: int | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield runs of rows of X (m, d), runs of targets, and their predictions (L, rows, targets), for one problem.

        What `score` takes one after the other: all of them need not fit in memory. L = 1 but for a path.
        """
        return predictions.runs(self, X, max_bytes)

    def score(
        self,
        X: Tensor | Any,
        y: Tensor,
        *,
        scoring: str = "r2",
        sample_weight: Tensor | None = None,
        max_bytes: int | None = None,
    ) -> Tensor:
        """Return how well X predicts y, for each target: (t,), () if y came as (n,) to the fit; a path (L, t).

        Args:
            X: (m, d), as in `predict`.
            y: (m, t), or (m,) if the fit had (n,).
            scoring: "r2", 1 − Σ s (y − ŷ)² / Σ s (y − ȳ)²; "mse", Σ s (y − ŷ)² / Σ s; or "correlation", Pearson's. A
                target that is constant in y has neither R² nor correlation: NaN.
            sample_weight: (m,), s ≥ 0.
            max_bytes: what the call may take above its answer, by default 256 MiB.

        Raises:
            ValueError: on shapes that do not fit, NaN or infinity, another device, an unknown `scoring`.
            TypeError: on anything but a dense real tensor.
        """
        return score(self, X, y, scoring, sample_weight, max_bytes)

    def of_targets(self, targets: Any) -> RidgeSolution:
        """Return the solution of some targets: `solution.of_targets(slice(0, 10)).weight` makes their weights alone.

        Args:
            targets: a slice, or numbers or a mask of targets in a list or tensor.

        Raises:
            ValueError: if y came as (n,), or for a batch of problems.
        """
        return parts.of_targets(self, targets)

    def at(self, index: int) -> RidgeSolution:
        """Return one strength of a path; a negative `index` counts from the last.

        Raises:
            ValueError: if there is only one, or no such strength.
        """
        return parts.at(self, index)

    def curve(self, target: int | None = None) -> Curve:
        """Return the score of every strength that was tried, for one target or their mean.

        Raises:
            ValueError: if nothing was chosen, for a batch of problems, and on a target that is out of range.
        """
        return curves.curve(self.alphas, self.scores, self.fold_scores, self.alpha, "α", self.scoring, target)

    def lines(self, target: int = 0) -> Lines:
        """Return the weights of one target at every strength of a path.

        Raises:
            ValueError: unless this is a path of one problem that has the target.
        """
        return curves.lines(self.alpha if self.is_path else self.alpha.new_empty(()), self.weight, "α", target)

    def save(self, path: str | Path, *, names: dict[str, Any] | None = None, form: str = "auto") -> None:
        """Write the solution in safetensors, with a digest of all it holds. Needs safetensors.

        The tensors `weight` and `bias` fit an `nn.Linear`. `dof` and the like are worked out if they have not been
        read yet. Models of the command line are such files. In the dual form the file holds the coefficients (n, t)
        and the rows that they belong to in place of `weight`, and "form": "dual" among its values says so.

        Args:
            path: of the file, written whole or not at all.
            names: of "features" and "targets", lists of strings, for `torchridge predict`.
            form: "weight", "dual", or "auto", the form that the solution has.

        Raises:
            OSError: if the folder does not exist or is not writable, or `path` is a folder itself.
        """
        saving.save(self, path, names, form)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> RidgeSolution:
        """Read a solution. Nothing in the file is executed.

        Raises:
            ValueError: if the file is truncated, altered, or holds something else.
            FileNotFoundError: if there is none.
        """
        return cls.read(path, device)[0]

    @classmethod
    def read(
        cls, path: str | Path, device: torch.device | str = "cpu", name: str = "path"
    ) -> tuple[RidgeSolution, dict[str, Any]]:
        """Return a saved solution and the names that were saved with it; errors call the file `name`."""
        values, names = saving.read(path, cls.KIND, device, name)
        with files.understood(path, name):
            return cls(**values), names

    def to_linear(self) -> nn.Linear:
        """Return an `nn.Linear` that computes `predict`, with a bias if an intercept was fitted.

        Raises:
            ValueError: on a path, or a batch of problems.
        """
        return describe.as_linear(self)


made = MadeWhenRead()
made.__set_name__(RidgeSolution, "weight")
RidgeSolution.weight = made  # type: ignore[assignment]  # after `dataclass`, which would take it for a default

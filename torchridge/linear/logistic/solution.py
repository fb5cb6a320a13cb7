"""What a logistic fit hands back: frozen weights that predict, and how well they were found."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchridge import _check
from torchridge import _files as files
from torchridge.linear import curves, printing, saved
from torchridge.linear.curves import Curve, Lines
from torchridge.linear.matrices import kind_of, operator_of


@dataclass(frozen=True, eq=False, repr=False)
class LogisticSolution:
    """The minimum of `C Σ_i s_i CE(y_i, W x_i + b) + ½‖W‖²`, for one strength or L, for one label vector or h heads.

    The leading dimensions `*` are (L,) for a path, then (h,) for heads; c is 1 for two classes, else k.

    Attributes:
        weight: (*, c, d).
        bias: (*, c); minus infinity for a class that a head lacks, zero without an intercept.
        classes: (k,), sorted.
        C: (L,) or (), the strengths as scikit-learn counts them.
        objective: (*), the objective above, float64.
        gap: (*), estimate of what the objective lacks to its minimum, relative to it, float64.
        n_iter: (*), evaluations of loss and gradient.
        converged: (*), whether the gap reached the tolerance.
        separated: (*), whether every row that has weight falls on the right side: the bias and weights are then
            bounded by the penalty alone, and probabilities near 0 and 1 say nothing of new rows.
        heads: whether y had a column for each of several heads.
        Cs: (L,) strengths that `logistic_cv` tried, in the order given.
        scores: (L, 1) score of every strength, the mean over folds; larger is better, so that losses carry a minus
            sign. The last dimension is that of targets, as in `RidgeSolution`.
        fold_scores: (K, L, 1) score in every fold.
        best_score: that of the chosen strength, ().
        scoring: what `scores` hold: "log_loss" (its negative), "accuracy", or the name of a metric (minus it, if
            smaller is better).
        metrics: (K, L, 1) of every metric that was asked for, as it is, by name.

    Example:
        >>> import torch
        >>> from torchridge import logistic
        >>> X, y = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 1, 0, 1])
        >>> solution = logistic(X, y, 1.0)
        >>> solution.predict(torch.tensor([[-3.0], [3.0]])), bool(solution.converged)
        (tensor([0, 1]), True)
    """

    KIND: ClassVar[str] = "torchridge.logistic-solution/1"

    weight: Tensor
    bias: Tensor
    classes: Tensor
    C: Tensor
    objective: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor
    separated: Tensor
    heads: bool
    Cs: Tensor | None = None
    scores: Tensor | None = None
    fold_scores: Tensor | None = None
    best_score: Tensor | None = None
    scoring: str | None = None
    metrics: dict[str, Tensor] | None = None

    def __repr__(self) -> str:
        return printing.listed(
            f"LogisticSolution{' (path)' if self.C.ndim else ''}",
            {
                "weight": printing.shaped(self.weight),
                "bias": printing.shaped(self.bias),
                "classes": f"{len(self.classes)}" + (f", heads {self.weight.shape[-3]}" if self.heads else ""),
                "C": printing.figures(self.C),
                "score": printing.chosen_by(self.Cs, self.fold_scores, self.best_score, self.scoring),
                "objective": printing.figures(self.objective),
                "converged": printing.count_true(self.converged),
                "separated": printing.count_true(self.separated),
            },
        )

    def at(self, index: int) -> LogisticSolution:
        """Return strength `index` of a path; a negative one counts from the last.

        Raises:
            ValueError: if there is only one, or no such strength.
        """
        if self.C.ndim == 0:
            raise ValueError("`at` picks a strength of a path, got a solution of one strength. Use it as it is.")
        _check.position(index, self.C.shape[0], "index", "strengths")
        each = ("weight", "bias", "C", "objective", "gap", "n_iter", "converged", "separated")
        return replace(self, **{name: getattr(self, name)[index] for name in each})

    def curve(self, target: int | None = None) -> Curve:
        """Return the score of every strength that was tried.

        Raises:
            ValueError: if nothing was chosen.
        """
        return curves.curve(self.Cs, self.scores, self.fold_scores, self.C, "C", self.scoring, target)

    def lines(self, target: int = 0) -> Lines:
        """Return the weights of one class at every strength of a path.

        Raises:
            ValueError: unless this is a path of one head that has the class.
        """
        return curves.lines(self.C, self.weight, "C", target)

    def save(self, path: str | Path, *, names: dict[str, Any] | None = None) -> None:
        """Write the solution in safetensors, with a digest of all it holds. Needs safetensors.

        Args:
            path: of the file, written whole or not at all.
            names: of "features" and "targets", lists of strings, for `torchridge predict`.

        Raises:
            OSError: if the folder does not exist or is not writable, or `path` is a folder itself.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        saved.write(path, self.KIND, {k: v for k, v in values.items() if v is not None}, dict(names or {}), "path")

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> LogisticSolution:
        """Read a solution. Nothing in the file is executed.

        Raises:
            ValueError: if the file is truncated, altered, or holds something else.
            FileNotFoundError: if there is none.
        """
        return cls.read(path, device)[0]

    @classmethod
    def read(
        cls, path: str | Path, device: torch.device | str = "cpu", name: str = "path"
    ) -> tuple[LogisticSolution, dict[str, Any]]:
        """Return a saved solution and the names that were saved with it; errors call the file `name`."""
        values, names = saved.read(path, cls.KIND, device, name)
        with files.understood(path, name):
            return cls(**values), names

    def decision_function(self, X: Tensor | Any) -> Tensor:
        """Return the logits of the rows of X (m, d): (L, m, h, k), without the dimensions that the fit lacks.

        Two classes have one logit, that of the second class: (L, m, h). X may be sparse.

        Raises:
            ValueError: on a shape that does not fit.
        """
        if len(X.shape) != 2 or X.shape[1] != self.weight.shape[-1]:
            raise ValueError(f"`X` should have shape (m, {self.weight.shape[-1]}), got {tuple(X.shape)}.")
        logits = self._product(X) + self.bias[..., None, :]  # (*, m, c)
        logits = logits.movedim(-3, -2) if self.heads else logits
        return logits[..., 0] if len(self.classes) == 2 else logits

    def _product(self, X: Any) -> Tensor:
        """Return X weightᵀ, (*, m, c), of strided or sparse rows."""
        if kind_of(X) != "sparse":
            strided: Tensor = X.to(self.weight.dtype) @ self.weight.mT
            return strided
        flat = operator_of(X, "sparse").matmul(self.weight.reshape(-1, self.weight.shape[-1]).mT.contiguous())
        return flat.T.reshape(*self.weight.shape[:-1], -1).mT

    def predict_proba(self, X: Tensor | Any) -> Tensor:
        """Return the probability of every class, (L, m, h, k) without the dimensions that the fit lacks."""
        logits = self.decision_function(X)
        if len(self.classes) > 2:
            return torch.softmax(logits, -1)
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)

    def predict(self, X: Tensor | Any) -> Tensor:
        """Return the most probable class of every row, (L, m, h) without the dimensions that the fit lacks."""
        logits = self.decision_function(X)
        return self.classes[logits.argmax(-1) if len(self.classes) > 2 else (logits > 0).long()]

    def to_linear(self) -> nn.Linear:
        """Return the logits as an `nn.Linear` (d, c); heads are stacked (h·c). A path has to be picked from first.

        Raises:
            ValueError: on a path.
        """
        if self.C.ndim:
            raise ValueError("`to_linear` takes one strength, got a path. Pick one with `at(i)` first.")
        weight = self.weight.reshape(-1, self.weight.shape[-1])
        linear = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(self.bias.reshape(-1))
        return linear

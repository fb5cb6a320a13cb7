"""Leave-one-out with features standardized anew without each row: no leverage tells that, so each row is a fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from torchridge.solvers.kernels.kernel_folds import KernelFolds
from torchridge.solvers.least_squares.each_fold import FoldMoments
from torchridge.solvers.least_squares.objective import Objective, system
from torchridge.solvers.least_squares.precision import Precision
from torchridge.solvers.least_squares.scorers import Scorer
from torchridge.solvers.least_squares.spectral import spectrum
from torchridge.solvers.least_squares.target_scores import Score, of_left_out
from torchridge.solvers.least_squares.whole_rows import refitted_errors
from torchridge.solvers.moments import blocks, one_pass
from torchridge.solvers.moments.one_pass import fold_blocks
from torchridge.solvers.moments.parts import target_variance, weight_of
from torchridge.solvers.moments.rows import Rows

# Numbers in the matrices of the rows that are left out together.
_NUMBERS = 2**24


@dataclass(frozen=True)
class EachRow:
    """Leave-one-out by a fit for every row, of its moments or, for few rows, of their gram matrix."""

    rows: Rows
    objective: Objective
    dual: bool
    dtype: torch.dtype
    precision: Precision = field(default_factory=Precision)

    @cached_property
    def eigvals(self) -> Tensor:
        """Those of all rows."""
        block = one_pass.block_of(*self.rows[:3], None, self.dtype, self.rows.X.device)
        return spectrum(system(block, self.objective)).eigvals

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype that is scored in."""
        return self.rows.y.new_zeros(0, dtype=self.dtype)

    def squares(self, alpha: Tensor) -> Tensor:
        """Return Σ s e² / Σ s, (1, L, t). Cost: n eigendecompositions."""
        alpha = alpha.to(self.like)
        weight = self.rows.sample_weight
        total = alpha.new_zeros(len(alpha), self.rows.y.shape[1])
        for index, squares in self._runs(alpha):
            s = None if weight is None else weight[index].to(squares)
            total += squares.sum(0) if s is None else (squares * s[:, None, None]).sum(0)
        return (total / weight_of(self.rows, slice(None)))[None]

    def _runs(self, alpha: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield runs of rows and the squares of their errors, (run, L, t)."""
        n, d = self.rows.X.shape
        side = n if self.dual else d
        everyone = torch.arange(n)
        for run in torch.split(everyone, max(1, _NUMBERS // side**2)):
            held = [i[None].to(self.rows.X.device) for i in run]
            if self.dual:
                train_rows = [torch.cat([everyone[:i], everyone[i + 1 :]]).to(held[0].device) for i in run.tolist()]
                splits = [*zip(train_rows, held, strict=True)]
                scorer: Scorer = KernelFolds(self.rows, splits, self.objective, None, None, True, self.dtype)
            else:
                own = fold_blocks(self.rows, [i[None] for i in run], self.dtype)
                others = torch.cat([everyone[: run[0]], everyone[run[-1] + 1 :]])
                rest = fold_blocks(self.rows, [others], self.dtype) if len(others) else []
                train = blocks.merge_others([*own, *rest])[: len(own)]
                scorer = FoldMoments(train, own, self.objective, self.rows, held)
            squares = scorer.squares(alpha)
            self.precision.note(scorer.precision.lost, scorer.precision.reason)
            yield run.to(squares.device), squares

    def scores(self, score: Score, alpha: Tensor) -> Tensor:
        """Return a score of leave-one-out predictions, (1, L, t). Cost: n orthogonal factors."""
        everyone = torch.arange(self.rows.X.shape[0], device=self.rows.X.device)
        error = refitted_errors(self.rows, everyone, self.rows, self.objective, alpha.to(everyone.device).double())
        y, weight = self.rows.y, self.rows.sample_weight
        return of_left_out(score, y, weight, len(alpha), [(slice(0, len(y)), slice(0, y.shape[1]), error)])

    def variances(self) -> Tensor:
        """Return the variance of the targets, (1, t)."""
        return target_variance(self.rows, slice(None))[None]

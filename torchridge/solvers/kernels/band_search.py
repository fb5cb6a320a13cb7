"""The search for strengths of bands: Newton-like steps for few targets, for many candidates learned from a sample.

Kernels are brought to a mean diagonal of one inside, so that log γ_b says how much of a target band b may explain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.kernels import dual
from torchridge.solvers.kernels.bands import FARTHEST, centroids, descend, folds_of, local
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.kernel_folds import KernelFolds
from torchridge.solvers.least_squares.grid import coarse_grid, finer_grid
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.least_squares.target_scores import SCORES
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.rows import Rows

# Overall strengths that are tried of a candidate, in units of its mean eigenvalue, and steps of a target.
_STRENGTHS, _WEAKEST, _STEPS, _FEW_STEPS = 10, 10**-1.5, 40, 4

# Multiply-adds of a step up to which it is taken in float64 throughout; above, float32 leads to within rounding of it.
_CHEAP = 5e8

# Shares of a band under this are alike.
_LEAST_SHARE = 1e-4


class Found(NamedTuple):
    """Strengths, their losses, and the dual coefficients at them."""

    log_gamma: Tensor  # (t, B) log 1 / α
    loss: Tensor  # (t,)
    coef: Tensor  # (n, t)
    target_center: Tensor  # (t,)
    refined: Tensor  # (t,) whether strengths were found for the target by itself


class Candidate(NamedTuple):
    """Proportions of the bands, and the problem that they make."""

    log_share: Tensor  # (B,)
    scorer: KernelFolds


def search_bands(
    kernels: Tensor,
    y: Tensor,
    splits: list[Split],
    intercept: bool,
    refined: int,
    candidates: int,
    generator: torch.Generator,
) -> Found:
    """Return strengths for kernels (B, n, n), float64 and centred, and targets (n, t)."""
    size = kernels.diagonal(dim1=1, dim2=2).mean(1)
    size = torch.where(size > 0, size, 1)
    scaled = kernels / size[:, None, None]
    search = _Search(scaled, y, splits, intercept)
    B, t = len(kernels), y.shape[1]
    if B == 1:
        return _rescaled(search.single(), size)
    if t <= refined:
        log_gamma, loss = search.refine(torch.arange(t, device=y.device), _STEPS)
        return _rescaled(search.fitted_alone(log_gamma, loss), size)
    chosen = torch.randperm(t, generator=generator)[:refined].to(y.device)
    log_gamma, _ = search.refine(chosen, _FEW_STEPS)
    return _rescaled(search.shared(log_gamma, candidates), size)


def _rescaled(found: Found, size: Tensor) -> Found:
    return found._replace(log_gamma=found.log_gamma - size.log())


class _Search:
    """The data of one search."""

    def __init__(self, kernels: Tensor, y: Tensor, splits: list[Split], intercept: bool) -> None:
        self.kernels, self.y, self.splits = kernels, y.detach(), splits
        self.objective = Objective(intercept, precomputed=True)
        self.B, self.n = kernels.shape[:2]
        self.complementary = all(len(a) + len(b) == self.n for a, b in splits)
        self.mean = self.y.double().mean(0) if intercept else torch.zeros_like(self.y[0], dtype=torch.float64)

    def candidate(
        self, log_share: Tensor, targets: Tensor | slice = slice(None), dtype: torch.dtype = torch.float64
    ) -> Candidate:
        """Return the problem of one set of proportions. Cost 10 n³."""
        gram = torch.tensordot(log_share.exp(), self.kernels, 1).to(dtype)
        nothing = gram.new_zeros(self.n, 0)
        place = (None, gram.new_zeros(self.n), nothing[0], None, None, self.objective.intercept)
        kernel = Kernel(gram, nothing, *place)
        rows = Rows(gram, self.y[:, targets], None, False)
        problem = dual.diagonalized(kernel, rows)
        scorer = KernelFolds(
            rows, self.splits, self.objective, kernel, problem, self.complementary, dtype
        )  # fmt: skip
        return Candidate(log_share, scorer)

    def uniform(self) -> Tensor:
        """Return equal proportions, (B,)."""
        return torch.full_like(self.kernels[:, 0, 0], -math.log(self.B))

    def strengths(self) -> Tensor:
        """Return overall strengths, on the host: kernels have a mean diagonal of one."""
        ends = math.log10(_WEAKEST), math.log10(30 * self.n)
        return torch.logspace(*ends, _STRENGTHS, dtype=torch.float64)

    def refine(self, targets: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Return log γ of some targets, (m, B), each with steps of its own, and their losses (m,)."""
        cheap = len(targets) * len(self.splits) * self.n**3 / 3 <= _CHEAP
        starts = self._starts(targets, cheap)  # (S, m, B)
        folds = folds_of(self.kernels, self.y[:, targets].double(), self.splits, self.objective.intercept)
        bound = torch.full_like(starts[0, 0], FARTHEST)
        if cheap:  # from every start: losses have several minima
            each = [descend(folds, s, -bound, bound, steps) for s in starts]
            losses = torch.stack([loss for _, loss in each])
            best = losses.argmin(0)[None, :, None].expand(1, -1, self.B)
            return torch.stack([found for found, _ in each]).gather(0, best)[0], losses.amin(0)
        rough = [f.to(torch.float32) for f in folds]
        found, _ = descend(rough, starts[0].float(), -bound.float(), bound.float(), min(steps, _FEW_STEPS))
        return found.double(), local(folds, found.double(), derivatives=False).loss

    def _starts(self, targets: Tensor, several: bool) -> Tensor:
        """Return log γ to start from, (S, m, B), at the best strength: equal bands, each alone and each left out."""
        grid, device = self.strengths(), self.y.device
        alone = (1 - _LEAST_SHARE) * torch.eye(self.B, dtype=torch.float64) + _LEAST_SHARE
        shares = torch.cat([torch.ones(1, self.B), alone, *([1.01 - alone] if self.B > 2 else [])]).to(device)
        shares = (shares / shares.sum(1, keepdim=True)).log()
        starts = []
        for share in shares if several else shares[:1]:
            found = self.candidate(share, targets, torch.float32).scorer.scores(SCORES["mse"], grid).mean(0).double()
            starts.append(share - grid.to(device)[found.argmin(0)].log()[:, None])
        return torch.stack(starts)

    def fitted_alone(self, log_gamma: Tensor, loss: Tensor) -> Found:
        """Fit all rows, a factorization for each target. Cost n³ / 3 of each."""
        coef = self.kernels.new_empty(self.n, len(loss))
        eye = torch.eye(self.n, dtype=coef.dtype, device=coef.device)
        step = max(1, 2**24 // self.n**2)
        for i in range(0, len(loss), step):
            part = slice(i, i + step)
            matrix = (log_gamma[part].exp() @ self.kernels.flatten(1)).view(-1, self.n, self.n) + eye
            target = self.y[:, part].double() - self.mean[part]
            lower, _ = torch.linalg.cholesky_ex(matrix)
            coef[:, part] = torch.cholesky_solve(target.T[:, :, None], lower)[:, :, 0].T
        return Found(log_gamma, loss, coef, self.mean, torch.ones_like(loss, dtype=torch.bool))

    def single(self) -> Found:
        """Choose among overall strengths alone, as `ridge_cv` with alphas="auto" does."""
        own = self.candidate(self.uniform())
        grid = coarse_grid(own.scorer.eigvals)
        losses = own.scorer.squares(grid).mean(0)
        finer = finer_grid(grid, _strongest_best(losses, grid))
        both, order = torch.cat([grid, finer]).sort()
        losses = torch.cat([losses, own.scorer.squares(finer).mean(0)])[order.to(losses.device)]
        best = _strongest_best(losses, both)
        alpha = both[best].to(losses.device)
        loss = losses.gather(0, best.to(losses.device)[None])[0]
        found = self._empty()
        self._fit(found, own, torch.arange(self.y.shape[1], device=self.y.device), alpha, loss)
        return found

    def shared(self, learned: Tensor, count: int) -> Found:
        """Choose for every target among proportions that a sample asked for, log γ (m, B), and overall strengths."""
        shares = (learned - learned.logsumexp(1, keepdim=True)).clamp_min(math.log(_LEAST_SHARE))
        shares = centroids(shares, count)
        shares = torch.cat([self.uniform()[None], shares])
        shares = shares - shares.logsumexp(1, keepdim=True)
        grid = self.strengths()
        t, device = self.y.shape[1], self.y.device
        loss = torch.full((t,), torch.inf, dtype=torch.float64, device=device)
        which, at = torch.zeros(2, t, dtype=torch.long, device=device)
        for c, share in enumerate(shares):
            scorer = self.candidate(share, dtype=torch.float32).scorer  # to tell candidates apart, not for the answer
            found = scorer.scores(SCORES["mse"], grid).mean(0).double()  # (L, t)
            least, index = found.min(0)
            which, at = torch.where(least < loss, c, which), torch.where(least < loss, index, at)
            loss = torch.minimum(loss, least)
        return self._polished(shares, which, at, loss, grid)

    def _polished(self, shares: Tensor, which: Tensor, at: Tensor, loss: Tensor, grid: Tensor) -> Found:
        """Fit each target at its candidate, at the best of finer strengths."""
        found, step = self._empty(), float(grid[1] / grid[0])
        places, cells = which.cpu(), at.cpu()
        for c, share in enumerate(shares):
            targets = (places == c).nonzero()[:, 0].to(self.y.device)
            if not len(targets):
                continue
            used = torch.unique(cells[places == c])  # on the host
            fine = torch.cat([grid[used] * step ** (i / 5) for i in range(-3, 4)])
            own = self.candidate(share, targets)
            losses = own.scorer.scores(SCORES["mse"], fine).mean(0)  # (L, m)
            best = losses.min(0)
            self._fit(found, own, targets, fine.to(losses.device)[best.indices], best.values)
        return found

    def _empty(self) -> Found:
        t = self.y.shape[1]
        zeros = self.kernels.new_zeros(t)
        log_gamma, coef = zeros.new_zeros(t, self.B), zeros.new_zeros(self.n, t)
        return Found(log_gamma, zeros.clone(), coef, self.mean, torch.zeros_like(zeros, dtype=torch.bool))

    def _fit(self, found: Found, own: Candidate, targets: Tensor, alpha: Tensor, loss: Tensor) -> None:
        problem, rows = own.scorer.problem, own.scorer.rows
        assert isinstance(problem, Dual)
        _, coef = dual.solved(problem, rows, self.objective, alpha, per_target=True)
        found.coef[:, targets] = coef[:, 0] * alpha  # of A = I + K / α, as that of K + αI
        found.log_gamma[targets] = own.log_share - alpha.log()[:, None]
        found.loss[targets] = loss


def _strongest_best(losses: Tensor, grid: Tensor) -> Tensor:
    """Return the index of the least loss for each column of (L, t), on the host; of equal ones the strongest."""
    host = losses.cpu()
    return torch.where(host == host.amin(0), grid.cpu()[:, None], -1).argmax(0)

"""The search for strengths of bands: proportions that all targets share, and Newton-like steps for few targets.

Of each of the proportions that are tried, every overall strength is scored for targets from one eigendecomposition;
what was found at them says which to try next, and for which targets (`band_surrogate`).

Kernels are brought to a mean diagonal of one inside, so that log γ_b says how much of a target band b may explain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torchridge.solvers.device import sent
from torchridge.solvers.kernels import band_surrogate, dual
from torchridge.solvers.kernels.band_losses import fold_losses
from torchridge.solvers.kernels.bands import FARTHEST, Factors, descend, folds_of, local, solved
from torchridge.solvers.kernels.dual import Dual
from torchridge.solvers.kernels.gram_matrix import Kernel
from torchridge.solvers.kernels.kernel_folds import KernelFolds
from torchridge.solvers.least_squares.grid import coarse_grid, finer_grid
from torchridge.solvers.least_squares.objective import Objective
from torchridge.solvers.moments.folds import Split
from torchridge.solvers.moments.rows import Rows

# Overall strengths that are tried of a candidate, in units of its mean eigenvalue, and steps of a target.
_STRENGTHS, _WEAKEST, _STEPS, _FEW_STEPS = 24, 10**-2.5, 40, 6

# Proportions that are picked at once, and the finest difference of overall strengths, in steps of the grid.
_AT_ONCE, _FINENESS = 4, 1 / 2

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


class Explored(NamedTuple):
    """The proportions that were tried, and the best of them for each target, on the host."""

    log_share: Tensor  # (C, B)
    which: Tensor  # (t,) in 0 … C − 1
    place: Tensor  # (t,) of the overall strength in the grid, 0 … L − 1, float64


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
    t = y.shape[1]
    if len(kernels) == 1:
        return _rescaled(search.single(), size)
    if t <= refined:
        explored = search.explore(min(candidates, 1 + len(kernels)), generator)
        return _rescaled(search.fitted_alone(*search.refine(explored)), size)
    return _rescaled(search.polished(search.explore(candidates, generator)), size)


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

    def explore(self, count: int, generator: torch.Generator) -> Explored:
        """Try up to `count` proportions, in float32, which tells them apart. A wait for a device for each of them."""
        shares = band_surrogate.first_shares(self.B, count, _LEAST_SHARE)
        found = [self._tried(share) for share in shares]
        losses, places = (torch.stack(a) for a in zip(*found, strict=True))
        best, which = losses.min(0)
        place = places.gather(0, which[None])[0]
        while len(shares) < count:
            few = min(_AT_ONCE, count - len(shares))
            picked = band_surrogate.next_shares(shares, losses, few, _LEAST_SHARE, generator)
            losses = torch.cat([losses, picked.losses])
            for c, (share, hopeful) in enumerate(zip(picked.shares, picked.hopeful, strict=True), len(shares)):
                targets = hopeful.nonzero()[:, 0]
                if len(targets):
                    loss, found_at = self._tried(share, targets, place[targets])
                    losses[c, targets], better = loss, loss < best[targets]
                    won = targets[better]
                    which[won], best[won], place[won] = c, loss[better], found_at[better]
            shares = torch.cat([shares, picked.shares])
            if not bool(picked.hopeful.any()):
                break
        return Explored(shares.log(), which, place)

    def _tried(self, share: Tensor, targets: Tensor | None = None, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the least losses of targets over overall strengths, by parabolas, and their places in the grid.

        All on the host. `near` are places that these targets asked for at other proportions: no others are tried.
        """
        device, grid, first = self.y.device, self.strengths(), 0
        if near is not None:
            first = max(0, int(near.min()) - 1)
            grid = grid[first : int(near.max()) + 3]
        some = slice(None) if targets is None else sent(targets, device)
        scorer = self.candidate(sent(share.log(), device), some, torch.float32).scorer
        found = fold_losses(scorer, grid).double().cpu()  # (L, m)
        least, index = found.amin(0), _strongest_best(found, grid)
        inside = index.clamp(1, len(found) - 2)
        below, at, above = (found.gather(0, (inside + i)[None])[0] for i in (-1, 0, 1))
        bend, lean = below + above - 2 * at, (above - below) / 2
        bent = (bend > 0) & (index == inside)
        aside = torch.where(bent, -lean / bend.clamp_min(torch.finfo(bend.dtype).tiny), 0)
        place = first + index + (aside / _FINENESS).round() * _FINENESS
        return torch.where(bent, at + lean * aside / 2, least), place

    def strengths_at(self, place: Tensor) -> Tensor:
        """Return overall strengths at places in the grid."""
        grid = self.strengths().log()
        found: Tensor = (grid[0] + place * (grid[1] - grid[0])).exp()
        return found

    def refine(self, explored: Explored) -> tuple[Tensor, Tensor]:
        """Return log γ of all targets, (t, B), each with steps of its own, and their losses (t,)."""
        t = self.y.shape[1]
        start = explored.log_share[explored.which] - self.strengths_at(explored.place).log()[:, None]
        start = sent(start, self.y.device)
        folds = folds_of(self.kernels, self.y.double(), self.splits, self.objective.intercept)
        bound = torch.full_like(start[0], FARTHEST)
        if t * len(self.splits) * self.n**3 / 3 <= _CHEAP:
            found, _ = descend(folds, start, -bound, bound, _STEPS)
            return found.log_gamma, found.loss
        rough = [f.to(torch.float32) for f in folds]
        found, ahead = descend(rough, start.float(), -bound.float(), bound.float(), _FEW_STEPS)
        before, last = found.log_gamma.double(), ahead.double()
        loss = local(folds, last, derivatives=False).loss
        worse = (loss >= found.loss).nonzero()[:, 0]
        if len(worse):
            last[worse] = before[worse]
            loss[worse] = local([f.of(worse) for f in folds], last[worse], derivatives=False).loss
        return last, loss

    def fitted_alone(self, log_gamma: Tensor, loss: Tensor) -> Found:
        """Fit all rows, a factorization for each target. Cost n³ / 3 of each."""
        coef = self.kernels.new_empty(self.n, len(loss))
        factors = Factors(len(loss), self.n, coef)
        for part in factors.batches():
            target = self.y[:, part].double() - self.mean[part]
            lower = factors.of(log_gamma[part].exp(), self.kernels)
            coef[:, part] = solved(lower, target.T[:, :, None])[:, :, 0].T
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

    def polished(self, explored: Explored) -> Found:
        """Fit each target at its proportions, at the best strength that any target asked for there, in float64."""
        found, device = self._empty(), self.y.device
        for c, share in enumerate(explored.log_share):
            targets = (explored.which == c).nonzero()[:, 0]
            if not len(targets):
                continue
            alpha = self.strengths_at(torch.unique(explored.place[targets]))
            candidate = self.candidate(share.to(device), sent(targets, device))
            losses = fold_losses(candidate.scorer, alpha)  # (L, m)
            best = alpha[_strongest_best(losses, alpha)].to(device)
            self._fit(found, candidate, sent(targets, device), best, losses.amin(0))
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

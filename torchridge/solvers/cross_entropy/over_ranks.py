"""Logistic regression over the rows of all ranks: the first rank solves, the others evaluate their rows for it.

One rank alone decides what is tried next and when to stop, so that ranks whose processors round differently cannot go
separate ways. Coefficients go out, and losses and gradients come back: c·q numbers a problem, whatever n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from torchridge._ranks import Ranks
from torchridge.exceptions import RankError
from torchridge.solvers.cross_entropy.basis import Basis, basis_of
from torchridge.solvers.cross_entropy.loss import Evaluation, Problems, Rows, evaluate
from torchridge.solvers.cross_entropy.path import Path


def summed(ranks: Ranks | None, name: str, value: Tensor) -> Tensor:
    """Return the sum over ranks, or the value itself if there is one process."""
    return value if ranks is None else ranks.all_sum(name, value)


def shared_basis(ranks: Ranks, X: Tensor, weight: Tensor, *, intercept: bool) -> Basis:
    """Return the eigenbasis of the rows of all ranks, of weights (n,) that sum to one over them; d directions.

    Cost: n·d² flops, d² numbers summed, and 9·d³ flops on the first rank.
    """
    mean = X.new_zeros(X.shape[1], dtype=torch.float64)
    if intercept:
        mean = ranks.all_sum("the mean", weight @ X.double())
    gram = mean.new_zeros(len(mean), len(mean))
    for start in range(0, len(X), 4096):
        part = slice(start, start + 4096)
        centred = X[part].double() - mean
        gram += centred.mT @ (centred * weight[part, None])
    gram = ranks.all_sum("the second moments", gram)
    eigvals, vectors = torch.linalg.eigh(gram) if ranks.index == 0 else (gram[0].clone(), gram)
    eigvals, vectors = ranks.broadcast("eigenvalues", eigvals), ranks.broadcast("eigenvectors", vectors)
    return basis_of(mean, vectors, eigvals, intercept)


def led(ranks: Ranks, rows: Rows, solve: Callable[[Rows], Path]) -> Path:
    """Return `solve` of rows that stand for those of all ranks; it runs on the first rank, and all get its path."""
    path, error = None, None
    if ranks.index == 0:
        try:
            path = solve(replace(rows, share=lambda *asked: _ask(ranks, *asked)))
        except RankError:
            raise
        except Exception as raised:
            error = raised
        ranks.broadcast("the end of the solve", _order(0, 0, 0, False, rows.features))
    else:
        _serve(ranks, rows)
    told = ranks.exchange("logistic", {"path": None if path is None else _form(path)}, error)
    empty = (rows.features.new_zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in told[0]["path"])
    columns = empty if path is None else (getattr(path, f.name) for f in fields(Path))
    return Path(*(ranks.broadcast("the path", c.double()).to(c.dtype) for c in columns))


def _form(path: Path) -> list[tuple[list[int], str]]:
    columns = [getattr(path, f.name) for f in fields(Path)]
    return [(list(c.shape), str(c.dtype).removeprefix("torch.")) for c in columns]


def _order(count: int, c: int, q: int, curvature: bool, like: Tensor) -> Tensor:
    return torch.tensor([count, c, q, int(curvature)], dtype=torch.int64, device=like.device)


def _ask(ranks: Ranks, rows: Rows, problems: Problems, theta: Tensor, curvature: bool) -> Evaluation:
    """On the first rank: have all evaluate θ, and return the sum."""
    count, c, q = theta.shape
    ranks.broadcast("the next evaluation", _order(count, c, q, curvature, theta))
    ranks.broadcast("coefficients", torch.cat([problems.head.to(theta), problems.group.to(theta), theta.flatten()]))
    return _answer(ranks, rows, problems, theta, curvature)


def _serve(ranks: Ranks, rows: Rows) -> None:
    """On the other ranks: evaluate what the first asks for, until it stops."""
    while True:
        order = ranks.broadcast("the next evaluation", _order(0, 0, 0, False, rows.features))
        count, c, q, curvature = order.tolist()
        if count == 0:
            return
        empty = rows.features.new_empty(count * (2 + c * q), dtype=torch.float64)
        sent = ranks.broadcast("coefficients", empty)
        head, group = sent[:count].long(), sent[count : 2 * count].long()
        problems = Problems(head, group, torch.zeros_like(sent[:count]))  # the penalty is not a matter of the rows
        _answer(ranks, rows, problems, sent[2 * count :].view(count, c, q), bool(curvature))


def _answer(ranks: Ranks, rows: Rows, problems: Problems, theta: Tensor, curvature: bool) -> Evaluation:
    own = evaluate(replace(rows, share=None), problems, theta, curvature=curvature)
    parts = [part for part in own if part is not None]
    total = ranks.all_sum("losses and gradients", torch.cat([part.flatten() for part in parts]))
    sums = torch.split(total, [part.numel() for part in parts])
    return Evaluation(*(s.view_as(p) for s, p in zip(sums, parts, strict=True)), *([] if curvature else [None]))

"""Random problems of every unit, weight and penalty against long arithmetic: fits, scores, repeated calls.

`pytest tests/solvers/test_exactness.py` takes a few; as a script, so many as are asked for:

    python tests/exactness.py --problems 20000 --seed 0              # 35 minutes on one core, one kind of answer each
    python tests/exactness.py --problems 19100 --seed 0 --start 900  # goes on from there
    python tests/exactness.py --problems 2000 --seed 0 --all         # every kind of answer of every problem

An answer is wrong if it is off by more than 100 eps × condition, the columns of the problem brought to one size and the
penalty counted in, and no warning says so. The condition is that of the problem whose solution is asked for and, of
scores, that of the training part if it is larger; a fit of which not two digits are right is counted whatever it is.
Prints the counts; the exit status is 1 if one of them should be zero.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchridge import TorchridgeWarning, ridge, ridge_cv, ridge_path

EPS = torch.finfo(torch.float64).eps
DIGITS = 240

# The share of an answer that may be lost without a warning, whatever the condition.
MOST = 1e-2

# Condition that units alone may cost scores, and fits, whose tenth digit then is right.
SCORES, FITS = 1e2, 1e4

# What stands for an infinitely small strength, and for one that is small beside that: of least squares first the
# penalty chooses, then the norm of what is free.
FIRST, SECOND = Decimal(10) ** -70, Decimal(10) ** -140

Choose = Callable[[list[Any]], Any]
Matrix = list[list[Decimal]]


@dataclass(frozen=True)
class Case:
    """A problem and how it is asked."""

    X: Tensor
    y: Tensor
    alphas: list[float]
    sample_weight: Tensor | None
    penalty: Tensor | None
    intercept: bool
    standardize: bool
    folds: int

    @property
    def options(self) -> dict[str, Any]:
        """Return the keywords of `ridge`."""
        return {
            "sample_weight": self.sample_weight,
            "penalty_factors": self.penalty,
            "fit_intercept": self.intercept,
            "standardize": self.standardize,
        }

    def of(self, index: Tensor) -> Case:
        """Return the problem of some of the rows."""
        s = None if self.sample_weight is None else self.sample_weight[index]
        return Case(self.X[index], self.y[index], self.alphas, s, self.penalty, self.intercept, self.standardize, 0)


def make(choose: Choose) -> Case:
    """Return a problem of which every trait is chosen from a list."""
    g = torch.Generator().manual_seed(choose(list(range(1000))))
    d = choose([1, 2, 3, 4])
    n = max(4, choose([d - 1, d, d + 1, d + 2, 2 * d + 2]))
    d = choose([d, d, n + 2]) if n < 7 else d  # also fewer rows than features
    X = torch.randn(n, d, generator=g, dtype=torch.float64)
    if choose([False, False, True]):
        X[n // 2 :] = X[: n - n // 2].clone()  # repeated rows
    signal = X.sum(1)
    for j in range(d):
        kind = choose(["unit", "unit", "scale", "scale", "mean", "constant", "copy"])
        if kind == "scale":
            X[:, j] *= 10.0 ** choose([-8, -5, -2, 3, 7, 9, 12])
        elif kind == "mean":
            X[:, j] += choose([1.0, 1e3, 1e6])
        elif kind == "constant":
            X[:, j] = choose([0.1, 1 / 3, 0.0, 7e9])
        elif kind == "copy" and j:
            X[:, j] = X[:, 0] * choose([1.0, 2.0, 1024.0])
    y = (signal + torch.randn(n, generator=g, dtype=torch.float64))[:, None]
    y = torch.cat([y, torch.randn(n, 1, generator=g, dtype=torch.float64)], 1) if choose([False, True]) else y
    weight = choose([None, None, "decades", "halves"])
    spread = torch.rand(n, generator=g, dtype=torch.float64)
    s = None if weight is None else 10 ** (16 * spread - 8) if weight == "decades" else (spread > 0.5).double() + 0.5
    penalty = choose([None, None, [1.0], [0.0, 1.0], [0.0, 0.5, 4.0]])
    p = None if penalty is None else torch.tensor([choose(penalty) for _ in range(d)], dtype=torch.float64)
    alphas = sorted({choose([0.0, 1e-6, 1e-3]), choose([1e-3, 1.0, 1e3]), choose([1.0, 1e6])})
    return Case(X, y, alphas, s, p, choose([True, True, False]), choose([False, False, True]), choose([2, 3, n]))


def share(condition: float) -> float:
    """Return the share of an answer that may be lost at a condition."""
    return min(100 * EPS * condition, MOST)


class Exact(NamedTuple):
    """A fit in long arithmetic."""

    weight: Matrix  # (d, t)
    bias: list[Decimal]
    size: list[float]  # (d,) what brings the columns of gram + αD to one size
    condition: float  # of that matrix; infinite if float64 cannot tell its smallest eigenvalue from zero
    scale: float  # what errors of weight ∘ size are relative to
    squares: list[Decimal]  # (t,) Σ s (y − ŷ)²
    dof: Decimal


def _decimals(a: Tensor) -> Matrix:
    return [[Decimal(v) for v in row] for row in a.reshape(len(a), -1).tolist()]


def _eliminate(matrix: Matrix, right: Matrix) -> Matrix:
    """Return matrix⁻¹ right for a positive definite matrix; both are used up."""
    d, t = len(matrix), len(right[0])
    for j in range(d):
        for i in range(j + 1, d):
            f = matrix[i][j] / matrix[j][j]
            if f:
                matrix[i] = [*matrix[i][: j + 1], *(matrix[i][k] - f * matrix[j][k] for k in range(j + 1, d))]
                right[i] = [right[i][k] - f * right[j][k] for k in range(t)]
    for j in reversed(range(d)):
        right[j] = [
            (right[j][k] - sum(matrix[j][i] * right[i][k] for i in range(j + 1, d))) / matrix[j][j] for k in range(t)
        ]
    return right


class Sums(NamedTuple):
    """What a problem is at every strength, in long arithmetic."""

    a: Matrix  # (n, d) rows less their mean
    b: Matrix  # (n, t)
    s: list[Decimal]
    mean: list[Decimal]
    mean_y: list[Decimal]
    gram: Matrix
    cross: Matrix
    penalty: list[Decimal]


def sums(case: Case) -> Sums:
    """Take sums in long arithmetic."""
    with localcontext() as context:
        context.prec = DIGITS
        x, z = _decimals(case.X), _decimals(case.y)
        n, d, t = len(x), len(x[0]), len(z[0])
        s = [Decimal(1)] * n if case.sample_weight is None else [Decimal(v) for v in case.sample_weight.tolist()]
        p = [Decimal(1)] * d if case.penalty is None else [Decimal(v) for v in case.penalty.tolist()]
        total = sum(s)
        mean = [sum(s[i] * x[i][j] for i in range(n)) / total for j in range(d)]
        mean_y = [sum(s[i] * z[i][k] for i in range(n)) / total for k in range(t)]
        if case.standardize:
            spread = [sum(s[i] * (x[i][j] - mean[j]) ** 2 for i in range(n)) / total for j in range(d)]
            p = [a * (v or Decimal(1)) for a, v in zip(p, spread, strict=True)]
        if not case.intercept:
            mean, mean_y = [Decimal(0)] * d, [Decimal(0)] * t
        a = [[x[i][j] - mean[j] for j in range(d)] for i in range(n)]
        b = [[z[i][k] - mean_y[k] for k in range(t)] for i in range(n)]
        gram = [[Decimal(0)] * d for _ in range(d)]
        for j in range(d):
            weighted = [s[i] * a[i][j] for i in range(n)]
            for m in range(j, d):
                gram[j][m] = gram[m][j] = sum(weighted[i] * a[i][m] for i in range(n))
        cross = [[sum(s[i] * a[i][j] * b[i][k] for i in range(n)) for k in range(t)] for j in range(d)]
        return Sums(a, b, s, mean, mean_y, gram, cross, p)


def exact(case: Case, alpha: float, known: Sums | None = None) -> Exact:
    """Fit in long arithmetic, from sums that may be `known`."""
    with localcontext() as context:
        context.prec = DIGITS
        a, b, s, mean, mean_y, gram, cross, p = sums(case) if known is None else known
        n, d, t = len(a), len(gram), len(cross[0])
        size, condition = _condition(gram, [Decimal(alpha) * v for v in p])
        shifted = [list(row) for row in gram]
        for j in range(d):
            shifted[j][j] += (Decimal(alpha) + FIRST) * p[j] + SECOND
        solved = _eliminate(shifted, [[*cross[j], *gram[j]] for j in range(d)])
        weight = [row[:t] for row in solved]
        bias = [mean_y[k] - sum(mean[j] * weight[j][k] for j in range(d)) for k in range(t)]
        left = [[b[i][k] - sum(a[i][j] * weight[j][k] for j in range(d)) for k in range(t)] for i in range(n)]
        squares = [sum(s[i] * left[i][k] ** 2 for i in range(n)) for k in range(t)]
        norm = float(max(sum(s[i] * b[i][k] ** 2 for i in range(n)) for k in range(t)).sqrt())
        reach = max(float(gram[j][j].sqrt()) / size[j] for j in range(d)) * norm
        length = max(abs(float(weight[j][k])) * size[j] for j in range(d) for k in range(t))
        return Exact(weight, bias, size, condition, length + reach, squares, sum(solved[j][t + j] for j in range(d)))


def _condition(gram: Matrix, penalty: list[Decimal]) -> tuple[list[float], float]:
    d = len(gram)
    exact = [[gram[i][j] + (penalty[i] if i == j else 0) for j in range(d)] for i in range(d)]
    size = [float(exact[j][j].sqrt()) or 1.0 for j in range(d)]
    values = np.linalg.eigvalsh([[float(exact[i][j]) / size[i] / size[j] for j in range(d)] for i in range(d)])
    null = 0 if values[0] > 1e-9 * values[-1] else _nullity(exact, size)
    kept = values[null:]  # of those that are zero in long arithmetic, float64 holds the rounding
    if not len(kept):
        return size, 1.0
    return size, float(kept.max() / kept.min()) if kept.min() > 1e-13 * kept.max() else float("inf")


def _nullity(matrix: Matrix, size: list[float]) -> int:
    """Return how many columns depend on those before them."""
    d, null = len(matrix), 0
    matrix = [[matrix[i][j] / Decimal(size[i]) / Decimal(size[j]) for j in range(d)] for i in range(d)]
    for j in range(d):
        if abs(matrix[j][j]) < Decimal(10) ** -60:
            null += 1
            continue
        for i in range(j + 1, d):
            f = matrix[i][j] / matrix[j][j]
            matrix[i] = [matrix[i][k] - f * matrix[j][k] for k in range(d)]
    return null


def heldout(case: Case, fit: Exact, rows: list[int]) -> tuple[list[Decimal], float]:
    """Return Σ s (y − ŷ)² over held-out rows, (t,), and the size of what cancels in it."""
    with localcontext() as context:
        context.prec = DIGITS
        t, scale = case.y.shape[1], Decimal(0)
        total = [Decimal(0)] * t
        for i in rows:
            s = Decimal(1) if case.sample_weight is None else Decimal(float(case.sample_weight[i]))
            x = [Decimal(v) for v in case.X[i].tolist()]
            for k in range(t):
                parts = [x[j] * fit.weight[j][k] for j in range(len(x))]
                y = Decimal(float(case.y[i, k]))
                total[k] += s * (y - fit.bias[k] - sum(parts)) ** 2
                reach = sum(abs(v) / Decimal(g) for v, g in zip(x, fit.size, strict=True)) * Decimal(fit.scale)
                scale += s * (abs(y) + abs(fit.bias[k]) + sum(map(abs, parts)) + reach) ** 2
        return total, float(scale)


def ids_of(n: int, k: int) -> list[list[int]]:
    """Return the held-out rows of every fold, as `ridge_cv` makes them."""
    sizes = [n // k + (i < n % k) for i in range(k)]
    return [list(range(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(k)]


Outcome = tuple[list[str], int, int]  # faults, answers with a warning, answers
Check = Callable[[Case], Outcome]


class Found(NamedTuple):
    """What went wrong with a problem, by kind."""

    faults: list[str]
    warned: int
    answers: int


def examine(case: Case, checks: Sequence[Check] | None = None) -> Found:
    """Compare fits and criteria of a problem, all unless `checks` names some, with long arithmetic."""
    faults: list[str] = []
    warned = answers = 0
    for check in CHECKS if checks is None else checks:
        try:
            wrong, loud, count = check(case)
        except (ValueError, TypeError) as error:
            if "`" not in str(error) and "no strength has" not in str(error):
                faults.append(f"exception {check.__name__}: {error!r}")
            continue
        except Exception as error:
            faults.append(f"exception {check.__name__}: {error!r}")
            continue
        faults += wrong
        warned += loud
        answers += count
    return Found(faults, warned, answers)


def _called(call: Callable[[], Any], again: bool = True) -> tuple[Any, bool, list[str]]:
    """Return an answer, whether it warned of its digits, and a fault if a second call gives another."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = call()
        second = call() if again else first
    loud = any(issubclass(w.category, TorchridgeWarning) and "Edge" not in w.category.__name__ for w in caught)
    same = all(
        a is None or torch.equal(a, b)
        for a, b in ((getattr(first, name), getattr(second, name)) for name in ("weight", "bias", "scores"))
    )
    return first, loud, [] if same else ["repeat: two identical calls differ"]


def _fits(case: Case) -> Outcome:
    faults, warned, count = [], 0, 0
    many = [*case.alphas, 3.0, 30.0, 300.0]
    path, path_loud, again = _called(lambda: ridge_path(case.X, case.y, many, **case.options))
    faults += again
    for i, alpha in enumerate(case.alphas):
        want = exact(case, alpha)
        single, loud, again = _called(lambda a=alpha: ridge(case.X, case.y, a, **case.options))
        faults += again
        for name, weight, said in (("ridge", single.weight, loud), ("path", path.weight[i], path_loud)):
            off = max(
                abs(float(Decimal(float(weight[k, j])) - want.weight[j][k])) * want.size[j]
                for j in range(len(want.size))
                for k in range(weight.shape[0])
            )
            count, warned = count + 1, warned + said
            if not said and off > share(max(want.condition, FITS)) * want.scale:
                name = name if 100 * EPS * want.condition < 1 else f"lost {name}"
                faults.append(f"{name}: off {off:.1e} of {want.scale:.1e}, condition {want.condition:.1e}, α={alpha:g}")
    return faults, warned, count


def _expected(case: Case, parts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ s e² (K, L, t) and the error that is allowed of it."""
    n = len(case.X)
    least = [exact(case, alpha).condition if len(parts) == n else 1.0 for alpha in case.alphas]
    values = np.zeros((len(parts), len(case.alphas), case.y.shape[1]))
    allowed = np.zeros_like(values)
    for f, held in enumerate(parts):
        train = case.of(torch.tensor([i for i in range(n) if i not in held]))
        known = sums(train)
        for i, alpha in enumerate(case.alphas):
            fit = exact(train, alpha, known)
            total, scale = heldout(case, fit, held)
            values[f, i] = [float(v) for v in total]
            # squares of what is nearly exact: the root of the product of both, not the larger alone
            error = share(max(fit.condition, least[i], SCORES))
            allowed[f, i] = error * np.sqrt(values[f, i] * scale) + error**2 * scale + 1e3 * EPS * values[f, i]
    return values, allowed


def _compare(name: str, got: Tensor, want: np.ndarray, allowed: np.ndarray, said: bool) -> list[str]:
    off = np.abs(got.numpy() - want)
    if said or bool((off <= allowed).all()):
        return []
    worst = np.unravel_index(np.argmax(off / np.maximum(allowed, 1e-300)), off.shape)
    return [f"{name}: off {off[worst]:.1e} of {want[worst]:.1e}, allowed {allowed[worst]:.1e}, at {worst}"]


def _weight(case: Case, rows: list[int]) -> float:
    return float(len(rows)) if case.sample_weight is None else float(case.sample_weight[rows].sum())


def _folds(case: Case) -> Outcome:
    parts = ids_of(len(case.X), case.folds)
    again = case.folds == 2  # the cheapest is called twice
    solution, said, faults = _called(
        lambda: ridge_cv(case.X, case.y, case.alphas, cv=case.folds, **case.options), again
    )
    want, allowed = _expected(case, parts)
    weight = np.array([_weight(case, held) for held in parts])[:, None, None]
    faults += _compare("folds", -solution.fold_scores, want / weight, allowed / weight, said)
    return faults, int(said), 1


def _left_out(case: Case) -> Outcome:
    n = len(case.X)
    solution, said, faults = _called(lambda: ridge_cv(case.X, case.y, case.alphas, cv="loo", **case.options), False)
    want, allowed = _expected(case, ids_of(n, n))
    weight = _weight(case, list(range(n)))
    faults += _compare("loo", -solution.scores, want.sum(0) / weight, allowed.sum(0) / weight, said)
    if n > 5:
        return faults, int(said), 1
    each, also, again = _called(lambda: ridge_cv(case.X, case.y, case.alphas, cv=n, **case.options), False)
    s = torch.ones(n, dtype=torch.float64) if case.sample_weight is None else case.sample_weight
    mean = (each.fold_scores * s[:, None, None]).sum(0) / s.sum()
    twice = 2 * allowed.sum(0) / weight
    faults += again + _compare("loo against n folds", solution.scores, mean.numpy(), twice, said or also)
    return faults, int(said), 2


def _gcv(case: Case) -> Outcome:
    solution, said, faults = _called(lambda: ridge_cv(case.X, case.y, case.alphas, cv="gcv", **case.options), False)
    n = len(case.X)
    want, allowed = np.full((len(case.alphas), case.y.shape[1]), np.nan), np.full((len(case.alphas), 1), np.inf)
    for i, alpha in enumerate(case.alphas):
        fit = exact(case, alpha)
        left = 1 - float(fit.dof + int(case.intercept)) / n
        want[i] = [float(v) / _weight(case, list(range(n))) / max(left, 1e-100) ** 2 for v in fit.squares]
        if left > 1e-3:
            cancels = fit.scale**2 / _weight(case, list(range(n)))
            y = max(float((case.y**2).max()), cancels)
            error = share(max(fit.condition, SCORES)) / left
            allowed[i] = (2 * error * (want[i] + np.sqrt(want[i] * y)) + error**2 * y).max()
    got, clear = -solution.scores, np.isfinite(allowed[:, 0])
    faults += _compare("gcv", got[torch.from_numpy(clear)], want[clear], allowed[clear] + 0 * want[clear], said)
    return faults, int(said), 1


CHECKS: tuple[Check, ...] = (_fits, _folds, _left_out, _gcv)


KINDS = {
    "exception": "exceptions that are not ours",
    "repeat": "differences of two calls",
    "lost": "fits without two digits or a warning, at a condition that allows for none",
}


def main() -> int:
    """Run the problems and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first problem; the others follow")
    parser.add_argument("--all", action="store_true", help="every kind of answer of every problem, not one of each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for i in range(arguments.start, arguments.start + arguments.problems):
        checks = CHECKS if arguments.all else CHECKS[i % len(CHECKS) :][:1]
        found = examine(make(random.Random(arguments.seed * 10**9 + i).choice), checks)
        counts["answers"] += found.answers
        counts["answers with a warning"] += found.warned
        for fault in found.faults:
            counts[KINDS.get(fault.split()[0], "silent wrong answers")] += 1
            print(f"problem {arguments.seed}:{i}: {fault}", flush=True)
        if (i + 1) % 1000 == 0:
            print(f"{i + 1} problems: {dict(counts)}", flush=True)
    wrong = ("silent wrong answers", *KINDS.values())
    answers, warned = counts["answers"], counts["answers with a warning"]
    print(f"{arguments.problems} problems, {answers} answers, {warned} with a warning")
    print(", ".join(f"{counts[name]} {name}" for name in wrong))
    return int(any(counts[name] for name in wrong))


if __name__ == "__main__":
    sys.exit(main())

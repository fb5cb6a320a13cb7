"""One logistic problem by L-BFGS, preconditioned by the diagonal of a Hessian whose size follows the last step.

    minimize over θ (c, q):   f(θ) = Σ_i w_i CE(y_i, θ f_i)  +  ½ λ ‖θ‖²     without the column of ones; Σ w_i = 1

At θ = 0 the diagonal of the Hessian is K + λ with K = b sᵀ, b_j = π_j (1 − π_j) of the shares of the classes and s the
mean squares of the centred features. Further on the curvature of the loss falls, that of the penalty does not:
the preconditioner is (τ K + λ)⁻¹, with τ such that it agrees with the curvature along the last step,

    τ = (stepᵀ change − λ stepᵀ step) / stepᵀ K step.

On TF-IDF rows (2000, 8000, 10 classes) it takes 4 evaluations to a relative gap of 1e-6 and 7 to 1e-10, whereas L-BFGS
on rows that are not centred takes 26 and 61 without it, and 18 and 36 with it: the mean of the rows is the one
direction of much curvature that a diagonal does not see.

L-BFGS: Liu and Nocedal (1989), doi:10.1007/BF01589116.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import mul

import torch
from torch import Tensor

from torchridge.solvers.cross_entropy.problem import Problem
from torchridge.solvers.cross_entropy.scaling import Scaling

# Pairs that are kept.
MEMORY = 10

# What the gap that L-BFGS says may be wrong by. While convergence is slow the decrement of a single step swings by a
# factor of 100: the geometric mean of the last five has been up to 7 times too small on planted data of condition 1e9.
SAFETY, _WINDOW = 16.0, 5

_SUFFICIENT = 1e-4  # Armijo's constant
_FLAT = 0.5  # share of the slope that may be left at the end of a step
_TRIALS = 12  # lengths that are tried for one step
_SHORTER, _LONGER = 0.1, 4.0  # bounds of the next length, as a share of the last


class Pairs:
    """The last steps and changes of the gradient of f, in coordinates z, and the inverse Hessian that they make.

    H = γ + [S γY] [[R⁻ᵀ (D + γ Yᵀ Y) R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]] [S γY]ᵀ, R the upper triangle of Sᵀ Y, D its diagonal:
    Byrd, Nocedal and Schnabel (1994), doi:10.1007/BF01582063. Two products serve all pairs, whereas the two loops of
    Liu and Nocedal take four operations for each.
    """

    def __init__(self, like: Tensor) -> None:
        self.both = like.new_empty(2 * MEMORY, like.numel())  # (s, y) of every pair
        # A few numbers, so on the host, oldest first: Sᵀ Y, of which the upper triangle counts, and Yᵀ Y.
        self.cross: list[list[float]] = []
        self.squares: list[list[float]] = []
        self.order: list[int] = []  # places, oldest first
        self.scale = 1.0  # γ
        self.products: list[float] = []  # of every pair with the last gradient
        self.fresh = False  # whether that is the next to be asked for

    def add(self, step: Tensor, change: Tensor, grad: Tensor) -> None:
        """Keep a pair, if its curvature is positive, in the place of the oldest.

        `grad` is where the change led from the gradient that was last asked for: the products of one with all pairs are
        those with the other and the change.
        """
        inner = float(torch.dot(step, change))
        if not 0 < inner < math.inf:
            return
        at = len(self.order)
        if at == MEMORY:
            at = self.order.pop(0)
            for table in (self.cross, self.squares):
                del table[0]
                for row in table:
                    del row[0]
        self.both[2 * at], self.both[2 * at + 1] = step, change
        before, square = self.products, float(torch.dot(change, change))
        self.products = torch.mv(self.both[: 2 * max(at + 1, len(self.order) + 1)], grad).tolist()
        self.fresh = True
        for row, place in zip(self.cross, self.order, strict=True):
            row.append(self.products[2 * place] - before[2 * place])
        self.cross.append([0.0] * len(self.order) + [inner])
        last = [self.products[2 * place + 1] - before[2 * place + 1] for place in self.order]
        for row, value in zip(self.squares, last, strict=True):
            row.append(value)
        self.squares.append([*last, square])
        self.order.append(at)
        self.scale = inner / square

    def ahead(self, grad: Tensor) -> Tensor:
        """Return H grad."""
        if not self.order:
            return grad.clone()
        both = self.both[: 2 * len(self.order)]
        if not self.fresh:
            self.products = torch.mv(both, grad).tolist()
        self.fresh = False
        back = torch.tensor(self._back(self.products), dtype=grad.dtype, device=grad.device)
        return torch.addmv(grad, both.mT, back, beta=self.scale)

    def _back(self, products: list[float]) -> list[float]:
        """Return what (s, y) of every pair are multiplied with, from their products with the gradient."""
        order, cross, scale = self.order, self.cross, self.scale
        m = len(order)
        inner, out = [0.0] * m, [0.0] * (2 * m)
        for i in range(m - 1, -1, -1):  # R inner = Sᵀ g
            row = cross[i]
            inner[i] = (products[2 * order[i]] - sum(map(mul, row[i + 1 :], inner[i + 1 :]))) / row[i]
        rest = [0.0] * m  # what the entries of outer so far take away
        for i, at in enumerate(order):  # Rᵀ outer = D inner + γ (Yᵀ Y inner − Yᵀ g)
            row = cross[i]
            right = scale * (sum(map(mul, self.squares[i], inner)) - products[2 * at + 1])
            outer = inner[i] + (right - rest[i]) / row[i]
            out[2 * at], out[2 * at + 1] = outer, -scale * inner[i]
            for j in range(i + 1, m):
                rest[j] += row[j] * outer
        return out


@dataclass(eq=False)
class State:
    """Where a problem stands.

    Attributes:
        theta: (c, q), float64.
        logits: (c, n), in the dtype of the products.
        residual: (c, n), the derivative of the mean loss by the logits.
        loss: mean loss without the penalty.
        shrunk: the penalty, ½ λ ‖θ‖².
        grad: (c, q), gradient of the mean loss without the penalty.
        pairs: what the steps so far say of the Hessian of f.
        n_iter: evaluations under this penalty.
        decrements: gradᵀ H grad before every step.
        gap: estimate of f(θ) − min f, times what it may be wrong by.
        moving: whether a step can still lower f.
    """

    theta: Tensor
    logits: Tensor
    residual: Tensor
    loss: float
    shrunk: float
    grad: Tensor
    pairs: Pairs | None = None
    n_iter: int = 1
    decrements: list[float] = field(default_factory=list)
    gap: float = math.inf
    moving: bool = True


def start(problem: Problem, theta: Tensor, logits: Tensor | None = None) -> State:
    """Evaluate θ, of which the logits may be known."""
    logits = problem.features.logits(theta) if logits is None else logits
    loss, residual = problem.loss(logits)
    return State(theta, logits, residual, float(loss), _shrunk(problem, theta), problem.features.gradient(residual))


def refined(problem: Problem, state: State) -> State:
    """Return the state of a problem with products in another dtype, at the cost of an evaluation; the pairs stay."""
    at = start(problem, state.theta)
    at.pairs, at.n_iter = state.pairs, state.n_iter + 1
    if at.pairs is not None:
        at.pairs.fresh = False
    at.decrements = state.decrements[:-1] if math.isfinite(state.gap) else []
    return at


def _shrunk(problem: Problem, theta: Tensor) -> float:
    return 0.5 * float(_inner(theta * problem.diagonal, theta))


def repenalized(problem: Problem, state: State, penalty: float) -> tuple[Problem, State]:
    """Return both under another penalty: the point and its derivatives stay, so no evaluation is due.

    The pairs are forgotten: they are in coordinates of the penalty before.
    """
    problem = replace(problem, penalty=penalty)
    return problem, replace(
        state,
        shrunk=_shrunk(problem, state.theta),
        pairs=None,
        n_iter=0,
        decrements=[],
        gap=math.inf,
        moving=True,
    )


def value(state: State) -> float:
    """Return f."""
    return state.loss + state.shrunk


def converged(state: State, tol: float) -> bool:
    """Return whether the gap is at most tol·f."""
    return state.gap <= tol * value(state)


def _gap(decrements: list[float]) -> float:
    """Return the estimate of the gap: from fewer steps if convergence is fast, and they do not swing."""
    fast = len(decrements) >= 3 and all(10 * b <= a for a, b in pairwise(decrements[-3:]))
    last = decrements[-2 if fast else -_WINDOW :]
    return 0.5 * SAFETY * math.exp(sum(map(math.log, last)) / len(last))


def solve(problem: Problem, state: State, scaling: Scaling, *, tol: float, max_iter: int) -> State:
    """Step until the gap is at most tol·f, or nothing moves, or `max_iter` evaluations are made."""
    full = scaling.inside(torch.addcmul(state.grad, state.theta, problem.diagonal))
    state.pairs = state.pairs or Pairs(full)
    while True:
        ahead = state.pairs.ahead(full)
        slope = float(torch.dot(full, ahead))
        state.decrements.append(max(slope, torch.finfo(torch.float64).tiny))
        state.gap = _gap(state.decrements)
        now = value(state)
        if state.gap <= tol * now or not state.moving or state.n_iter >= max_iter:
            return state
        length = _along(problem, state, scaling.outside(ahead.neg_(), state.theta), slope)
        before, full = full, scaling.inside(torch.addcmul(state.grad, state.theta, problem.diagonal))
        state.pairs.add(ahead.mul_(length), full - before, full)


def _along(problem: Problem, state: State, direction: Tensor, descent: float) -> float:
    """Move along a direction as far as pays, at the cost of one evaluation, and return how many times its length.

    The logits are linear in the step, so that only the loss is taken anew for another length.
    """
    ahead = problem.features.logits(direction)
    shrunk = direction * problem.diagonal
    linear, square = float(_inner(shrunk, state.theta)), float(_inner(shrunk, direction))
    length = 1.0 if state.pairs is not None and state.pairs.order else _newton(problem, state, ahead, square, descent)
    noise = torch.finfo(problem.weight.dtype).eps * (1 + state.loss + abs(linear))
    for _ in range(_TRIALS):
        logits = torch.add(state.logits, ahead, alpha=length)
        loss, residual = problem.loss(logits)
        rise = float(loss) - state.loss + length * (linear + 0.5 * length * square)
        slope = float(_inner(residual, ahead)) + linear + length * square
        enough = rise <= -_SUFFICIENT * length * descent + noise
        if enough and abs(slope) <= _FLAT * descent:
            break
        root = descent / (descent + slope) if slope > -descent else _LONGER
        length *= min(max(root, _SHORTER), _LONGER)
    state.moving = enough
    if not enough:
        return 0.0
    state.theta = torch.add(state.theta, direction, alpha=length)
    state.logits, state.residual, state.loss = logits, residual, float(loss)
    state.shrunk += length * (linear + 0.5 * length * square)
    state.grad = problem.features.gradient(residual)
    state.n_iter += 1
    return length


def _newton(problem: Problem, state: State, ahead: Tensor, square: float, descent: float) -> float:
    """Return the length of the Newton step along a direction of logits (c, n)."""
    weight, residual = problem.weight, state.residual
    if residual.shape[0] == 1:
        wrong = residual[0].abs()
        curvature = torch.where(wrong > 0, wrong - wrong.square() / weight, 0)
        bend = torch.dot(curvature, ahead[0].square())
    else:
        mass = residual.scatter_add(0, problem.labels[None], weight[None])
        mean = (mass * ahead).sum(0)
        bend = _inner(mass, ahead.square()) - torch.where(weight > 0, mean.square() / weight, 0).sum()
    total = float(bend) + square
    return min(descent / total, 1e3) if total > 0 else 1.0


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.reshape(-1), b.reshape(-1))


def shorter(before: float, after: float, slope: float) -> float:
    """Return the minimum of the parabola through both values and the slope, between a tenth and a half of the step."""
    rise = after - before - slope
    return min(max(-slope / (2 * rise), 0.1), 0.5) if 0 < rise < math.inf else 0.1

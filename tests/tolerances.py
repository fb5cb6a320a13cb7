"""The tolerances of the suite, one place, each with its reason."""

import torch

# A few hundred roundings of a well-conditioned problem.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

# Two independent solvers of the same well-conditioned problem (condition under 1e4).
SOLVERS = {torch.float64: 1e-10, torch.float32: 1e-4}

# float32 data solved in float64 and rounded once at the end: the float32 unit, with room for the rounding of the norm.
ROUNDED_ONCE = 1e-6

# Against exact answers: what the closed form promises, by the condition number of S + alpha I.
EXACT = 1e-10
EXACT_PER_CONDITION = 1e3 * torch.finfo(torch.float64).eps

# K-fold scores against a refit of every fold, leave-one-out against n refits.
FOLD_SCORES = 1e-9
LEAVE_ONE_OUT = 1e-8

# Moments: the same sums in another order; and in another order after a difference that cancels.
SAME_SUMS = 1e-12
CANCELLED_SUMS = 1e-10


# An objective at its minimum, against scikit-learn's newton-cholesky at tol=1e-12.
OBJECTIVE = 1e-8

# Coefficients of a fit stopped at a relative gap of 1e-13 of the objective: its root, times the condition.
LOGISTIC_WEIGHT = 1e-5

# Weights of conjugate gradients at a relative residual of 1e-13, times the condition of a small problem.
ITERATED = 1e-9

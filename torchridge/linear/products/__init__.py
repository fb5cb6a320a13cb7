"""Ridge by products with X alone: conjugate gradients, their folds, and GCV with a stochastic trace."""

"""L2 logistic regression: check once, choose once, solve, round once."""

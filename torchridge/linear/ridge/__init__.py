"""Ridge regression: check once, choose once, solve, round once."""

"""What the data say: rows in, their first and second moments out, whole or by folds."""

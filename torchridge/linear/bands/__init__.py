"""Ridge with a strength for each band of features."""

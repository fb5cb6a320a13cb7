"""Ridge problems solved by products with the matrix alone."""

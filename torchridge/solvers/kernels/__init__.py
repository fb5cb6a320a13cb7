"""Ridge problems of few rows, from the n × n gram matrix of the rows: nothing of size d × d is formed."""

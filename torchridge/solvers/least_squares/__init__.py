"""Ridge problems that fit in memory, factored: every strength, and how well it predicts."""

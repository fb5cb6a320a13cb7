"""What a parameter is, and what is done with it."""

"""Linear models solved to a stated accuracy: moments in, frozen solutions out."""

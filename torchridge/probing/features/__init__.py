"""From a frozen model and batches to rows and moments of every layer."""

"""Penalties that are added to a loss, or once per optimizer step."""

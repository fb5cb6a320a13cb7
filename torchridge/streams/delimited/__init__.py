"""Rows of CSV."""

"""Observations -> tokens that a policy attends to."""

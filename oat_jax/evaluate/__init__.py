"""Evaluation: episodes in a simulator, and what is said about them; takes a callable."""

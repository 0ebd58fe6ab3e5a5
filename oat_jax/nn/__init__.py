"""Linen modules of tokenizers and policies; their parameters carry logical axis names."""

"""Evaluation: episodes in a simulator, and what is said about them. Takes a callable; knows no
training code.
"""

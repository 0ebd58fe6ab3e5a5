"""Linen modules that tokenizers and policies are made of; parameters carry logical axis names for
sharding.
"""

"""Ordered action tokenization for robot policies, in JAX.

Importing this package imports nothing else; take the room that you need, e.g. `from oat_jax import
tokenizers`.
"""

__version__ = "0.1.0"

"""Tokenizers: chunks of actions <-> ordered tokens; the contract is in tokenizer.py."""

from oat_jax.tokenizers.saved import load
from oat_jax.tokenizers.saved import save
from oat_jax.tokenizers.tokenizer import freeze
from oat_jax.tokenizers.tokenizer import make
from oat_jax.tokenizers.tokenizer import Tokenizer

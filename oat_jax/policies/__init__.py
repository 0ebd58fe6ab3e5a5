"""Policies: observations -> chunks of actions. One file each; the contract is in policy.py."""

from oat_jax.policies.policy import freeze
from oat_jax.policies.policy import make
from oat_jax.policies.policy import Policy
from oat_jax.policies.policy import Sampling

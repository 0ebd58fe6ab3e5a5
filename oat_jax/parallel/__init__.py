"""Meshes, the sharding rule table and process groups. Imports jax only."""

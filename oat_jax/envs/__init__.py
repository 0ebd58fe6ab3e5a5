"""Simulators: the contract, the suites, episodes side by side, and collecting demonstrations."""

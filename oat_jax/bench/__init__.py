"""Sections of launch/benchmark.py, one file each: `run(values) -> {figure with its unit:
number}`.
"""

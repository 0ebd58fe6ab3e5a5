"""Sections of launch/benchmark.py, one file each: `run(values) -> {figure_unit: number}`."""

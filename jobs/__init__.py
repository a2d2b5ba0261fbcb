"""Drivers for `ray job submit`, their configs, the benchmarks."""

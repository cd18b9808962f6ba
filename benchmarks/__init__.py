"""Benchmarks of optkit. See ``benchmarks/README.md``."""

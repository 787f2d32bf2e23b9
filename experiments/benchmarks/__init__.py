"""Benchmarks: they measure what the documentation claims about speed."""

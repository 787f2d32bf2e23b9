"""Compares runs: tables, published numbers, figures."""

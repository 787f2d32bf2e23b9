"""Excludes a file from doctests."""

collect_ignore = ["torch_references.py"]  # needs torch, and is run by hand

"""Excludes files from doctests."""

# These need torch, and are run by hand.
collect_ignore = [
    "torch_references.py",
    "torch_references_kernels.py",
    "torch_references_mobile.py",
]

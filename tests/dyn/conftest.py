"""What pytest does not look into for doctests."""

collect_ignore = ["torch_references.py"]  # needs torch, and is run by hand

"""Errors, the command-line helper, the console, files and digests."""

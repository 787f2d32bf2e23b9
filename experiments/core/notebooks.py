"""Output of a notebook that changes while a cell runs."""

import importlib


class NotebookLine:
    """A line in the output of a cell, which each `write` replaces; for programs that run in a notebook."""

    def __init__(self):
        """Prepares the line; it appears where the output is at the first `write`."""
        self._handle = None

    def write(self, text: str) -> None:
        """Shows a text instead of the one before."""
        content = {"text/plain": text}
        if self._handle is None:
            # Every notebook has IPython, and nothing else needs it.
            display = importlib.import_module("IPython.display").display
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

"""Imports the libraries that only audio needs, so that everything else runs without them."""

import importlib
import types

from experiments.core.errors import UserError
from experiments.core.extras import format_install


def require_library(name: str) -> types.ModuleType:
    """Imports a library of the extra `audio`, such as `soundfile`, `soxr` or `librosa.filters`.

    Raises:
        UserError: with the command that installs it, if it is missing.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError without its C library.
        raise UserError(
            f"Audio needs {name.split('.')[0]}, which cannot be imported ({error}): "
            f"{format_install('audio')}"
        ) from error

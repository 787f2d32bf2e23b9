"""The libraries that only sound needs: everything else runs without them."""

import importlib
import types

from experiments.core.errors import UserError


def require_library(name: str) -> types.ModuleType:
    """Imports a library of the extra `audio` (`soundfile`, `soxr`, `librosa.filters`, ...).

    Raises:
        UserError: saying how to install it, where it is missing.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile: OSError where the C library is missing.
        raise UserError(
            f'Sound needs {name.split(".")[0]}, which cannot be imported ({error}): pip install -e ".[audio]"'
        ) from error

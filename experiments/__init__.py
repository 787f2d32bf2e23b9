"""The laboratory: trains, compares and reports on dynamic convolutional networks."""

import sys
from pathlib import Path

from experiments.core.extras import explain_missing_laboratory

if message := explain_missing_laboratory():
    # While Python looks for the module of `python -m`, its own name is "-m". A command answers in one line,
    # which the console cannot print without rich.
    if sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "dyn":
        sys.stderr.write(f"error: {message}\n")
        raise SystemExit(2)
    raise ImportError(message)

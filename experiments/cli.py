"""What all commands share: flags in, one sentence and an exit code out."""

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags

from experiments.errors import UserError, nearest

FLAGS = flags.FLAGS
DEBUG = flags.DEFINE_bool("debug", False, "Whether errors show their traceback.")


def run(main: Callable[[], None], argv: list[str], usage: str) -> int:
    """Parses the flags and calls `main`; a mistake of the user's becomes one message.

    Returns:
        The exit code: 0, 2 for a mistake that the message explains, 130 after Ctrl-C.
    """
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        print(usage.strip())
        return 0
    try:
        _parse(argv)
        main()
        return 0
    except UserError as error:
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> None:
    """Parses the flags, in terms of UserError."""
    for word in argv[1:]:
        file = re.match(r"--?config=([^:]+)", word)
        if file and not Path(file[1]).is_file():
            path = Path(file[1])
            known = sorted(p.stem for p in path.parent.glob("*.py") if p.stem[0] != "_")
            known = [name for name in known if name != "common"]
            hint = nearest(path.stem, known) if known else "; there is no such folder."
            raise UserError(f"There is no config {path}{hint}")
    try:
        rest = FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(str(error).strip()) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What ml_collections raises for a field that does not exist, or a value of the wrong type.
        raise UserError(str(error).strip("'\"").replace("\n", " ")) from error
    if rest:
        raise UserError(f"'{rest[0]}' is not a flag; flags are written --name=value.")

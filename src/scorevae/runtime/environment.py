"""Whether this Python is the one in which the packages are; imports nothing of theirs.

A stage is started as ``python``, which is whatever stands first on the PATH: `.venv/bin/dvc repro`
without the environment activated finds the system's.
"""

import sys
from importlib.util import find_spec

NEEDED = ("click", "pydantic", "yaml", "torch")  # the rest comes with them, or is not always used
OLDEST = (3, 11)


def check_environment(needed: "tuple[str, ...]" = NEEDED) -> None:
    """End the process with one line that says what to do, where the packages are elsewhere."""
    lacking = [name for name in needed if find_spec(name) is None]
    if sys.version_info < OLDEST:  # the line reads as well on an old Python
        lacking.insert(0, "version {}.{} or newer".format(*OLDEST))
    if lacking:
        sys.exit(
            f"Error: {sys.executable} lacks {', '.join(lacking)}: activate the environment "
            "(`source .venv/bin/activate`) and type the command again, or run `make repro`"
        )

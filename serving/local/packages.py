"""Says which Python to use when a script is started by one without the service's packages, as a system's Python is.

It imports nothing that may be missing, and a script asks it before all other imports.
"""

import importlib.util
import sys
from pathlib import Path

NEEDED = ("pydantic_settings", "redis")  # by each of the scripts
FOLDER = Path(__file__).parents[2]


def check() -> None:
    """Exit with 2 and a sentence if this Python lacks what each script needs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    script, python = sys.argv[0], FOLDER / ".venv" / "bin" / "python"
    says = f"{Path(script).name}: this Python ({sys.executable}) lacks the package {missing[0]}, and perhaps more."
    if python.exists():
        print(f"{says} Use the one of .venv: {python} {script}", file=sys.stderr)
    else:
        print(f"{says} `make run` makes a Python that has all: {python} {script}", file=sys.stderr)
    sys.exit(2)

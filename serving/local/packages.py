"""Says which Python to use when a script is started by one without the service's packages, as a system's Python is.

It imports nothing that may be missing, and a script asks it before all other imports.
"""

import importlib.util
import sys
from pathlib import Path

from serving.errors import StartError

NEEDED = ("pydantic_settings", "redis")  # by each of the scripts
NEEDED_FOR_TRACES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")  # requirements-otel.txt
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


def check_for_traces(endpoint: str | None) -> None:
    """Raises StartError if traces are to be sent to `endpoint`, and this Python lacks what sends them."""
    if endpoint is None or all(_is_there(name) for name in NEEDED_FOR_TRACES):
        return
    raise StartError(
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages that send traces are missing. Install them: "
        f"{sys.executable} -m pip install -r {FOLDER / 'requirements-otel.txt'}"
    )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # one of the packages around it is missing
        return False

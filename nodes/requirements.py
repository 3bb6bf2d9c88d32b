"""What nodes need beside ComfyUI's own packages: what is missing is said before anything runs, and how to install it.

ComfyUI loads a pack whose requirements nobody has installed; such a node would fail after a whole search. Packages are
looked up, not imported, which takes no time.
"""

import logging
import re
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger(__name__)

FILE = Path(__file__).parents[1] / "requirements.txt"
MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL"}
"""What a package is imported as, where that is not its name."""
NEEDLESS = ("diffusers",)
"""Those that only the headless library and the `dno` command need."""


def met(*packages):
    """Return True where these packages are installed, else what to tell the user: what `validate_inputs` returns.

    Args:
        packages: names as in requirements.txt.
    """
    found = unmet(packages)
    return f"{found}. {advice()}" if found else True


def met_besides(package):
    """Return as `met` does whether a package is installed that no requirement names, for a node that bridges to it."""
    if find_spec(package) is not None:
        return True
    return (
        f"the package {package} is not installed. Install it by this command, then start ComfyUI again:"
        f" {_python()} -m pip install {package}"
    )


def warn():
    """Log which requirements are not met, while ComfyUI starts."""
    found = unmet([name for name in needed() if name not in NEEDLESS])
    if found:
        log.warning("Direct Noise Optimization: %s. Nodes that need it refuse to run. %s", found, advice())


def unmet(packages):
    """Return which of these packages are missing or too old, in words; "" where none is."""
    found = ((name, least, version_of(name)) for name, least in needed().items() if name in packages)
    return ", ".join(
        f"{name} is {version}, expected {least} or later" if version else f"the package {name} is not installed"
        for name, least, version in found
        if version is None or version != "" and numbers(version) < numbers(least)
    )


def needed():
    """Return name -> least version, "" for any, of every line of requirements.txt."""
    return {name: least for name, _, least in (line.partition(">=") for line in FILE.read_text().split())}


def version_of(package):
    """Return a package's version, "" where it does not tell, None where it is not installed."""
    if find_spec(MODULES.get(package, package)) is None:
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def numbers(version):
    """Return a version as a list that compares: "4.50.3" is [4, 50, 3]."""
    return [int(number) for number in re.findall(r"\d+", version)]


def advice():
    """Return the command that installs the requirements into the Python that runs."""
    file = _quoted(FILE)
    return f"Install what is missing by this command, then start ComfyUI again: {_python()} -m pip install -r {file}"


def _python():
    return _quoted(sys.executable)


def _quoted(path):
    return f'"{path}"' if " " in str(path) else path

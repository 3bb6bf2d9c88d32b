"""What a weights file probably is, by its name and the names of its tensors: so that nodes offer the likely one first.

    path --tensors_of--> name -> shape       of the file's header; no tensor is read, and nothing is unpickled
         --likeness----> LIKELY, POSSIBLE or OTHER

What a header says is remembered while its file stays as it is: the page asks for the lists of all nodes at once.
"""

import json
import pickletools
import re
import zipfile
from functools import lru_cache
from pathlib import Path

from . import onnx_file, weights

LIKELY, POSSIBLE, OTHER = 2, 1, 0

WORDS = {
    "Aesthetic": "aesthetic|sac[+]logos",
    "HPS": "hps",
    "PickScore": "pick",
    "ImageReward": "image.?reward",
    "CycleReward": "cycle",
    "CLIP ViT-L/14": "clip",
    "DINOv2": "dino",
    "Aesthetic V2.5": "v2.?5",
    "SigLIP": "sig.?c?lip",
    "MPS": "mps",
    "Face": "(?<!hugging)face|casia|w600k|glintr",
    "MTCNN": r"\bonet\b|mtcnn",
    "LPIPS": "alexnet|vgg.?16|squeezenet",
}
"""What the name of such a file, or of its folder, has in it: a regular expression, whatever its capitals."""

KINDS = {
    "Aesthetic": ("aesthetic head",),
    "HPS": weights.CLIP_KINDS,
    "PickScore": weights.CLIP_KINDS,
    "ImageReward": ("ImageReward",),
    "CycleReward": ("ImageReward",),
    "CLIP ViT-L/14": weights.CLIP_KINDS,
    "DINOv2": weights.DINOV2_KINDS,
    "Aesthetic V2.5": ("aesthetic head (v2.5, for SigLIP)",),
    "SigLIP": weights.SIGLIP_KINDS,
    "MPS": ("MPS",),
    "Face": ("FaceNet",),
    "MTCNN": ("MTCNN",),
    "LPIPS": weights.LPIPS_KINDS,
}
"""Of `weights.SOURCES`, which of `weights.KINDS` they are."""

WIDTHS = {"HPS": 1024, "PickScore": 1024, "CLIP ViT-L/14": 768, "SigLIP": 1152}
"""Of the embeddings."""

LARGEST_HEADER = 100_000_000
"""Bytes; what safetensors itself allows."""

_CYCLE_REWARD = "mlp.layers.8.weight"
_PROJECTIONS = {"visual_projection.weight": 0, "visual.proj": 1, "vision_model.head.probe": 2, "head.probe": 2}
"""Name -> axis that has the width of the embeddings."""


def likeness(path, name, source):
    """Return how likely a file is what is wanted.

    Args:
        path: of the file.
        name: what the user sees of it: the file, and folders that it is in.
        source: of `weights.SOURCES`, what is wanted.

    Returns:
        LIKELY: it is of that kind and its name says so. POSSIBLE: it is of that kind and its name says nothing, as
        model.safetensors. OTHER: it is of another kind, or its name says so.
    """
    said = [other for other, words in WORDS.items() if re.search(words, name, re.IGNORECASE)]
    is_onnx = Path(path).suffix.lower() == ".onnx"  # a format that only three are in
    if is_onnx or source in ("ONNX", "Text"):
        return _likeness_of_onnx(path, said, source) if is_onnx else OTHER
    if not _is_of_the_kind(tensors_of(path), source):
        return OTHER
    return LIKELY if source in said else OTHER if said else POSSIBLE


def _likeness_of_onnx(path, said, source):
    reads = "character" in onnx_file.metadata_of(path)
    if source == "ONNX":
        return POSSIBLE if reads else LIKELY
    return LIKELY if source == "Text" and reads or source == "Face" and source in said else OTHER


def answers(config):
    """Whether a config.json, of this path, is of a model that answers questions about pictures."""
    try:
        said = json.loads(Path(config).read_text(encoding="utf-8"))
        tuned = any(str(name).endswith("ForConditionalGeneration") for name in said["architectures"])
        return tuned and "vision_config" in said
    except (OSError, ValueError, LookupError, TypeError):
        return False


def tensors_of(path):
    """Return name -> shape of the tensors in a file, without "module." and "model." before them all.

    Of pickles the shape is None, and other words are among the names. Of what is no such file, there are none: folders
    are shared with other packs, and lists of files must not fail by what lies there.
    """
    path = Path(path)
    try:
        status = path.stat()
        return _tensors(path, status.st_mtime_ns, status.st_size)
    except Exception:  # files that are damaged, or of something else, can raise nearly anything
        return {}


@lru_cache(maxsize=1024)
def _tensors(path, modified, size):
    with path.open("rb") as file:
        start = file.read(9)
        file.seek(0)
        if start[8:] == b"{":
            length = int.from_bytes(start[:8], "little")
            header = json.loads(file.read(8 + min(length, LARGEST_HEADER))[8:])
            found = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
        elif start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                found = dict.fromkeys(word for name in pickled[:1] for word in _words(archive.open(name)))
        elif start[:1] == b"\x80":  # torch.save's older format: the fourth pickle holds the tensors' names
            found = dict.fromkeys(word for _ in range(4) for word in _words(file))
        else:
            found = {}
    return {re.sub(r"^(module\.|model\.)+", "", name): shape for name, shape in found.items()}


def _words(file):
    """Yield the texts in the pickle that begins here; its instructions are read, none is obeyed."""
    return (word for _, word, _ in pickletools.genops(file) if isinstance(word, str))


def _is_of_the_kind(tensors, source):
    kind = next((kind for kind, keys in weights.KINDS.items() if all(key in tensors for key in keys)), None)
    if kind not in KINDS[source] or _width(tensors) not in (None, WIDTHS.get(source)):
        return False
    return kind != "ImageReward" or (_CYCLE_REWARD in tensors) == (source == "CycleReward")


def _width(tensors):
    """Return the width of the embeddings, None where the header does not tell."""
    shapes = {name: tensors[name] for name in _PROJECTIONS if tensors.get(name) is not None}
    return next((shape[_PROJECTIONS[name]] for name, shape in shapes.items()), None)

"""One tower for one file: rewards that use the same weights share them, and what was embedded with them.

    path --weights.read---> state dict --kind_of--> ClipTower, BlipTower, VisionTower, MpsTower, LpipsTower,
                                                    FaceNetTower or, with the files beside it, FaceDetector
         --onnx_file.read-> Graph -----------------> OnnxTower
    folder --transformers-> a model of its own ----> VlmTower
"""

import threading
import weakref
from pathlib import Path

import torch

from . import weights
from .blip_tower import BlipTower, find_vocabulary
from .clip_tower import ClipTower
from .facenet_tower import FaceNetTower
from .lpips_tower import LpipsTower
from .mps_tower import MpsTower
from .mtcnn import FaceDetector
from .onnx_tower import OnnxTower
from .vision_tower import VisionTower
from .vlm_tower import VlmTower

_towers, _loading = weakref.WeakValueDictionary(), threading.Lock()


def load_tower(path, device="cpu", dtype=torch.float32, activation=None, folders=()):
    """Return the tower of a file: the same one for the same file, device and dtype while anyone holds it.

    Args:
        path: a CLIP file of either layout (HPS, PickScore, CLIP itself, or an image tower alone), ImageReward's or
            CycleReward's, MPS's, a DINOv2, a SigLIP, a FaceNet, MTCNN's onet.pt, a network for LPIPS, or one that ends
            in .onnx; or the folder of a vision-language model.
        device: where the networks are put at first.
        dtype: of the networks; what goes in and out is float32 or wider. A vision-language model keeps its own.
        activation: of a CLIP whose own is not what `clip_tower.activation` expects.
        folders: where else to look for the vocabulary that ImageReward needs, which may also lie beside the file.

    Raises:
        FileNotFoundError: no file, or no vocabulary.
        ValueError: see `weights.read`; or it is a file of something else.
    """
    path = Path(path)
    if not path.exists():
        raise weights.missing(path)
    status, device = path.stat(), torch.empty(0, device=device).device  # "cuda" is "cuda:0"
    # Caches of downloads hold links to files elsewhere, whose names say nothing; what else is needed lies by the link.
    key = (path.resolve(), status.st_ino, status.st_mtime_ns, status.st_size, device, dtype, activation)
    with _loading:
        tower = _towers.get(key)
        if tower is None:
            tower = _made(path, device, dtype, activation, [path.parent, *folders])
            _towers[key] = tower
    return tower


def _made(path, device, dtype, activation, folders):
    """Return a new tower of a file, or of a folder."""
    if path.is_dir():
        return VlmTower(path, device)
    if path.suffix.lower() == ".onnx":
        return OnnxTower(path, device, dtype)
    others = ("ImageReward", "MPS", "FaceNet", "MTCNN", *weights.LPIPS_KINDS)
    state = weights.read_as(path, *weights.CLIP_KINDS, *weights.VISION_KINDS, *others)
    kind = weights.kind_of(state)
    if kind == "ImageReward":
        return BlipTower(state, find_vocabulary(folders), path.name, device, dtype)
    if kind == "MPS":
        return MpsTower(state, path.name, device, dtype)
    if kind == "FaceNet":
        return FaceNetTower(state, path.name, device, dtype)
    if kind == "MTCNN":
        return FaceDetector(path, state, device)
    if kind in weights.VISION_KINDS:
        return VisionTower(state, path.name, device, dtype)
    if kind in weights.LPIPS_KINDS:
        return LpipsTower(state, path.name, device, dtype)
    return ClipTower(state, path.name, device, dtype, activation)

"""Files of reward models: the folders they are in, what the nodes' lists offer, and networks that ComfyUI manages.

    models/reward_models --names--> a node's list --path_of--> file --tower--> rewards.load_tower

A tower's network is in a ModelPatcher, which is loaded whenever the tower is used. So of several rewards one at a time
needs to be in memory: ComfyUI moves the others out where it is short.
"""

import contextlib
import os
import weakref
from functools import partial
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import folder_paths
import torch

from ... import rewards
from ...rewards import blip_tower, mtcnn, recognise, weights
from .. import residency
from ..names import listed

KEY = "reward_models"
OF_OTHERS = "LLM"
"""The folder in models that other packs keep vision-language models in."""
NO_FILE = "no file in models/reward_models"
"""What a list offers first where no file is what its node wants; saved workflows may have it."""
NO_FOLDER = "no folder in models/reward_models"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_of_clip_vision = weakref.WeakValueDictionary()


def register_folders():
    """Tell ComfyUI the key: its own folder, those that extra_model_paths.yaml gave it, and where others keep such.

    Its own folder is made, so that it is there to put files into; where the disk is read-only, it goes without.
    """
    known = folder_paths.folder_names_and_paths
    own, aesthetic = (os.path.join(folder_paths.models_dir, name) for name in (KEY, "aesthetic"))
    given, others, stock = (known[key][0] if key in known else [] for key in (KEY, "aesthetic", "clip_vision"))
    folders = dict.fromkeys([own, *given, aesthetic, *others, *stock])
    known[KEY] = (list(folders), {*folder_paths.supported_pt_extensions, ".onnx"})
    with contextlib.suppress(OSError):
        os.makedirs(own, exist_ok=True)


def names(source):
    """Return what a list of files offers: first those that are what is wanted, or where none is, that there is none.

    Args:
        source: of `weights.SOURCES`, what is wanted.
    """
    ranks = {name: recognise.likeness(folder_paths.get_full_path(KEY, name) or "", name, source) for name in found()}
    ordered = sorted(ranks, key=lambda name: -ranks[name])
    return ordered if ordered and ranks[ordered[0]] != recognise.OTHER else [NO_FILE, *ordered]


def found():
    """Return the names of all files in the folders, also where a folder has been removed while the server runs."""
    try:
        return folder_paths.get_filename_list(KEY)
    except FileNotFoundError:  # ComfyUI asks when each folder that it has listed was changed last
        folder_paths.filename_list_cache.pop(KEY)
        return folder_paths.get_filename_list(KEY)


def path_of(name, source):
    """Return the path of a listed file.

    Args:
        name: as in `names`, or with the slashes of another system.
        source: of `weights.SOURCES`, what the message tells to download.

    Raises:
        FileNotFoundError: it is in none of the folders; the message says where to get it and where to put it.
    """
    known = listed(name, found())
    path = None if known is None else folder_paths.get_full_path(KEY, known)
    if path is None:
        folder = folder_paths.get_folder_paths(KEY)[0]
        usual = weights.KEPT_AS.get(source, weights.SOURCES[source][0])
        raise weights.missing(usual if name == NO_FILE else name, source, folder)
    return path


def vocabulary_of(name, source):
    """Return the path of the vocabulary that a listed file's tower reads prompts with; raise as `path_of` does."""
    return blip_tower.find_vocabulary([os.path.dirname(path_of(name, source)), *folder_paths.get_folder_paths(KEY)])


def detector_of(name, source):
    """Return the path of a listed file of MTCNN's, beside which the others lie; raise as `path_of` does."""
    path = path_of(name, source)
    if os.path.basename(path) == mtcnn.FILES["onet"]:  # else it is refused for what it is when it is read
        mtcnn.beside(path)
    return path


def tower(name, source, dtype):
    """Return the tower of a listed file: the same one for all nodes with this file and this of `DTYPES`."""
    path, folders = path_of(name, source), folder_paths.get_folder_paths(KEY)
    return managed(rewards.load_tower(path, mm.unet_offload_device(), DTYPES[dtype], folders=folders))


def model_folders():
    """Return name -> path of the folders with a vision-language model, in those for reward models and `OF_OTHERS`.

    They are in the order of their names in each, whatever the file system's is.
    """
    bases = [*folder_paths.get_folder_paths(KEY), os.path.join(folder_paths.models_dir, OF_OTHERS)]
    configs = (
        (Path(base), file)
        for base in bases
        for depth in ("*", "*/*")
        for file in sorted(Path(base).glob(f"{depth}/config.json"))
    )
    found = {}
    for base, file in configs:
        if recognise.answers(file):
            found.setdefault(file.parent.relative_to(base).as_posix(), file.parent)
    return found


def folder_of(name):
    """Return the path of a listed folder, or raise FileNotFoundError, which says where to get it and to put it."""
    folders = model_folders()
    known = listed(name, folders)
    if known is None:
        usual, page = weights.SOURCES["VLM"]
        which = "" if name == NO_FOLDER else f" {name}"
        raise FileNotFoundError(
            f"there is no folder{which} with a vision-language model in {folder_paths.get_folder_paths(KEY)[0]}."
            f" Download {usual}, all of its files, from {page}"
        )
    return folders[known]


def folder_tower(name):
    """Return the tower of a listed folder: the same one for all nodes with it."""
    return managed(rewards.load_tower(folder_of(name), mm.unet_offload_device()))


def clip_vision_tower(clip_vision, dtype):
    """Return a ClipTower of a stock CLIP_VISION's weights, shared likewise.

    ComfyUI's own network cannot be differentiated by the picture: it rounds the pixels.
    """
    key = clip_vision, dtype
    tower = _of_clip_vision.get(key)
    if tower is None:
        state = clip_vision.get_sd()
        tower = rewards.ClipTower(state, "the CLIP_VISION", mm.unet_offload_device(), DTYPES[dtype])
        _of_clip_vision[key] = tower
    return managed(tower)


def managed(tower):
    """Let ComfyUI load the tower's network when it is used and move it out when memory is short; return the tower."""
    if tower.on_use is None:
        # Not CoreModelPatcher, which in ComfyUI 0.33 may stream weights: those that autograd saved must stay.
        patcher = comfy.model_patcher.ModelPatcher(
            tower.module, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
        )
        tower.on_use = partial(residency.load_tower, patcher)
    return tower


register_folders()

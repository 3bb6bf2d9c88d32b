"""The rewards by the names that the command line has for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .. import core, rewards
from ..rewards import weights

OWN = {
    "brightness": lambda device: rewards.Brightness(),
    "darkness": lambda device: rewards.Brightness(negative=True),
    "contrast": lambda device: rewards.Contrast(),
    "saturation": lambda device: rewards.Saturation(),
    "sharpness": lambda device: rewards.Sharpness(),
    "symmetry": lambda device: rewards.Symmetry(),
    "consistency": lambda device: rewards.Consistency(device=device),
    "jpeg": lambda device: rewards.JPEG(),
    "jpeg-incompressible": lambda device: rewards.JPEG(incompressible=True),
    "jpeg-proxy": lambda device: rewards.JPEGProxy(),
}
"""Those that need no file."""

OF_FILES = {
    "hps": (rewards.HPS, "HPS"),
    "pickscore": (rewards.PickScore, "PickScore"),
    "imagereward": (rewards.ImageReward, "ImageReward"),
    "cyclereward": (rewards.CycleReward, "CycleReward"),
    "clipscore": (rewards.CLIPScore, "CLIP ViT-L/14"),
    "mps": (rewards.MPS, "MPS"),
    "aesthetic": (rewards.Aesthetic, "Aesthetic"),
    "aesthetic-v25": (rewards.AestheticV25, "Aesthetic V2.5"),
    "vlm": (rewards.VLMJudge, "VLM"),
}
"""Those that judge by the networks of files: (class, of `weights.SOURCES` the file). They judge by the run's prompt."""

TOWERS = {rewards.Aesthetic: "CLIP ViT-L/14", rewards.AestheticV25: "SigLIP"}
"""Of those whose file is a head alone: the network that it is for."""

OF_A_PICTURE = {
    "palette": (rewards.Palette, None),
    "layout": (rewards.Layout, None),
    "similarity": (rewards.Similarity, "CLIP ViT-L/14"),
    "dinov2": (rewards.DINOv2Similarity, "DINOv2"),
    "lpips": (rewards.LPIPS, "LPIPS"),
}
"""Those that compare with a picture: (class, of `weights.SOURCES` the file of its network or None)."""

NAMES = (*OWN, *OF_FILES, *OF_A_PICTURE)

BELIEF = "belief"
WATCHED = (BELIEF, *OWN)
"""What can be watched: the model's own belief, and rewards that need no file."""


def add_reward(parser):
    """Add the choice of a reward."""
    parser.add_argument("--reward", choices=NAMES, default="brightness", help="what shall grow (default %(default)s)")
    with_files = [*OF_FILES, *(name for name, (_, source) in OF_A_PICTURE.items() if source)]
    parser.add_argument(
        "--reward-file", type=Path, help=f"weights of --reward {', '.join(with_files)}; of vlm the model's folder"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="PICTURE",
        help=f"picture that --reward {', '.join(OF_A_PICTURE)} compare with",
    )
    parser.add_argument(
        "--watch", choices=WATCHED, nargs="+", default=[], metavar="NAME",
        help=f"recorded beside it: {', '.join(WATCHED)}; of the embedded model consistency is without asking",
    )
    parser.add_argument(
        "--clip-file", type=Path,
        help="the CLIP ViT-L/14 that --reward aesthetic judges by, or the SigLIP that aesthetic-v25 does",
    )


def watch_of(options, device):
    """Return the rewards that are recorded beside the one that options name, each once."""
    embedded = options.model is None
    names = dict.fromkeys(["consistency", *options.watch] if embedded else options.watch)
    names.pop(options.reward, None)
    return tuple(core.Belief() if name == BELIEF else OWN[name](device) for name in names)


def reward_of(options, device, dtype):
    """Return the reward that options name, its networks on `device` in `dtype`.

    Raises:
        ValueError: files are missing or not wanted, or are not what they should be.
        FileNotFoundError: there is no such file.
    """
    kind, source = (OF_FILES | OF_A_PICTURE).get(options.reward, (None, None))
    _check_given(options, _wanted(kind, source, options.reward in OF_A_PICTURE))
    if not kind:
        return OWN[options.reward](device)
    if options.reward in OF_A_PICTURE:
        reference = picture_of(options.reference)
        return kind(rewards.load_tower(options.reward_file, device, dtype), reference) if source else kind(reference)
    if kind in TOWERS:
        return kind(rewards.load_tower(options.clip_file, device, dtype), options.reward_file)
    tower = rewards.load_tower(options.reward_file, device, dtype)
    if kind is rewards.VLMJudge and getattr(tower, "rates", False):
        return rewards.HPSv3(tower)  # asked yes or no, its head would go to waste
    return kind(tower)


def _wanted(kind, source, of_a_picture):
    """Return option -> what it shall be, of those that a reward needs."""
    wanted = {"reward_file": source, "clip_file": TOWERS.get(kind)}
    wanted = {option: f"the path of {weights.known_files([name])}" for option, name in wanted.items() if name}
    return wanted | ({"reference": "the path of a picture"} if of_a_picture else {})


def _check_given(options, wanted):
    """Raise ValueError where one of the options that are wanted is not given, or one is that is not."""
    for name in ("reward_file", "clip_file", "reference"):
        option, given = "--" + name.replace("_", "-"), getattr(options, name)
        if given is None and name in wanted:
            raise ValueError(f"--reward {options.reward} needs {option}; expected {wanted[name]}")
        if given is not None and name not in wanted:
            raise ValueError(f"--reward {options.reward} takes no {option}; leave it out")


def picture_of(path):
    """Return a picture file, turned as its camera says, as pixels (1, 3, H, W) in [0, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; expected a picture")
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):  # of 16 bits, which "RGB" would cut off
                return torch.from_numpy(np.array(picture, np.float32))[None, None].expand(-1, 3, -1, -1) / 65535
            if picture.mode in ("I", "F"):
                raise ValueError(f"{path} has pixels of mode {picture.mode}; expected a picture of 8 or 16 bits")
            levels = np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error}); expected a PNG or JPEG file") from error
    return torch.from_numpy(levels).movedim(-1, 0)[None] / 255

"""LAION's improved aesthetic predictor (Schuhmann 2022): a linear judgement of a CLIP ViT-L/14's image embedding."""

from dataclasses import dataclass
from pathlib import Path

import torch

from . import weights
from .clip import TowerReward
from .clip_tower import ClipTower

_LAYERS = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


@dataclass(eq=False)
class Aesthetic(TowerReward):
    """How beautiful people find a picture, whatever it shows: about 4.5 to 7 of 10.

    The predictor's five layers have no activation between them: they are one linear map, and kept as that.

    Example:
        >>> tower = rewards.load_tower("clip-vit-large-patch14.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.Aesthetic(tower, "sac+logos+ava1-l14-linearMSE.pth")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a ClipTower of OpenAI's ViT-L/14; its image tower is enough, so the weights of a CLIP_VISION serve too.
        head: path of the predictor's file.
        parity: see `TowerReward`.
    """

    tower: ClipTower
    head: str | Path
    parity: bool = False
    name = "aesthetic"
    rule = "laion"
    needs_width = 768
    sources = ("CLIP ViT-L/14",)

    def __post_init__(self):
        super().__post_init__()
        self._weight, self._bias = _read_head(self.head)

    def toward(self, images, prompts):
        return self._weight

    def __call__(self, images, prompts=None):
        return super().__call__(images, prompts) + self._bias


@torch.inference_mode(False)
def _read_head(path):
    """Return the layers of a file one after another: weight (768,) and bias, a float."""
    state = weights.read_as(path, "aesthetic head")
    found = {index: tuple(state[f"layers.{index}.weight"].shape) for index in _LAYERS}
    if found != _LAYERS:
        raise ValueError(
            f"{Path(path).name} has layers of shapes {found}; expected {_LAYERS}, the predictor for ViT-L/14. Use"
            f" {weights.known_files(['Aesthetic'])}"
        )
    weight, bias = (make(768, dtype=torch.float64, device="cpu") for make in (torch.eye, torch.zeros))
    for index in _LAYERS:
        layer = state[f"layers.{index}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"layers.{index}.bias"].double()
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"{Path(path).name} holds NaN or infinity; expected finite numbers. Download it again")
    return weight[0].float(), float(bias)

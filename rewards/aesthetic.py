"""How beautiful people find a picture, by a linear judgement of its embedding.

    Aesthetic      of a CLIP ViT-L/14: LAION's improved aesthetic predictor (Schuhmann 2022)    4.5 to 7 of 10
    AestheticV25   of a SigLIP so400m: Aesthetic Predictor V2.5 (discus0434 2024)               1 to 10

The predictors have several layers, and no activation between them: each is one linear map, and kept as that.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from . import weights
from .clip import TowerReward
from .clip_tower import ClipTower


@dataclass(eq=False)
class Aesthetic(TowerReward):
    """How beautiful people find a picture, whatever it shows: about 4.5 to 7 of 10.

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
        layers: of the predictor, in their order: name -> shape of the weight.
        head_source: of `weights.SOURCES`, the predictor's file; `head_kind` is what `weights.KINDS` calls it.
    """

    tower: ClipTower
    head: str | Path
    parity: bool = False
    name = "aesthetic"
    rule = "laion"
    needs_width = 768
    sources = ("CLIP ViT-L/14",)
    layers = {
        "layers.0": (1024, 768), "layers.2": (128, 1024), "layers.4": (64, 128), "layers.6": (16, 64),
        "layers.7": (1, 16),
    }  # fmt: skip
    head_source, head_kind = "Aesthetic", "aesthetic head"

    def __post_init__(self):
        super().__post_init__()
        self._weight, self._bias = self._read_head()

    def toward(self, images, prompts):
        return self._weight

    def __call__(self, images, prompts=None):
        return super().__call__(images, prompts) + self._bias

    @torch.inference_mode(False)
    def _read_head(self):
        """Return the layers of the file one after another: weight (width,) and bias, a float."""
        state, name = weights.read_as(self.head, self.head_kind), Path(self.head).name
        found = {layer: tuple(state[f"{layer}.weight"].shape) for layer in self.layers if f"{layer}.weight" in state}
        if found != self.layers:
            raise ValueError(
                f"{name} has layers of shapes {found}; expected {self.layers}, the predictor for {self.sources[0]}. Use"
                f" {weights.known_files([self.head_source])}"
            )
        weight, bias = (make(self.needs_width, dtype=torch.float64, device="cpu") for make in (torch.eye, torch.zeros))
        for layer in self.layers:
            matrix = state[f"{layer}.weight"].double()
            weight, bias = matrix @ weight, matrix @ bias + state[f"{layer}.bias"].double()
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity; expected finite numbers. Download it again")
        return weight[0].float(), float(bias)


class AestheticV25(Aesthetic):
    """How beautiful people find a picture, whatever it shows: about 1 to 10; from 5.5 on its author calls it great.

    It looks at the whole picture, stretched to a square, so that shape does not count.

    Example:
        >>> tower = rewards.load_tower("siglip-so400m-patch14-384.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.AestheticV25(tower, "aesthetic_predictor_v2_5.pth")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes: Aesthetic's, but
        tower: a VisionTower of SigLIP so400m.
    """

    name = "aesthetic V2.5"
    kind = "SigLIP"
    rule = "siglip"
    needs_width = 1152
    sources = ("SigLIP",)
    layers = {
        "scoring_head.0": (1024, 1152), "scoring_head.2": (128, 1024), "scoring_head.4": (64, 128),
        "scoring_head.6": (16, 64), "scoring_head.8": (1, 16),
    }  # fmt: skip
    head_source, head_kind = "Aesthetic V2.5", "aesthetic head (v2.5, for SigLIP)"

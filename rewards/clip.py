"""Rewards that compare pictures with texts or with pictures by a CLIP: cosines of embeddings, in float32.

    HPS          cos(image, prompt), by a ViT-H/14 tuned to people's choices       .24 to .29
    PickScore    exp(logit_scale) cos(image, prompt), likewise                     17 to 24
    CLIPScore    cos(image, prompt), not clamped at 0: no gradient would be left   .2 to .4
    Similarity   cos(image, reference), the mean over several references           .4 to 1
    Directions   cos(image, more) - cos(image, less)                               -.1 to .1

Weights do not tell which of the first three they are for: HPS, PickScore and CLIP ViT-H/14 are one architecture.
Rewards on one file share its tower; `load_tower` sees to that.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from . import weights
from .clip_tower import ClipTower
from .networks import check_tower
from .pictures import rgb
from .prompts import texts_for


class TowerReward:
    """scale * <image, toward>, with the image's embedding at unit length.

    A reward of this kind gives `toward(images, prompts)`, the embeddings (B, width) or (width,) to move towards.

    Attributes:
        tower: a ClipTower, or another that embeds pictures.
        parity: compute what the reference does from 8-bit pixels, for reporting; see `Preprocess`.
        kind: of the tower.
        rule: of Preprocess.
        needs_width: of the embeddings; None: any.
        sources: of `weights.SOURCES`, files that serve.
    """

    differentiable = True
    kind = "CLIP"
    rule = "clip"
    scale = 1.0
    needs_width = None
    sources = ("CLIP ViT-L/14", "CLIP ViT-H/14")

    def __post_init__(self):
        check_tower(self.tower, self.name, [self.kind], self.sources)
        if self.needs_width not in (None, self.tower.width):
            raise ValueError(
                f"{self.name} needs embeddings {self.needs_width} wide, found {self.tower.width} in {self.tower.name}."
                f" Use {weights.known_files(self.sources)}"
            )

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B where they matter."""
        images = rgb(images)  # before prompts are counted against pictures
        toward = self.toward(images, prompts)
        embeds = self.unit_embeds(images, self.parity)
        return self.scale * (embeds * toward.to(embeds.device)).sum(dim=-1).to(images.device)

    def unit_embeds(self, images, parity):
        """Return the embeddings of images at unit length, (B, width)."""
        return F.normalize(self.tower.embed(images, self.rule, parity), dim=-1)


@dataclass(eq=False)
class CLIPScore(TowerReward):
    """cos(image, prompt) of any CLIP.

    Example:
        >>> tower = rewards.load_tower("clip-vit-large-patch14.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.CLIPScore(tower)(images, ["a cat", "a dog"])
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a ClipTower of pictures and texts.
        prompt: for every picture; None takes the prompts the sample map hands over.
        parity: see `TowerReward`.
    """

    tower: ClipTower
    prompt: str | None = None
    parity: bool = False
    name = "CLIPScore"

    def __post_init__(self):
        super().__post_init__()
        self.tower.require_text()

    def toward(self, images, prompts):
        return F.normalize(self.tower.text_embeds(texts_for(self, images, prompts)), dim=-1)


class HPS(CLIPScore):
    """Human Preference Score v2 or v2.1, as the file is: cos(image, prompt) (Wu et al. 2023).

    Example:
        >>> tower = rewards.load_tower("HPS_v2.1_compressed.pt")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.HPS(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes: see `CLIPScore`.
    """

    name = "HPS"
    rule = "hps"
    needs_width = 1024
    sources = ("HPS",)


class PickScore(CLIPScore):
    """exp(logit_scale) cos(image, prompt), about 100 times the cosine (Kirstain et al. 2023).

    Example:
        >>> tower = rewards.load_tower("PickScore_v1.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.PickScore(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes: see `CLIPScore`.
    """

    name = "PickScore"
    needs_width = 1024
    sources = ("PickScore",)

    def __post_init__(self):
        super().__post_init__()
        if self.tower.logit_scale is None or not math.isfinite(self.tower.logit_scale):
            raise ValueError(
                f"the logit_scale of {self.tower.name} is {self.tower.logit_scale}; expected a finite number. Use"
                f" {weights.known_files(self.sources)}"
            )

    @property
    def scale(self):
        return math.exp(self.tower.logit_scale)


@dataclass(eq=False)
class Similarity(TowerReward):
    """How like a reference a picture is: cos(image, reference), the mean over the references.

    Example:
        >>> tower = rewards.load_tower("clip-vit-large-patch14.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.Similarity(tower, images[:1])(images)
        >>> bool(scores[0] > scores[1])
        True

    Attributes:
        tower: a ClipTower; its text tower is not used.
        reference: (R, 3, H, W) or, if gray, (R, 1, H, W), in [0, 1]; of any size.
        parity: see `TowerReward`.
    """

    tower: ClipTower
    reference: torch.Tensor
    parity: bool = False
    name = "similarity"

    def __post_init__(self):
        super().__post_init__()
        if not rgb(self.reference, "reference").isfinite().all():
            raise ValueError("reference holds NaN or infinity; expected finite pictures")

    def toward(self, images, prompts):
        return self._reference

    @cached_property
    def _reference(self):
        with torch.inference_mode(False), torch.no_grad():
            return self.unit_embeds(self.reference, parity=True).mean(dim=0)


@dataclass(eq=False)
class Directions(TowerReward):
    """More like one text, less like another: cos(image, more) - cos(image, less).

    Example:
        >>> tower = rewards.load_tower("clip-vit-large-patch14.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.Directions(tower, more="a watercolour", less="a photo")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a ClipTower of pictures and texts.
        more, less: the texts; an empty one does not count.
        parity: see `TowerReward`.
    """

    tower: ClipTower
    more: str
    less: str = ""
    parity: bool = False
    name = "directions"

    def __post_init__(self):
        super().__post_init__()
        self.tower.require_text()
        self.more, self.less = self.more.strip(), self.less.strip()
        if self.more == self.less:
            raise ValueError(
                f"more and less are both {self.more!r}, so every picture scores 0; expected two texts that differ"
            )
        more, less = self.tower.tokens([self.more, self.less])
        if torch.equal(more, less):
            raise ValueError(
                f"more {self.more!r:.80} and less {self.less!r:.80} are one text to {self.tower.name}, so every picture"
                " scores 0; expected texts that differ otherwise than in capitals, spaces or after 75 tokens"
            )

    def toward(self, images, prompts):
        texts = {text: sign for text, sign in ((self.more, 1), (self.less, -1)) if text}
        embeds = F.normalize(self.tower.text_embeds(list(texts)), dim=-1)
        return (embeds * embeds.new_tensor(list(texts.values()))[:, None]).sum(dim=0)

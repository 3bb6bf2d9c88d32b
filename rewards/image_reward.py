"""ImageReward (Xu et al. 2023) and CycleReward (Bahng et al. 2025), by a BLIP that sees picture and prompt.

    ImageReward    (head - mean) / std, of mean 0 and standard deviation 1 on its authors' pictures    -2 to 2
    CycleReward    head, with GELUs between its layers
"""

from dataclasses import dataclass

from .blip_tower import BlipTower
from .networks import check_tower
from .pictures import rgb
from .prompts import texts_for


@dataclass(frozen=True, eq=False)
class ImageReward:
    """How well a picture shows its prompt and how good it looks, as people judged.

    Example:
        >>> tower = rewards.load_tower("ImageReward.pt")  # and vocab.txt beside it
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.ImageReward(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: a BlipTower of ImageReward's file, of `load_tower`.
        prompt: for every picture; None takes the prompts the sample map hands over.
        parity: compute what the authors' code does from 8-bit pixels, for reporting; see `Preprocess`.
    """

    tower: BlipTower
    prompt: str | None = None
    parity: bool = False
    name = "ImageReward"
    differentiable = True
    mean, std = 0.16717362830052426, 1.0333394966054072

    def __post_init__(self):
        check_tower(self.tower, self.name, [self.name], [self.name])

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        images = rgb(images)  # before prompts are counted against pictures
        scores = self.tower.judge(images, texts_for(self, images, prompts), self.parity)
        return ((scores - self.mean) / self.std).to(images.device)


class CycleReward(ImageReward):
    """How well picture and prompt can each be had back from the other.

    Example:
        >>> tower = rewards.load_tower("CycleReward-Combo.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.CycleReward(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes: ImageReward's.
    """

    name = "CycleReward"
    mean, std = 0.0, 1.0

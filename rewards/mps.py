"""MPS, the Multi-dimensional Preference Score (Zhang et al. 2024): how much people like a picture for its prompt.

    exp(logit_scale) cos(what the picture's patches read of the prompt, prompt)    about 5 to 15

The port that it reads judges overall; the authors have not released the scores for aesthetics, alignment and detail.
"""

from dataclasses import dataclass

from .mps_tower import MpsTower
from .networks import check_tower
from .pictures import rgb
from .prompts import texts_for


@dataclass(frozen=True, eq=False)
class MPS:
    """How much people like a picture for its prompt, by what its patches find of the prompt.

    Example:
        >>> tower = rewards.load_tower("MPS.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.MPS(tower, "a cat")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: an MpsTower.
        prompt: for every picture; None takes the prompts the sample map hands over.
        parity: compute what the authors' code does from 8-bit pixels, for reporting; see `Preprocess`.
    """

    tower: MpsTower
    prompt: str | None = None
    parity: bool = False
    name = "MPS"
    differentiable = True

    def __post_init__(self):
        check_tower(self.tower, self.name, [self.name], [self.name])
        self.tower.require_text()

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        images = rgb(images)  # before prompts are counted against pictures
        return self.tower.judge(images, texts_for(self, images, prompts), self.parity).to(images.device)

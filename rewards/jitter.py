"""A reward that looks at random crops: what fools a tower at one place and size seldom fools it at several."""

from dataclasses import dataclass

import torch

from ..core.scoring import checked, exact, leaf, name_of, remarks
from .preprocess import check_crops, jittered


@dataclass(frozen=True)
class Jittered:
    """The mean of a reward over jittered crops, the same at every call: scores of different iterations compare.

    Takes as long as `crops` pictures instead of one. One crop is judged after another, so that memory stays that of
    one; in a call with gradient, other than by `image_gradient`, it is that of all. Put it around the parts of a
    Combine: of a Combine inside it histories have no parts' scores.

    Example:
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> reward = rewards.Jittered(rewards.Contrast(), crops=3)
        >>> torch.equal(reward(images), reward(images))
        True

    Attributes:
        reward: whose mean is taken.
        crops, seed, scale: as `preprocess.jittered` takes them.
    """

    reward: object
    crops: int = 3
    seed: int = 0
    scale: tuple = (0.8, 1.0)

    def __post_init__(self):
        check_crops(self.crops, self.seed, self.scale)

    @property
    def name(self):
        return f"{name_of(self.reward)} of crops"

    @property
    def differentiable(self):
        return getattr(self.reward, "differentiable", True)

    @property
    def counted(self):
        return (self.reward,)

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        found = (checked(self.reward, self.reward(crop, prompts), crop) for crop in self._crops(images))
        return sum(found) / self.crops

    def image_gradient(self, images, prompts=None):
        """Score and differentiate crop by crop; see `core.scoring.exact`."""
        total, d_images = 0, 0
        with torch.inference_mode(False), torch.enable_grad():
            images = leaf(images)
            for crop in self._crops(images):
                scores, d_crop = exact(self.reward, crop, prompts)
                total = total + scores / self.crops
                d_images = d_images + torch.autograd.grad(crop, images, d_crop / self.crops, retain_graph=True)[0]
        return total, d_images

    def remarks(self, images):
        """Return what the reward has to say of whole pictures."""
        return remarks(self.reward, images)

    def _crops(self, images):
        return jittered(images, self.crops, self.seed, self.scale)

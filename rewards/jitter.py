"""A reward that looks at random crops: what fools a tower at one place and size seldom fools it at several."""

from dataclasses import dataclass

import torch

from ..core.estimators import checked, exact, leaf, name_of
from .preprocess import jittered


@dataclass(frozen=True)
class Jittered:
    """The mean of a reward over jittered crops, the same at every call: scores of different iterations compare.

    Costs as much time as `crops` pictures instead of one. For the gradient one crop is judged after another, so that
    memory stays that of one.

    Attributes:
        reward: whose mean is taken.
        crops, seed, scale: as `preprocess.jittered` takes them.
    """

    reward: object
    crops: int = 3
    seed: int = 0
    scale: tuple = (0.8, 1.0)

    @property
    def name(self):
        return f"{name_of(self.reward)} of crops"

    @property
    def differentiable(self):
        return getattr(self.reward, "differentiable", True)

    @property
    def parts(self):
        return (self.reward,)

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        prompts = None if prompts is None else list(prompts) * self.crops
        crops = jittered(images, self.crops, self.seed, self.scale)
        scores = checked(self.reward, self.reward(crops, prompts), crops)
        return scores.view(self.crops, len(images)).mean(dim=0)

    def image_gradient(self, images, prompts=None):
        """Score and differentiate crop by crop; see `core.estimators.exact`."""
        with torch.inference_mode(False), torch.enable_grad():
            images = leaf(images)
            crops = jittered(images, self.crops, self.seed, self.scale)
            judged = [exact(self.reward, crop, prompts) for crop in crops.chunk(self.crops)]
            scores, d_crops = zip(*judged, strict=True)
            (d_images,) = torch.autograd.grad(crops, images, torch.cat(d_crops) / self.crops)
        return torch.stack(scores).mean(dim=0), d_images

"""Rewards: `reward(images, prompts) -> scores`, higher is better.

images are (B, 3, H, W) RGB, nominally [0, 1] and not clamped; prompts is a list of B strings or None; scores are
(B,), float32 or wider, one a picture. `differentiable` says whether the scores carry a gradient, `name` what
histories and messages call it.

Any callable of this form is a reward, so one of your own needs no class:

    def warmth(images, prompts=None):
        return (images[:, 0] - images[:, 2]).mean(dim=(1, 2))

    core.optimize(sample_map, warmth, noise)
    core.optimize(sample_map, rewards.Combine([warmth, rewards.Contrast()], weights=[1, 0.5]), noise)

It is called by its `__name__` and held to be differentiable; set `warmth.differentiable = False` where its scores carry
no gradient.

One picture's way to its score, and back to the gradient by the picture:

    core.scoring.exact
      Combine.image_gradient        part by part: scores and gradients add up
        Jittered.image_gradient     crop by crop
          TowerReward.__call__      Preprocess -> ClipTower.image_embeds -> a cosine          (HPS, PickScore, ..)
          ImageReward.__call__      BlipTower.judge: Preprocess, both towers, the head
            networks.run            out of and into float32, whatever the network's dtype
"""

from .aesthetic import Aesthetic
from .blip_tower import BlipTower
from .clip import HPS, CLIPScore, Directions, PickScore, Similarity
from .clip_tower import ClipTower
from .combine import Combine, in_parity, typical
from .consistency import Consistency
from .image_reward import CycleReward, ImageReward
from .jitter import Jittered
from .jpeg import JPEG, JPEGProxy
from .pixels import Brightness, ColorTarget, Contrast, Saturation, Sharpness
from .towers import load_tower

__all__ = [
    "HPS",
    "JPEG",
    "Aesthetic",
    "BlipTower",
    "Brightness",
    "CLIPScore",
    "ClipTower",
    "ColorTarget",
    "Combine",
    "Consistency",
    "Contrast",
    "CycleReward",
    "Directions",
    "ImageReward",
    "JPEGProxy",
    "Jittered",
    "PickScore",
    "Saturation",
    "Sharpness",
    "Similarity",
    "in_parity",
    "load_tower",
    "typical",
]

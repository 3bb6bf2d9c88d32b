"""Rewards: `reward(images, prompts) -> scores`, higher is better.

images are (B, 3, H, W) RGB, nominally [0, 1] and not clamped; prompts is a list of B strings or None; scores are
(B,), float32 or wider, one a picture. `differentiable` says whether the scores carry a gradient, `name` what
histories and messages call it. Any callable of this form is a reward.
"""

from .consistency import Consistency
from .jpeg import JPEG, JPEGProxy
from .pixels import Brightness

__all__ = ["JPEG", "Brightness", "Consistency", "JPEGProxy"]

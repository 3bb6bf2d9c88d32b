"""Rewards computed from the pixels alone."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Brightness:
    """The mean pixel in [-1, 1] of each picture, not clamped: the whiteness reward of the paper's Section 5.1.

    Attributes:
        negative: True rewards darkness instead (the paper's blackness).
    """

    negative: bool = False
    differentiable = True

    @property
    def name(self):
        return "blackness" if self.negative else "brightness"

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        dtype = torch.promote_types(images.dtype, torch.float32)
        mean = images.mean(dim=(1, 2, 3), dtype=dtype) * 2 - 1
        return -mean if self.negative else mean

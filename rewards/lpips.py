"""Likeness to a reference as people see it: minus LPIPS (Zhang et al. 2018), place by place.

    distance = sum over layers of the mean over places of  sum_c w_c (f_c / |f| - g_c / |g|)^2         0 to about 1

f and g are what a layer says at a place of the picture and of the reference. The w_c, one a channel and none below 0,
were fitted to what people called more alike; `lpips.safetensors` has those of its authors (version 0.1, BSD-2-Clause,
see NOTICE), 19 kB for all three networks.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.nn import functional as F

from ..core.precision import wide
from .lpips_tower import TAPS, LpipsTower
from .networks import check_tower, slices
from .pictures import rgb
from .preprocess import clamp_through

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pictures in [0, 1]; its authors' shift and scale of pictures in [-1, 1] are the same."""

LEAST = 32
"""Side of the smallest picture that all three networks take."""


@dataclass(eq=False)
class LPIPS:
    """Minus the LPIPS distance to a reference, which is what people would call unlike: 0 is the same picture.

    Example:
        >>> tower = rewards.load_tower("squeezenet1_1-b8a52dc0.pth")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.LPIPS(tower, images[:1])(images)
        >>> bool(scores[0] > -1e-6 > scores[1])
        True

    Attributes:
        tower: an LpipsTower.
        reference: (R, 3, H, W) in [0, 1]; it is resized to the pictures' size. Of several, the mean counts.
    """

    tower: LpipsTower
    reference: torch.Tensor
    name = "LPIPS"
    differentiable = True

    def __post_init__(self):
        check_tower(self.tower, self.name, ["LPIPS"], ["LPIPS"])
        if not rgb(self.reference, "reference").isfinite().all():
            raise ValueError("reference holds NaN or infinity; expected finite pictures")

    @cached_property
    def channel_weights(self):
        """The w_c of each layer, on the CPU."""
        from safetensors.torch import load_file

        with torch.inference_mode(False):  # whoever asks first
            kept = load_file(Path(__file__).with_name("lpips.safetensors"))
        return [kept[f"{self.tower.network}.{number}"] for number in range(len(TAPS[self.tower.network]))]

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1] and 32 x 32 at least."""
        images = clamp_through(rgb(images))
        if min(images.shape[-2:]) < LEAST:
            raise ValueError(f"pictures are {tuple(images.shape[-2:])}; expected {LEAST} x {LEAST} at least")
        return -torch.cat([self._distance(images[rows]) for rows in slices(images)])

    def _distance(self, images):
        """Return the distance (B,) of images to the references."""
        tower = self.tower
        with tower.running(tower.memory(images)) as device:
            dtype = next(tower.module.parameters()).dtype
            found = tower.features(_pixels(images).to(device, dtype))
            total = 0
            for one in self.reference.split(1):
                with torch.no_grad():
                    wanted = tower.features(_pixels(_resized(one, images)).to(device, dtype))
                total = total + _unlike(found, wanted, self.channel_weights)
        return (total / len(self.reference)).to(images.device)


def _pixels(images):
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def _resized(reference, images):
    """Return a reference of the images' size, on their device."""
    reference = rgb(reference.to(images.device)).to(images.dtype).clamp(0, 1)
    if reference.shape[-2:] != images.shape[-2:]:
        reference = F.interpolate(reference, images.shape[-2:], mode="bilinear", antialias=True)
    return reference


def _unlike(found, wanted, channel_weights):
    """Return the distance (B,) between the features of B pictures and of one."""
    distance = 0
    for one, other, counts in zip(found, wanted, channel_weights, strict=True):
        difference = (_unit(one) - _unit(other)) ** 2
        distance = distance + (difference * counts.to(difference).view(-1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
    return distance


def _unit(features):
    """Return what a layer says at each place, at unit length; 0 where it says nothing, with a gradient of 0 there."""
    features = wide(features)
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)

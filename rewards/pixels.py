"""Rewards computed from the pixels alone: brightness, contrast, saturation, a colour, sharpness.

All are per picture, not clamped, and smooth enough to climb; values are as displayed (gamma-encoded), in units of the
nominal range [0, 1]. luma = 0.2126 R + 0.7152 G + 0.0722 B (ITU-R BT.709).
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .pictures import rgb

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue, BT.709."""


@dataclass(frozen=True)
class Brightness:
    """The mean pixel in [-1, 1] of each picture, not clamped: the whiteness reward of the paper's Section 5.1.

    Example:
        >>> rewards.Brightness()(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]))
        tensor([-1.,  1.])

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
        mean = rgb(images).mean(dim=(1, 2, 3)) * 2 - 1
        return -mean if self.negative else mean


@dataclass(frozen=True)
class Contrast:
    """RMS contrast: the standard deviation of the luma over the picture, 0 flat, 0.5 half black and half white.

    A flat picture has no gradient.

    Example:
        >>> half = torch.cat([torch.zeros(1, 3, 4, 8), torch.ones(1, 3, 4, 8)], dim=2)
        >>> round(rewards.Contrast()(half).item(), 3)
        0.5

    Attributes:
        negative: True rewards flat pictures instead.
    """

    negative: bool = False
    differentiable = True

    @property
    def name(self):
        return "flatness" if self.negative else "contrast"

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        contrast = _deviation(luma(images))
        return -contrast if self.negative else contrast


@dataclass(frozen=True)
class Saturation:
    """The mean chroma, max(R, G, B) - min(R, G, B) of each pixel: 0 grey, black or white; 1 pure colours.

    The chroma, not HSV's saturation, which divides by the largest of the three and is mostly noise in dark pixels. A
    grey pixel has no gradient.

    Example:
        >>> gray, red = torch.full((3, 8, 8), 0.5), torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 8, 8)
        >>> rewards.Saturation()(torch.stack([gray, red]))
        tensor([0., 1.])

    Attributes:
        negative: True rewards grey pictures instead.
    """

    negative: bool = False
    differentiable = True

    @property
    def name(self):
        return "greyness" if self.negative else "saturation"

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        images = rgb(images)
        chroma = (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2))
        return -chroma if self.negative else chroma


@dataclass(frozen=True, eq=False)
class ColorTarget:
    """Minus the squared distance |pixel - color|^2 in RGB, averaged over the mask: 0 all that colour, -3 at worst.

    RGB as displayed, in [0, 1]: from black to white the squared distance is 3, from red to orange (1, 0.5, 0) it is
    0.25.

    Example:
        >>> black = torch.zeros(1, 3, 8, 8)
        >>> rewards.ColorTarget((1.0, 0.0, 0.0))(black)
        tensor([-1.])

    Attributes:
        color: red, green, blue in [0, 1].
        mask: (H, W) or (B, H, W) weights, 1 counts and 0 does not; any size, it is resized to the picture. None counts
            every pixel.
    """

    color: tuple = (1.0, 0.0, 0.0)
    mask: torch.Tensor | None = None
    differentiable = True
    name = "colour target"

    def __post_init__(self):
        if len(self.color) != 3 or not all(0 <= value <= 1 for value in self.color):
            raise ValueError(f"color is {self.color}; expected red, green and blue in [0, 1]")
        if self.mask is None:
            return
        if self.mask.ndim not in (2, 3):
            raise ValueError(f"mask is {tuple(self.mask.shape)}; expected (H, W) or (B, H, W)")
        if not (self.mask.isfinite() & (self.mask >= 0)).all():
            raise ValueError("mask holds values below 0, NaN or infinity; expected weights of 0 or more")

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; a mask's batch is repeated to fill theirs."""
        images = rgb(images)
        distance = (images - images.new_tensor(self.color).view(3, 1, 1)).square().sum(dim=1)
        if self.mask is None:
            return -distance.mean(dim=(1, 2))
        weights = self._weights(distance)
        return -(distance * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))

    def _weights(self, like):
        """Return the mask as (B, H, W) of `like`; candidates come as many times the mask's batch, candidate-major."""
        mask = (self.mask if self.mask.ndim == 3 else self.mask[None]).to(like)
        if len(like) % len(mask):
            raise ValueError(f"mask has {len(mask)} pictures, the batch {len(like)}; expected one mask, or one each")
        mask = F.interpolate(mask[:, None], size=like.shape[1:], mode="bilinear", antialias=True)[:, 0]
        if not (mask.sum(dim=(1, 2)) > 0).all():
            raise ValueError("mask is empty; expected at least one pixel above 0 in the mask of every picture")
        return mask.repeat(len(like) // len(mask), 1, 1)


@dataclass(frozen=True)
class Sharpness:
    """The standard deviation of the luma's Laplacian (four neighbours less four times the pixel; inner pixels only).

    Its square is the usual "variance of Laplacian", times 255^2 where pixels are in [0, 255]. 0 is flat or an even
    slope, 4 a checkerboard of single black and white pixels; one photograph had 0.13 at 512 x 512 pixels and 0.26 at
    128 x 128. Grain scores high too, so watch the pictures. A picture without any edge has no gradient.

    Example:
        >>> checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 1.0
        >>> flat = torch.zeros(3, 8, 8)
        >>> found = rewards.Sharpness()(torch.stack([flat, checks.expand(3, 8, 8)]))
        >>> bool(found[0] == 0 and found[1] > 1)
        True

    Attributes:
        negative: True rewards blur instead.
    """

    negative: bool = False
    differentiable = True

    @property
    def name(self):
        return "blur" if self.negative else "sharpness"

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1], 3 x 3 pixels or more."""
        plane = luma(images)
        if min(plane.shape[1:]) < 3:
            raise ValueError(f"images are {tuple(images.shape)}; {self.name} expects 3 x 3 pixels or more")
        across = plane[:, 1:-1, :-2] + plane[:, 1:-1, 2:]
        down = plane[:, :-2, 1:-1] + plane[:, 2:, 1:-1]
        sharpness = _deviation(across + down - 4 * plane[:, 1:-1, 1:-1])
        return -sharpness if self.negative else sharpness


def luma(images):
    """Return how light each pixel of pictures (B, 3, H, W) is, (B, H, W), float32 or wider."""
    images = rgb(images)
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(dim=1)


def _deviation(planes):
    """Return the standard deviation of each plane (B, H, W) over its pixels, with gradient 0 where it is 0."""
    flat = planes.flatten(1)
    return torch.linalg.vector_norm(flat - flat.mean(dim=1, keepdim=True), dim=1) / flat.shape[1] ** 0.5

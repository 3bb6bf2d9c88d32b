"""From pictures of any size to the square that a vision tower was trained on: resize, crop or pad, normalise.

Two modes, both differentiable. Smooth, for optimising: antialiased bicubic in float. Parity, for reporting: what the
references compute from a file of 8-bit pixels, Pillow's resizing included, which goes over the width, rounds to whole
levels, then over the height and rounds again; gradients go straight through the rounding.

    rule      side of `size`   other side      then
    "clip"    shortest         rounded down    crop from (length - size) // 2        CLIP in transformers, PickScore
    "laion"   shortest         rounded down    crop from round((length - size) / 2)  LAION, ImageReward (torchvision)
    "hps"     longest          rounded         black, (size - length) // 2 before    HPS v2 and v2.1
    "dinov2"  shortest: 8/7    rounded down    crop from (length - size) // 2        DINOv2: to 256, of that 224
    "siglip"  both             stretched       nothing                               SigLIP

round is Python's, halves to even: the two crops are a pixel apart where length - size is 3, 7, 11 and so on. HPS
resizes floats: it rounds only the file's own pixels, and leaves the slight overshoot of the bicubic filter.
"""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch.nn import functional as F

from .pictures import rgb

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue of CLIP's training pictures, in [0, 1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

NORMALISED_BY = {
    "clip": (OPENAI_MEAN, OPENAI_STD),
    "laion": (OPENAI_MEAN, OPENAI_STD),
    "hps": (OPENAI_MEAN, OPENAI_STD),
    "dinov2": (IMAGENET_MEAN, IMAGENET_STD),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Rule -> mean and standard deviation, red, green and blue."""


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop or pad, and normalise, as the table at the top of the module says.

    Attributes:
        size: side of the square, pixels.
        rule: of the table.
    """

    size: int = 224
    rule: str = "clip"

    def __post_init__(self):
        if self.rule not in NORMALISED_BY:
            raise ValueError(f"rule is {self.rule!r}; expected one of {', '.join(map(repr, NORMALISED_BY))}")

    def __call__(self, images, parity=False):
        """Return the tower's pixels, (B, 3, size, size), float32 or wider.

        Args:
            images: (B, 3, H, W), nominally [0, 1], as `rgb` takes them; values outside count as 0 or 1 and keep their
                gradient.
            parity: True computes what the references do from 8-bit pixels; False is smooth.
        """
        levels = rgb(images) * 255
        levels = _rounded(levels) if parity else _clamped(levels)
        height, width = self.resized(*images.shape[-2:])
        if self.rule == "hps":
            square = self._padded(_bicubic(levels, height, width))
        elif parity:
            levels = _rounded(_bicubic(levels, images.shape[-2], width))
            square = self._cropped(_rounded(_bicubic(levels, height, width)))
        else:
            square = self._cropped(_clamped(_bicubic(levels, height, width)))
        mean, std = (square.new_tensor(values).view(3, 1, 1) for values in NORMALISED_BY[self.rule])
        return (square / 255 - mean) / std

    def resized(self, height, width):
        """Return the height and width that a picture is resized to, before it is cropped or padded."""
        if self.rule == "hps":
            scale = self.size / max(height, width)
            return tuple(max(round(side * scale), 1) for side in (height, width))
        if self.rule == "siglip":
            return self.size, self.size
        size = self.size * 8 // 7 if self.rule == "dinov2" else self.size
        shortest = min(height, width)
        return tuple(size * side // shortest for side in (height, width))

    def _cropped(self, images):
        half = (lambda extra: round(extra / 2)) if self.rule == "laion" else (lambda extra: extra // 2)
        top, left = (half(side - self.size) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]

    def _padded(self, images):
        below, right = (self.size - side for side in images.shape[-2:])
        return F.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))


def clamp_through(images):
    """Return the values clamped to [0, 1] with the gradient of the identity: a pixel outside can still come back."""
    return _through(images.clamp(0, 1), images)


def jittered(images, crops, seed, scale=(0.8, 1.0)):
    """Yield random crops, resized to the pictures' own size: a tower that sees several is fooled less easily.

    Every picture of the batch gets the same crops; they depend on the seed and the pictures' size only.

    Args:
        images: (B, 3, H, W), nominally [0, 1]; values outside are clamped and keep their gradient.
        crops: number of crops of each picture.
        seed: of the crops' sizes and places; draw anew by another seed.
        scale: least and greatest side of a crop, in sides of the picture, 0 < least <= greatest <= 1.

    Yields:
        (B, 3, H, W), `crops` times. Differentiable.
    """
    check_crops(crops, seed, scale)
    least, greatest = scale
    images = clamp_through(rgb(images))
    height, width = images.shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand((crops, 3), generator=generator, dtype=torch.float64, device="cpu")
    for side, down, across in places.tolist():
        side = least + (greatest - least) * side
        h, w = max(round(side * height), 1), max(round(side * width), 1)
        top, left = round(down * (height - h)), round(across * (width - w))
        yield _bicubic(images[..., top : top + h, left : left + w], height, width)


def check_crops(crops, seed, scale):
    """Raise ValueError unless `jittered` takes these settings."""
    if not isinstance(crops, Integral) or crops < 1 or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"found {crops} crops of scale {scale}; expected 1 or more, and 0 < least <= greatest <= 1")
    if not isinstance(seed, Integral):
        raise ValueError(f"seed is {seed!r}; expected a whole number")


def _bicubic(images, height, width):
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def _clamped(levels):
    return _through(levels.clamp(0, 255), levels)


def _rounded(levels):
    # Halves go up, as in Pillow; its filter at a scale of 2 makes many, and they are exact in units of levels.
    return _through((levels + 0.5).floor().clamp(0, 255), levels)


def _through(values, images):
    """Return exactly `values`, with the gradient going to `images` as if they were those."""
    return values.detach() + (images - images.detach())

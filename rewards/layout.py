"""Rewards of how a picture is laid out and of its colours as a whole: a palette, a symmetry, the shapes of a reference.

None needs a network or a file. A palette is compared wherever its colours stand; shapes are compared where they stand.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn import functional as F

from ..core.precision import exactly
from .pictures import rgb
from .pixels import luma

DIRECTIONS = 32
"""Along so many directions of RGB are two palettes compared."""
COLORS, COLORS_AT = 4096, 128
"""So many colours are compared of one picture, in their order, as it is at so many pixels along the shorter side."""
SIDE = 64
"""The pictures' shapes are compared at so many pixels along the shorter side."""
SCALES = (1, 2, 4)
"""Edges are looked for in the picture at `SIDE`, and in it at a half and a quarter of that."""
AXES = {"left-right": (-1,), "top-bottom": (-2,), "half turn": (-2, -1)}
"""Symmetry -> the dimensions that are turned round."""


@dataclass(eq=False)
class Palette:
    """How near the picture's colours are to a reference's: 0 the same ones, in the same shares, and below 0 all else.

    Minus the sliced Wasserstein distance of the two clouds of pixels in RGB: along each of 32 directions the colours of
    both are put in order, and the mean difference of the one to the other is taken, in units of [0, 1]. From a gray
    picture to its neighbour 0.1 brighter it is -0.09; from photograph to photograph -0.05 to -0.2 is usual. Where the
    colours stand makes no difference.

    Example:
        >>> red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
        >>> left = torch.stack([red, red, blue, blue]).T.view(1, 3, 1, 4)
        >>> found = rewards.Palette(left)(torch.cat([left.flip(3), left * 0 + 0.5]))
        >>> found[0].abs() < 1e-6, found[1] < -0.2
        (tensor(True), tensor(True))

    Attributes:
        reference: (R, 3, H, W) or, if gray, (R, 1, H, W), in [0, 1], of any size; the pixels of all count alike.
    """

    reference: torch.Tensor
    differentiable = True
    name = "palette"

    def __post_init__(self):
        _check_reference(self.reference)

    @exactly
    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        found = _quantiles(rgb(images))
        return -(found - self._quantiles.to(found)).abs().mean(dim=(1, 2))

    @cached_property
    def _quantiles(self):
        with torch.inference_mode(False), torch.no_grad():
            in_a_row = rgb(self.reference).movedim(0, 2).flatten(2)  # (3, H, R W): the references side by side
            return _quantiles(in_a_row[None])


@dataclass(frozen=True)
class Symmetry:
    """How like its own mirror image a picture is: 1 exactly, 0 not at all, -1 its negative.

    The correlation of the picture with itself turned round: of red, green and blue, each less its own mean. So a flat
    picture has none, and no gradient.

    Example:
        >>> ramp = torch.linspace(0, 1, 8).expand(1, 3, 8, 8)  # from left to right
        >>> rewards.Symmetry("left-right")(ramp).round(), rewards.Symmetry("top-bottom")(ramp).round()
        (tensor([-1.]), tensor([1.]))

    Attributes:
        about: "left-right" (mirrored as a face is), "top-bottom" (as by water), or "half turn" (as a playing card).
        negative: True rewards pictures that are not like their mirror images.
    """

    about: str = "left-right"
    negative: bool = False
    differentiable = True

    def __post_init__(self):
        if self.about not in AXES:
            raise ValueError(f"unknown symmetry {self.about!r}; expected one of {', '.join(map(repr, AXES))}")

    @property
    def name(self):
        return "asymmetry" if self.negative else "symmetry"

    @exactly
    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        images = rgb(images)
        found = _correlation(images, images.flip(AXES[self.about]))
        return -found if self.negative else found


@dataclass(eq=False)
class Layout:
    """How well the picture is laid out as a reference is: 1 alike, 0 not at all, -1 its opposite.

    "edges" correlates where edges are, at three scales, whatever their colours are: a drawing, a photograph or a map of
    edges may be the reference. "light" correlates what is light and what is dark, coarsely; of a depth map what is near
    (white) should be lit. Both are compared at 64 pixels along the shorter side, so that fine detail is free.

    Example:
        >>> left, right = torch.zeros(2, 1, 3, 64, 64)
        >>> left[..., :32], right[..., 32:] = 1, 1
        >>> rewards.Layout(left, by="light")(right).round(), rewards.Layout(left, by="edges")(right).round()
        (tensor([-1.]), tensor([1.]))

    Attributes:
        reference: (1, 3, H, W), or one for each picture of the batch, or if gray (.., 1, H, W), in [0, 1]; of any size,
            stretched to the picture's shape.
        by: "edges" or "light".
    """

    reference: torch.Tensor
    by: str = "edges"
    differentiable = True

    def __post_init__(self):
        _check_reference(self.reference)
        if self.by not in ("edges", "light"):
            raise ValueError(f"by is {self.by!r}; expected 'edges' or 'light'")

    @property
    def name(self):
        return f"layout by {self.by}"

    @exactly
    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), as many as references or a multiple, candidate-major."""
        images = rgb(images)
        if len(images) % len(self.reference):
            raise ValueError(
                f"reference has {len(self.reference)} pictures, the batch {len(images)}; expected one, or one each"
            )
        sides = _shrunk(images.shape[2:], SIDE, SCALES[-1])
        theirs = _resized(rgb(self.reference.to(images)), sides)
        maps = [self._maps(pictures) for pictures in (_resized(images, sides), theirs)]
        times = len(images) // len(self.reference)
        found = [_correlation(ours, their.repeat(times, 1, 1)) for ours, their in zip(*maps, strict=True)]
        return torch.stack(found).mean(dim=0)

    def _maps(self, pictures):
        """Return what is compared of pictures (B, 3, h, w), a list of (B, ..) maps."""
        planes = luma(pictures)[:, None]
        scaled = [F.avg_pool2d(planes, scale) for scale in SCALES]
        return [scaled[-1][:, 0]] if self.by == "light" else [_edges(each)[:, 0] for each in scaled]


def _check_reference(reference):
    if not rgb(reference, "reference").isfinite().all():
        raise ValueError("reference holds NaN or infinity; expected finite pictures")


def _quantiles(images):
    """Return the colours of pictures (B, 3, H, W) along each direction, in order, (B, DIRECTIONS, COLORS)."""
    pixels = _resized(images, _shrunk(images.shape[2:], COLORS_AT)).flatten(2)
    along = torch.einsum("dc,bcn->bdn", _directions().to(images), pixels).sort(dim=-1).values
    return F.adaptive_avg_pool1d(along, COLORS) if along.shape[-1] > COLORS else _repeated(along)


def _repeated(along):
    """Return (.., n) numbers in order as COLORS, each about as often as the others."""
    place = torch.arange(COLORS, device=along.device) * along.shape[-1] // COLORS
    return along.index_select(-1, place)


def _directions():
    """Return (DIRECTIONS, 3) unit vectors, evenly over the half sphere: a Fibonacci lattice, the same for ever."""
    place = torch.arange(DIRECTIONS, dtype=torch.float64, device="cpu") + 0.5
    height = place / DIRECTIONS
    angle = torch.pi * (1 + 5**0.5) * place
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], dim=1).float()


def _correlation(a, b):
    """Return the correlation (B,) of a with b, (B, h, w) or each channel less its own mean (B, C, h, w); 0 if flat."""
    a, b = ((each - each.mean(dim=(-2, -1), keepdim=True)).flatten(1) for each in (a, b))
    length = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / length.clamp(min=1e-6)


def _edges(planes):
    """Return how steep planes (B, 1, h, w) are, by Sobel's filter, smooth where they are flat."""
    down = planes.new_tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]) / 8
    filters = torch.stack([down, down.T])[:, None]
    slopes = F.conv2d(F.pad(planes, (1, 1, 1, 1), mode="replicate"), filters)
    return (slopes.square().sum(dim=1, keepdim=True) + 1e-6).sqrt()


def _shrunk(sides, shorter, multiple=1):
    """Return (height, width) with the shorter side at `shorter`, or as it is where it is less; in whole multiples."""
    scale = min(shorter / min(sides), 1)
    return tuple(max(round(side * scale / multiple), 1) * multiple for side in sides)


def _resized(images, sides):
    return F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)

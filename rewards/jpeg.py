"""How small or large a picture is as a JPEG file: the paper's non-differentiable reward, and a differentiable proxy."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..core.precision import outside_autocast
from .pictures import rgb

QUALITY = 95


@dataclass(frozen=True)
class JPEG:
    """Minus the size in kilobytes of the picture as a JPEG file, quality 95 (Black et al. 2023); not differentiable.

    Example:
        >>> flat, noise = torch.zeros(3, 64, 64), torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> plain, busy = rewards.JPEG()(torch.stack([flat, noise])).tolist()
        >>> busy < plain < 0
        True

    Attributes:
        incompressible: True rewards large files instead.
    """

    incompressible: bool = False
    differentiable = False
    stand_in = "the differentiable proxy (`proxy` of the JPEG Reward node; in Python JPEGProxy)"

    @property
    def name(self):
        return "jpeg incompressibility" if self.incompressible else "jpeg compressibility"

    def __call__(self, images, prompts=None):
        """Return (B,) scores in units of 1000 bytes of images (B, 3, H, W), nominally [0, 1], clamped and rounded."""
        images = rgb(images.detach())
        pixels = (images.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
        sizes = [_file_size(picture) / 1000 for picture in pixels]
        sizes = torch.tensor(sizes, dtype=torch.float32, device=images.device)
        sizes = sizes.masked_fill(images[:, 0, 0, 0].isnan(), torch.nan)  # eight bits hold no NaN
        return sizes if self.incompressible else -sizes


@dataclass(frozen=True)
class JPEGProxy:
    """A smooth stand-in for `JPEG`: bits of the quantised coefficients as sum of log2(1 + (c / eps)^2), eps = 0.25.

    The coefficients are those of JPEG itself: YCbCr, 4:2:0, 8 x 8 DCT over the tables of quality 95, DC as differences.
    Scores are in arbitrary units of the same order as kilobytes; their order is that of real sizes.

    Example:
        >>> flat, noise = torch.zeros(3, 64, 64), torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> plain, busy = rewards.JPEGProxy()(torch.stack([flat, noise])).tolist()
        >>> busy < plain
        True

    Attributes:
        incompressible: True rewards large files instead.
    """

    incompressible: bool = False
    differentiable = True

    @property
    def name(self):
        return "jpeg proxy (incompressibility)" if self.incompressible else "jpeg proxy"

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        levels = rgb(images) * 255
        with outside_autocast(levels.device.type):
            bits = sum(_bits(plane, table) for plane, table in zip(_planes(levels), _tables(), strict=True))
        size = bits / 8 / 1000
        return size if self.incompressible else -size


def _file_size(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell()


def _planes(rgb):
    """Return luma (B, H, W) and the two chroma planes at half size, centred on 0."""
    r, g, b = rgb.unbind(dim=1)
    y = 0.299 * r + 0.587 * g + 0.114 * b - 128
    cb, cr = 0.564 * (b - y - 128), 0.713 * (r - y - 128)
    chroma = torch.nn.functional.avg_pool2d(torch.stack([cb, cr], dim=1), 2, ceil_mode=True)
    return y, chroma[:, 0], chroma[:, 1]


def _bits(plane, table, eps=0.25):
    height, width = plane.shape[-2:]
    padding = (0, -width % 8, 0, -height % 8)
    plane = torch.nn.functional.pad(plane[:, None], padding, mode="replicate")[:, 0]
    blocks = plane.unfold(1, 8, 8).unfold(2, 8, 8)
    dct, table = _dct(plane), table.to(plane)
    coefficients = dct @ blocks @ dct.T / table
    bits = torch.log2(1 + (coefficients / eps).square())
    dc = coefficients[..., 0, 0].flatten(1)
    steps = torch.log2(1 + (dc.diff(dim=1) / eps).square()).sum(dim=1)
    return (bits.sum(dim=(1, 2, 3, 4)) - bits[..., 0, 0].sum(dim=(1, 2)) + steps) / 2


def _dct(like):
    i = torch.arange(8, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi * (2 * i[None] + 1) * i[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)


def _tables():
    """Return the quantisation tables of luma and the chroma planes, (8, 8), as Pillow writes them at this quality."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="JPEG", quality=QUALITY)
    tables = Image.open(buffer).quantization
    luma, chroma = (torch.tensor(tables[index], dtype=torch.float64, device="cpu").view(8, 8) for index in (0, 1))
    return luma, chroma, chroma

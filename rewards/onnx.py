"""Any image network in an ONNX file as a reward: how it sees pictures, and what of its outputs is the score.

    images --OnnxPixels--> pixels --OnnxTower--> outputs --ONNX: one output, activation, one class--> scores

What a file does not say, its author does: the size and the range of its pixels, and which number means what.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from .networks import check_tower, slices
from .onnx_tower import OnnxTower
from .pictures import rgb
from .preprocess import clamp_through

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue, in [0, 1]: what torchvision's and timm's networks are trained with."""

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in Pillow's and OpenCV's gray (BT.601)."""

CHANNELS = ("RGB", "BGR", "gray")
FITS = ("stretch", "crop")
LAYOUTS = ("auto", "NCHW", "NHWC")


@dataclass(frozen=True)
class OnnxPixels:
    """How a network sees pictures: resized, cropped, scaled, its channels in order.

    A pixel in [0, 1] becomes (scale * pixel - mean) / std. Pictures are resized by antialiased bilinear
    interpolation, as Pillow and torchvision do it.

    Example:
        >>> pixels = rewards.OnnxPixels(size=4, mean=(0,), std=(1,), scale=255, channels="BGR", layout="NHWC")
        >>> red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        >>> pixels(red)[0, 0, 0]
        tensor([  0.,   0., 255.])

    Attributes:
        size: of the pixels, one number for a square, or (height, width); None is the file's own.
        fit: "stretch" makes a picture of another shape fit; "crop" cuts what is beyond the middle off it.
        kept: share of each side that is kept: 0.875 resizes to 256 and cuts the middle 224 out.
        mean, std: one number for all channels or one for each, in the order of `channels`, in units of `scale`.
        scale: 1 for pixels in [0, 1], 255 for levels.
        channels: one of `CHANNELS`.
        layout: "NCHW", "NHWC", or "auto", which looks where the file has the channels.
    """

    size: int | tuple | None = None
    fit: str = "stretch"
    kept: float = 1.0
    mean: tuple = IMAGENET_MEAN
    std: tuple = IMAGENET_STD
    scale: float = 1.0
    channels: str = "RGB"
    layout: str = "auto"

    def __post_init__(self):
        for name, value, allowed in (
            ("fit", self.fit, FITS), ("channels", self.channels, CHANNELS), ("layout", self.layout, LAYOUTS),
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept is {self.kept}; expected more than 0 and at most 1, the whole picture")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.depth):
                raise ValueError(
                    f"{name} has {len(values)} numbers; expected 1, or {self.depth} for {self.channels} pixels"
                )
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} is {values}; expected finite numbers")
        if 0 in self.std or self.scale == 0:
            raise ValueError(f"std is {self.std} and scale {self.scale}; expected other numbers than 0")

    @property
    def depth(self):
        """Number of channels."""
        return 1 if self.channels == "gray" else 3

    def __call__(self, images):
        """Return the network's pixels of images (B, 3, H, W), nominally [0, 1]: differentiable.

        Values outside [0, 1] count as 0 or 1 and keep their gradient.
        """
        pixels = self._resized(clamp_through(images))
        if self.channels == "gray":
            pixels = (pixels * pixels.new_tensor(GRAY).view(3, 1, 1)).sum(dim=1, keepdim=True)
        elif self.channels == "BGR":
            pixels = pixels.flip(1)
        mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (pixels * self.scale - mean) / std
        return pixels.movedim(1, -1) if self.layout == "NHWC" else pixels

    def _resized(self, images):
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        whole = [round(side / self.kept) for side in size]
        if self.fit == "crop":
            scale = max(side / have for side, have in zip(whole, images.shape[-2:], strict=True))
            whole = [max(round(have * scale), side) for side, have in zip(whole, images.shape[-2:], strict=True)]
        images = F.interpolate(images, size=whole, mode="bilinear", antialias=True, align_corners=False)
        top, left = ((have - side) // 2 for have, side in zip(whole, size, strict=True))
        return images[..., top : top + size[0], left : left + size[1]]


def _logarithm(found):
    return found.clamp(min=torch.finfo(found.dtype).tiny).log()


ACTIVATIONS = {
    "none": lambda found: found,
    "softmax": lambda found: found.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "log": _logarithm,
}
"""What is done to the output (B, classes, ..) before a class is taken: "log" is for files that end in a probability,
whose gradient is all but 0 where it is near 0 or 1."""


@dataclass(eq=False)
class ONNX:
    """The number that an image network in an ONNX file gives.

    Example:
        >>> tower = rewards.load_tower("scorer.onnx")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.ONNX(tower, class_index=1, activation="softmax")(images)
        >>> scores.shape
        torch.Size([2])

    Attributes:
        tower: an OnnxTower, of a network that takes pictures alone.
        pixels: how it sees them.
        output: name or number of the output that counts.
        class_index: which number of the output (B, classes, ..); where places follow, as in a map, their mean. None is
            the mean rating, sum k p_k with k = 1, 2, .., of networks that give a probability p_k for each rating.
        activation: one of `ACTIVATIONS`.
        negative: True rewards low numbers instead.
        differentiable: whether the number has a gradient by the picture.
    """

    tower: OnnxTower
    pixels: OnnxPixels = field(default_factory=OnnxPixels)
    output: int | str = 0
    class_index: int | None = 0
    activation: str = "none"
    negative: bool = False

    def __post_init__(self):
        check_tower(self.tower, "ONNX", ["ONNX"], ["ONNX"])
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        self.pixels = _fitting(self.pixels, self.tower)
        self._output = _output_of(self.output, self.tower)
        self._try()

    @property
    def name(self):
        stem = Path(self.tower.name).stem
        return f"not {stem}" if self.negative else stem

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]."""
        images = rgb(images)
        scores = self._number(self.found(images)).to(images.device)
        # A network may say which is the largest, and then NaN is lost on the way.
        scores = torch.where(images.isfinite().flatten(1).all(dim=1), scores, torch.nan)
        return -scores if self.negative else scores

    def found(self, images):
        """Return the output that counts, (B, classes, ..), of pictures as `rgb` gives them, on the network's device."""
        parts = images.split(1) if self._one_by_one else [images[rows] for rows in slices(images)]
        return torch.cat([self._found(self.pixels(part)) for part in parts])

    def _found(self, pixels):
        memory = self._with_graph if pixels.requires_grad else self._without_graph
        with self.tower.running(len(pixels) * memory) as device:
            return self.tower.module(pixels.to(device, self.tower.dtype))[self._output]

    def _number(self, found):
        """Return (B,) of the output (B, classes, ..)."""
        found = found if found.is_floating_point() else found.to(torch.float32)  # numbers of classes, say
        found = ACTIVATIONS[self.activation](found[:, None] if found.ndim == 1 else found)
        found = found.flatten(2).mean(dim=2) if found.ndim > 2 else found
        if self.class_index is None:
            return found @ torch.arange(1, found.shape[1] + 1, dtype=found.dtype, device=found.device)
        return found[:, self.class_index]

    def _try(self):
        """See that the network takes such pixels, one at a time or several, and that its output is as said."""
        tower, number = self.tower, self._output
        found, sizes = tower.tried(self._shape(1))
        shape = tuple(found[number].shape)
        if not shape or shape[0] != 1:
            raise ValueError(
                f"the output {tower.outputs[number]!r} of {tower.name} is {shape} for one picture; expected one row a"
                f" picture, (1, ..). Its outputs are {', '.join(tower.outputs)}"
            )
        classes = shape[1] if len(shape) > 1 else 1
        if self.class_index is not None and not 0 <= self.class_index < classes:
            raise ValueError(
                f"class_index is {self.class_index}; expected 0 to {classes - 1}, since the output of {tower.name} is"
                f" {shape} for one picture"
            )
        if self.activation == "softmax" and classes == 1:
            raise ValueError(
                f"activation is softmax, but the output of {tower.name} is {shape} for one picture: the softmax of one"
                " number is 1 whatever it is; expected none or sigmoid"
            )
        self.differentiable = found[number].requires_grad
        self._with_graph, self._without_graph = sum(sizes), 3 * max(sizes)
        self._one_by_one = not self._takes(2)

    def _takes(self, count):
        """Return whether the network judges so many pictures in one call."""
        if self.tower.inputs[0].shape[0] not in (None, count):
            return False
        try:
            found, _ = self.tower.tried(self._shape(count))
        except ValueError:  # a reshape to one picture, for example, though the file says any number
            return False
        return found[self._output].shape[:1] == (count,)

    def _shape(self, count):
        size, depth = self.pixels.size, self.pixels.depth
        return (count, *size, depth) if self.pixels.layout == "NHWC" else (count, depth, *size)


def _fitting(pixels, tower):
    """Return the pixels with what the file says of them; ValueError where it says something else."""
    inputs = tower.inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].dtype != tower.dtype:
        found = ", ".join(f"{one.name} {one.shape} of {one.dtype}" for one in inputs)
        raise ValueError(
            f"{tower.name} takes {found}; expected one input, pictures (B, 3, H, W) or (B, H, W, 3) of floats. Export"
            " the image network alone"
        )
    batch, *shape = inputs[0].shape
    if batch not in (None, 1):
        raise ValueError(f"{tower.name} takes {batch} pictures at a time; expected 1, or any number. Export it so")
    layout = pixels.layout
    if layout == "auto":
        layout = "NHWC" if shape[2] in (1, 3) and shape[0] not in (1, 3) else "NCHW"
    depth, own = (shape[2], shape[:2]) if layout == "NHWC" else (shape[0], shape[1:])
    if depth not in (None, pixels.depth):
        raise ValueError(
            f"{tower.name} takes {inputs[0].shape}, which in the layout {layout} is {depth} channels; expected"
            f" {pixels.depth} for {pixels.channels} pixels. Set channels or layout"
        )
    size = pixels.size if pixels.size is not None else own
    size = (size, size) if isinstance(size, int) else tuple(size)
    if None in size:
        raise ValueError(f"{tower.name} takes pictures of any size; set size to the one that it was trained with")
    if any(side not in (None, wanted) for side, wanted in zip(own, size, strict=True)):
        raise ValueError(f"size is {size}; expected {tuple(own)}, the only one that {tower.name} takes")
    return replace(pixels, size=size, layout=layout)


def _output_of(output, tower):
    """Return the number of an output that is named or numbered."""
    names = tower.outputs
    if str(output) in names:  # files of older PyTorch name their outputs by numbers
        return names.index(str(output))
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    raise ValueError(f"output is {output!r}; expected 0 to {len(names) - 1}, or one of {', '.join(names)}")

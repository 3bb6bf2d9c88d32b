"""The tower of LPIPS: the convolutions of a network that was trained to name what pictures show, and what each says.

    pixels (B, 3, H, W) --layers--> features (B, C, h, w) after some of the ReLUs, from edges to parts of things

The networks are AlexNet (Krizhevsky et al. 2012), VGG16 (Simonyan and Zisserman 2015) and SqueezeNet 1.1 (Iandola et
al. 2016) as torchvision has them, of whose files the convolutions alone are read.
"""

import torch
from torch import nn

from . import weights
from .networks import Tower, build

TAPS = {
    "AlexNet": (1, 4, 7, 9, 11),
    "VGG16": (3, 8, 15, 22, 29),
    "SqueezeNet": (1, 4, 7, 9, 10, 11, 12),
}
"""Network -> places of the layers whose outputs count."""

HELD = {"AlexNet": 60, "VGG16": 880, "SqueezeNet": 195}
"""Numbers that a pixel takes beside the weights, its reference's and gradient included: a fifth more than measured."""


class LpipsTower(Tower):
    """A network whose features LPIPS compares.

    Example:
        >>> tower = rewards.load_tower("squeezenet1_1-b8a52dc0.pth")
        >>> type(tower).__name__, tower.network
        ('LpipsTower', 'SqueezeNet')

    Attributes: Tower's, and
        network: which of `TAPS`.
    """

    def __init__(self, state, name, device, dtype):
        """Build the network.

        Args:
            state: weights as `weights.read` gives them, torchvision's AlexNet, VGG16 or SqueezeNet 1.1.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            ValueError: the weights are another model's or incomplete.
        """
        weights.check_kind(state, name, *weights.LPIPS_KINDS)
        super().__init__(name, "LPIPS")
        self.network = weights.kind_of(state)
        prefix = "features."
        layers = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self.module = build(lambda state: LAYERS[self.network](), layers, self.network, name, device, dtype)

    def features(self, pixels):
        """Return the list of what the layers of `TAPS` say, (B, C, h, w) each, of pixels on the module's device."""
        found, taps = [], TAPS[self.network]
        for place, layer in enumerate(self.module[: taps[-1] + 1]):
            pixels = layer(pixels)
            if place in taps:
                found.append(pixels)
        return found

    def memory(self, images):
        """Return the bytes that comparing images (B, 3, H, W) with a reference takes, with gradient."""
        return HELD[self.network] * images[:, 0].numel() * images.element_size()


def _alexnet():
    widths = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
    layers = []
    for place, (inner, outer, side) in enumerate(widths):
        stride, padding = (4, 2) if place == 0 else (1, side // 2)
        layers += [nn.Conv2d(inner, outer, side, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if place in (0, 1, 4) else []
    return nn.Sequential(*layers)


def _vgg16():
    layers, inner = [], 3
    for outer, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU()]
            inner = outer
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


def _squeezenet():
    layers, inner = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU()], 64
    for place, width in enumerate((16, 16, 32, 32, 48, 48, 64, 64)):
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True)] if place in (0, 2, 4) else []
        layers.append(_Fire(inner, width))
        inner = 8 * width
    return nn.Sequential(*layers)


class _Fire(nn.Module):
    """A layer of SqueezeNet: few channels, of which many are made by two convolutions side by side."""

    def __init__(self, inner, width):
        super().__init__()
        self.squeeze, self.expand1x1 = nn.Conv2d(inner, width, 1), nn.Conv2d(width, 4 * width, 1)
        self.expand3x3 = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1).relu()


LAYERS = {"AlexNet": _alexnet, "VGG16": _vgg16, "SqueezeNet": _squeezenet}

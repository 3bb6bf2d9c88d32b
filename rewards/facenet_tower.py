"""FaceNet's network, by facenet-pytorch's files: from a face of 160 x 160 pixels to 512 numbers that say whose it is.

    pixels -> stem -> 5 blocks of 35 x 35 cells -> 10 of 17 x 17 -> 5 of 8 x 8, and one more -> mean -> 512 numbers

Inception-ResNet v1 (Szegedy et al. 2016) as David Sandberg's facenet has it, trained on VGGFace2 or CASIA-WebFace so
that faces of one person are near each other (Schroff et al. 2015). Each block adds what some branches of convolutions
find to what it was given. The normalisation behind each convolution is a scale and a shift of each channel once the
network is trained; `folded` puts them into the convolution.
"""

import torch
from torch import nn
from torch.nn import functional as F

from . import weights
from .networks import Tower, build, run, slices

SIDE = 160
EPSILON = 0.001
"""Of the normalisations."""

GRAPH_NUMBERS = 6_000_000
"""Numbers that one face's graph holds: 3.9 million are saved for the way back, and some are needed to run."""


class FaceNetTower(Tower):
    """A FaceNet.

    Example:
        >>> tower = rewards.load_tower("20180402-114759-vggface2.pt")
        >>> type(tower).__name__, tower.image_size
        ('FaceNetTower', 160)
    """

    def __init__(self, state, name="FaceNet", device="cpu", dtype=torch.float32):
        """Build the network.

        Args:
            state: weights as `weights.read` gives them; the layer that names the people of the training is left out.
            name, device, dtype: see the attributes and `load_tower`.

        Raises:
            ValueError: the weights are another model's or incomplete.
        """
        weights.check_kind(state, name, "FaceNet")
        super().__init__(name, "FaceNet")
        self.image_size = SIDE
        with torch.inference_mode(False):  # weights made inside it could take part in no gradient
            network = build(InceptionResnet, folded(state), self.kind, name, device, dtype)
        self.module = nn.ModuleDict({"face": network})

    def embed(self, faces):
        """Return what tells faces apart, (B, 512), not of unit length, differentiable, float32 or wider.

        Args:
            faces: (B, 3, 160, 160), in [0, 1].
        """
        network = self.module["face"]
        dtype = next(network.parameters()).dtype
        memory = GRAPH_NUMBERS * dtype.itemsize * (len(faces) if faces.requires_grad else 1)
        with self.running(memory) as device:
            pixels = (faces * 255 - 127.5) / 128
            parts = [pixels[rows].to(device) for rows in slices(faces)]
            return torch.cat([run(lambda x: network(x.to(dtype)), part, dtype) for part in parts])


class Convolution(nn.Conv2d):
    """A convolution and a ReLU."""

    def forward(self, x):
        return F.relu(super().forward(x))


class Branches(nn.Module):
    """Several ways through convolutions side by side, their channels one after another.

    Where a block shrinks the picture, the last convolution of each way does, and one more way takes the greatest of
    3 x 3 places.
    """

    def __init__(self, state, name, shrinks=False):
        super().__init__()
        self.count, self.shrinks = len(_numbers(state, f"{name}.branch")), shrinks
        for number in range(self.count):
            self.add_module(f"branch{number}", _chain(state, f"{name}.branch{number}", shrinks))

    def forward(self, x):
        found = [self.get_submodule(f"branch{number}")(x) for number in range(self.count)]
        return torch.cat([*found, F.max_pool2d(x, 3, stride=2)] if self.shrinks else found, dim=1)


class Residual(Branches):
    """What branches find, brought to the width of what entered and times `scale`, added to it."""

    def __init__(self, state, name, scale, last=False):
        super().__init__(state, name)
        self.scale, self.last = scale, last
        self.conv2d = _layer(nn.Conv2d, state, f"{name}.conv2d")

    def forward(self, x):
        x = x + self.scale * self.conv2d(super().forward(x))
        return x if self.last else F.relu(x)


class InceptionResnet(nn.Module):
    """(B, 3, 160, 160) -> (B, 512). Layers have facenet-pytorch's names; widths and depths are read off the weights."""

    def __init__(self, state):
        super().__init__()
        self.conv2d_1a = _layer(Convolution, state, "conv2d_1a", stride=2)
        self.conv2d_2a = _layer(Convolution, state, "conv2d_2a")
        self.conv2d_2b = _layer(Convolution, state, "conv2d_2b", padding=1)
        self.conv2d_3b = _layer(Convolution, state, "conv2d_3b")
        self.conv2d_4a = _layer(Convolution, state, "conv2d_4a")
        self.conv2d_4b = _layer(Convolution, state, "conv2d_4b", stride=2)
        self.repeat_1 = _repeat(state, "repeat_1", 0.17)
        self.mixed_6a = Branches(state, "mixed_6a", shrinks=True)
        self.repeat_2 = _repeat(state, "repeat_2", 0.1)
        self.mixed_7a = Branches(state, "mixed_7a", shrinks=True)
        self.repeat_3 = _repeat(state, "repeat_3", 0.2)
        self.block8 = Residual(state, "block8", 1.0, last=True)
        self.last_linear = nn.Linear(*reversed(state["last_linear.weight"].shape))

    def forward(self, x):
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_3b(F.max_pool2d(x, 3, stride=2))
        x = self.repeat_1(self.conv2d_4b(self.conv2d_4a(x)))
        x = self.repeat_2(self.mixed_6a(x))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        return self.last_linear(x.mean(dim=(2, 3)))


def _numbers(state, prefix):
    """Return the numbers that follow a prefix in the names of the weights, in order."""
    found = (name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix))
    return sorted({int(number) for number in found if number.isdecimal()})


def _layer(kind, state, name, **settings):
    """Return a convolution with the sizes of its weight."""
    out, into, *sides = state[f"{name}.weight"].shape
    return kind(into, out, sides, **settings)


def _chain(state, name, shrinks):
    """Return the convolutions of one branch: they keep the picture's size, but for the last where it shrinks."""
    numbers = _numbers(state, f"{name}.")
    names, made = [f"{name}.{number}" for number in numbers] or [name], []
    for each in names:
        if shrinks and each == names[-1]:
            made.append(_layer(Convolution, state, each, stride=2))
        else:
            made.append(_layer(Convolution, state, each, padding="same"))
    return nn.Sequential(*made) if numbers else made[0]


def _repeat(state, name, scale):
    return nn.Sequential(*(Residual(state, f"{name}.{number}", scale) for number in _numbers(state, f"{name}.")))


def folded(state):
    """Return the weights without normalisations: (w x - mean) gamma / sigma + beta as one convolution with a bias.

    sigma is the square root of the variance plus `EPSILON`. What has no whole normalisation stays as it is, and the
    layer that names people is left out.
    """
    found = {}
    for name, value in state.items():
        layer = name.rpartition(".")[0]
        norm = "last_bn" if layer == "last_linear" else layer.removesuffix("conv") + "bn"
        numbers = [state.get(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]
        if all(number is not None for number in numbers):
            gamma, beta, mean, variance = (number.float() for number in numbers)
            scale, layer = gamma / (variance + EPSILON).sqrt(), layer.removesuffix(".conv")
            found[f"{layer}.weight"] = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
            found[f"{layer}.bias"] = beta - mean * scale
        elif layer != "logits" and not layer.endswith("bn"):
            found[name] = value
    return found

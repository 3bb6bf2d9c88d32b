"""Differentiate ComfyUI's layers whose weights are outside of the pretend device, and print, as JSON, the errors.

Run with ComfyUI's folder as the working directory and `--cpu` as the only argument.
"""

import contextlib
import copy
import json
import math
import sys
from types import SimpleNamespace

from comfyui_on_the_device import PRETEND, overwrite_what_was_cast  # first: it makes the device

import comfy.ops  # isort: skip
import torch
from comfyui_dno.nodes import recast

OPS = comfy.ops.manual_cast
LAYERS = {
    "Linear": (lambda: OPS.Linear(6, 5), (2, 3, 6)),
    "Conv1d": (lambda: OPS.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "Conv2d": (lambda: OPS.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (2, 4, 7, 8)),
    "Conv2d, even kernel and stride": (lambda: OPS.Conv2d(4, 6, 2, stride=3), (2, 4, 7, 8)),
    "Conv2d, tiling": (lambda: OPS.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
    "Conv2d, same": (lambda: OPS.Conv2d(4, 6, 3, padding="same"), (2, 4, 5, 5)),
    "Conv3d": (lambda: OPS.Conv3d(4, 6, 3, padding=1), (1, 4, 3, 5, 5)),
    "ConvTranspose1d": (lambda: OPS.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "ConvTranspose2d": (lambda: OPS.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "GroupNorm": (lambda: OPS.GroupNorm(2, 4), (2, 4, 5, 5)),
    "LayerNorm": (lambda: OPS.LayerNorm(6), (2, 3, 6)),
    "RMSNorm": (lambda: OPS.RMSNorm(6), (2, 3, 6)),
    "float16 Linear": (lambda: OPS.Linear(6, 5).half(), (2, 3, 6)),
    "float16 Conv2d": (lambda: OPS.Conv2d(4, 6, 3, padding=1).half(), (2, 4, 5, 5)),
}


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(layer, seed):
    for parameter in layer.parameters():
        parameter.requires_grad_(False).copy_(drawn(parameter.shape, seed))
    return layer


def gradient(layer, shape, between=lambda: None):
    """Return the gradient by x of a weighted sum of layer(sin(x)), on the device; `between` is called half-way."""
    x = drawn(shape, 1).to(PRETEND).requires_grad_()
    y = layer(x.sin())
    between()
    return torch.autograd.grad((y * drawn(y.shape, 2).to(y)).sum(), x)[0].cpu()


def difference(layer, shape, expected, between=lambda: None, hooked=False):
    """Return how far the gradient of a layer outside of the device is from what is expected, relative."""
    with recast.casting_again([SimpleNamespace(model=layer)], hooked):
        found = gradient(layer, shape, between)
    error = ((found - expected).norm() / expected.norm()).item()
    return error if math.isfinite(error) else None


def measured(make, shape):
    """Return the errors of one kind of layer: as it is, with a LoRA, and where a hook changes the weight half-way."""
    layer = filled(make(), 3)
    expected = gradient(copy.deepcopy(layer).to(PRETEND), shape)
    found = {"outside": difference(layer, shape, expected)}

    def change():
        layer.weight = torch.nn.Parameter(-2 * layer.weight, requires_grad=False)

    found["hooked"] = difference(layer, shape, expected, change, hooked=True)
    layer.weight_function = [lambda weight: 3 * weight]
    found["LoRA"] = difference(layer, shape, -6 * expected)
    found["restored"] = "forward_comfy_cast_weights" not in vars(layer)
    return found


def restored_after_an_error():
    layer, cast = filled(OPS.Linear(6, 5), 3), comfy.ops.cast_bias_weight
    with contextlib.suppress(KeyError), recast.casting_again([SimpleNamespace(model=layer)]):
        raise KeyError
    return "forward_comfy_cast_weights" not in vars(layer) and comfy.ops.cast_bias_weight is cast


def cast_by_the_model():
    """Return the error where a model casts a layer's weight by itself, as ERNIE-Image and Lumina do."""
    layer, shape = filled(OPS.Linear(6, 5), 3), (2, 3, 6)

    def forward(x):
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
        result = torch.nn.functional.linear(x, weight, bias)
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
        return result

    expected = gradient(copy.deepcopy(layer).to(PRETEND), shape)
    with recast.casting_again():
        found = gradient(forward, shape)
    return (found - expected).abs().max().item()


def main():
    overwrite_what_was_cast()
    report = {name: measured(*kind) for name, kind in LAYERS.items()}
    report["after an error"], report["by the model"] = restored_after_an_error(), cast_by_the_model()
    sys.stdout.write("\n" + json.dumps(report))


main()

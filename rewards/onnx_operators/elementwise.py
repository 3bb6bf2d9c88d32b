"""ONNX's operators on each number by itself."""

import torch
from torch.nn import functional as F


def plain(function):
    """Return the operator that is a function of PyTorch, whatever the node's attributes."""
    return lambda node, *args: function(*args)


def folded(function):
    """Return the operator that takes any number of inputs, two by two."""

    def operator(node, first, *others):
        for other in others:
            first = function(first, other)
        return first

    return operator


def div(node, x, y):
    return torch.div(x, y, rounding_mode=None if x.is_floating_point() else "trunc")


def mod(node, x, y):
    return torch.fmod(x, y) if node.get("fmod", 0) else torch.remainder(x, y)


def power(node, x, y):
    return torch.pow(x, y).to(x.dtype)


def mean(node, *args):
    return folded(torch.add)(node, *args) / len(args)


def clip(node, x, least=None, greatest=None):
    # Files may hold either as a list of one number, which onnxruntime takes too.
    bounds = (node.setting("min", least), node.setting("max", greatest))
    least, greatest = (bound[0] if isinstance(bound, list) else bound for bound in bounds)
    return x if least is None and greatest is None else x.clamp(least, greatest)


def cast(node, x):
    return x.to(node.get("to"))


def cast_like(node, x, other):
    return x.to(other.dtype)


def constant(node):
    value = next(iter(node.attributes.values()))
    return value if torch.is_tensor(value) else torch.tensor(value, device="cpu")


def elu(node, x):
    return F.elu(x, node.get("alpha", 1.0))


def celu(node, x):
    return F.celu(x, node.get("alpha", 1.0))


def selu(node, x):
    alpha, gamma = node.get("alpha", 1.6732632423543772), node.get("gamma", 1.0507009873554805)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def gelu(node, x):
    return F.gelu(x, approximate=node.get("approximate", "none"))


def hard_sigmoid(node, x):
    return (node.get("alpha", 0.2) * x + node.get("beta", 0.5)).clamp(0, 1)


def leaky_relu(node, x):
    return F.leaky_relu(x, node.get("alpha", 0.01))


def prelu(node, x, slope):
    return torch.where(x < 0, slope * x, x)


def thresholded_relu(node, x):
    return torch.where(x > node.get("alpha", 1.0), x, 0.0)


def swish(node, x):
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


OPERATORS = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "Cast": cast,
    "CastLike": cast_like,
    "Ceil": plain(torch.ceil),
    "Celu": celu,
    "Clip": clip,
    "Constant": constant,
    "Cos": plain(torch.cos),
    "Div": div,
    "Elu": elu,
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gelu": gelu,
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(F.hardswish),
    "Identity": plain(lambda x: x),
    "IsNaN": plain(torch.isnan),
    "LeakyRelu": leaky_relu,
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "Max": folded(torch.maximum),
    "Mean": mean,
    "Min": folded(torch.minimum),
    "Mish": plain(F.mish),
    "Mod": mod,
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),
    "Selu": selu,
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": folded(torch.add),
    "Swish": swish,
    "Tan": plain(torch.tan),
    "Tanh": plain(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
    "Where": plain(torch.where),
    "Xor": plain(torch.logical_xor),
}

NUMBERS = {"Clip": (1, 2)}
"""Operator -> which of its inputs are read as numbers; they stay on the CPU."""

"""Layers that make their weight anew in every call: offloaded ones, float8, quantised, with a LoRA that is not merged.

ComfyUI copies an offloaded weight to the device when its layer is called, into memory that the next layers' weights may
overwrite; it makes float8 and quantised weights wide in the same way. Autograd would save what was made until the
backward pass: it might find another layer's weight there, and of narrow weights it would hold wide ones of all layers
at once. So such a layer saves no weight. The backward pass makes it once more, one layer's at a time:

    Linear        gradient by x = gradient @ weight
    Conv          gradient by x = the transposed convolution of the gradient
    all others    run again from their saved x, with a graph
"""

import contextlib
from types import SimpleNamespace

import comfy.model_management as mm
import comfy.ops
import torch
from torch.autograd.function import once_differentiable

from .weights import is_quantised, renewed

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@contextlib.contextmanager
def casting_again(patchers=(), hooked=False):
    """Let every layer that makes its weight when it is called make it again in the backward pass, and save none.

    Layers whose stored weight is what they compute with stay as they are: autograd saves that weight, which costs
    nothing.

    Args:
        patchers: ComfyUI's, of models that may be loaded later; those that are loaded now are found.
        hooked: whether hooks change weights between calls: then a graph holds on to the weights that it ran with.
    """
    models = {id(patcher.model): patcher.model for patcher in (*_loaded(), *patchers)}
    # Once each: models may share layers.
    layers = {id(layer): layer for model in models.values() for layer in model.modules() if _may_cast(layer)}.values()
    with contextlib.ExitStack() as replaced:
        replaced.enter_context(_replaced(comfy.ops, "cast_bias_weight", _owned(comfy.ops.cast_bias_weight)))
        if hasattr(comfy.ops, "QuantLinearFunc"):
            replaced.enter_context(_replaced(comfy.ops, "QuantLinearFunc", _Quantised))
        for layer in layers:
            run = _casting_again(layer, layer.forward_comfy_cast_weights, hooked)
            replaced.enter_context(_replaced(layer, "forward_comfy_cast_weights", run))
            if _detaches(layer):
                replaced.enter_context(_replaced(layer, "_full_precision_mm", True))
        yield


def _loaded():
    return [loaded.model for loaded in mm.current_loaded_models if loaded.model]


@contextlib.contextmanager
def _replaced(thing, name, value):
    """Set an attribute of this one object, where it may hide a method of its class, and put back what was there."""
    own = {name: vars(thing)[name]} if name in vars(thing) else {}
    setattr(thing, name, value)
    try:
        yield
    finally:
        delattr(thing, name)
        vars(thing).update(own)


def _may_cast(layer):
    return hasattr(layer, "forward_comfy_cast_weights") and getattr(layer, "weight", None) is not None


def _detaches(layer):
    """Whether a layer may round its input and lose its gradient: ComfyUI 0.3.75's, on a GPU with float8 arithmetic."""
    if hasattr(comfy.ops, "QuantLinearFunc") or not is_quantised(layer.weight):
        return False
    return getattr(layer, "_full_precision_mm", True) is False


class _Quantised:
    """ComfyUI 0.33's `QuantLinearFunc`, for weights of inference mode, which it could not save."""

    original = getattr(comfy.ops, "QuantLinearFunc", None)

    @classmethod
    def apply(cls, x, weight, *args):
        return cls.original.apply(x, renewed(weight) if weight.is_inference() else weight, *args)


def _owned(cast_bias_weight):
    """Return `cast_bias_weight` for callers with a graph: weights that come from elsewhere in memory of their own.

    Some models (ERNIE-Image, Lumina) cast a layer's weight themselves, and autograd saves that.
    """

    def cast(layer, *args, **kwargs):
        weight, *rest = cast_bias_weight(layer, *args, **kwargs)
        if torch.is_grad_enabled() and weight.device != layer.weight.device:
            weight = weight.clone()
        return weight, *rest

    return cast


def _casting_again(layer, forward, hooked):
    def run(x, *args, **kwargs):
        if not (torch.is_grad_enabled() and x.requires_grad and _makes_its_weight(layer, x)):
            return forward(x, *args, **kwargs)
        stored = _stored(layer) if hooked else {}
        return _kind(layer, args, kwargs).apply(x, layer, stored, lambda x: forward(x, *args, **kwargs))

    return run


def _makes_its_weight(layer, x):
    """Whether a call with `x` computes with another tensor than the layer's stored weight."""
    weight = layer.weight
    elsewhere = hasattr(layer, "_v") or weight.device != x.device  # _v: in dynamic video memory
    changed = weight.dtype != x.dtype or layer.weight_function or layer.bias_function
    return bool(elsewhere or changed or is_quantised(weight))


def _stored(layer):
    """Return the attributes that a layer's weight is made of, as they are now."""
    return {"weight": layer.weight, "weight_function": list(layer.weight_function)}


def _kind(layer, args, kwargs):
    """Return the Function that differentiates this call of a layer."""
    if not _is_stock(layer, "forward_comfy_cast_weights"):
        return _RunAgain
    if hasattr(layer, "in_features"):
        return _Linear
    if not isinstance(layer, CONVOLUTIONS) or args or kwargs or not _is_stock(layer, "_conv_forward"):
        return _RunAgain
    return _Convolution if layer.padding_mode == "zeros" and not isinstance(layer.padding, str) else _RunAgain


def _is_stock(layer, name):
    return getattr(type(layer), name).__module__ in (comfy.ops.__name__, torch.nn.modules.conv.__name__)


class _Linear(torch.autograd.Function):
    """forward(x), whose gradient by x is that by the output times the layer's weight, made again."""

    @staticmethod
    def forward(ctx, x, layer, stored, forward):
        ctx.layer, ctx.stored = layer, stored
        return forward(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        with _weight(ctx.layer, ctx.stored, gradient) as weight:
            return gradient @ weight, None, None, None


class _Convolution(torch.autograd.Function):
    """forward(x), whose gradient by x is the transposed convolution of that by the output."""

    @staticmethod
    def forward(ctx, x, layer, stored, forward):
        ctx.layer, ctx.stored, ctx.shape = layer, stored, x.shape
        return forward(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        layer = ctx.layer
        x = gradient.new_empty(1).expand(ctx.shape)  # of which the shape alone is asked
        with _weight(layer, ctx.stored, gradient) as weight:
            by_x, _, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0] * len(layer.stride),
                layer.groups, (True, False, False),
            )  # fmt: skip
        return by_x, None, None, None


class _RunAgain(torch.autograd.Function):
    """forward(x), run again with a graph for its gradient by x."""

    @staticmethod
    def forward(ctx, x, layer, stored, forward):
        ctx.layer, ctx.stored, ctx.forward = layer, stored, forward
        ctx.save_for_backward(x)
        return forward(x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), _with(ctx.layer, ctx.stored):
            (by_x,) = torch.autograd.grad(ctx.forward(x), x, gradient)
        return by_x, None, None, None


@contextlib.contextmanager
def _with(layer, stored):
    """Give the layer the attributes that it had when they were stored."""
    now = _stored(layer)
    try:
        layer._parameters["weight"], layer.weight_function = (stored or now).values()
        yield
    finally:
        layer._parameters["weight"], layer.weight_function = now.values()


@contextlib.contextmanager
def _weight(layer, stored, like):
    """Yield the weight that the layer's forward computes with, in the dtype of `like`: LoRA and scales applied."""
    no_bias = {"bias": None, "bias_function": []}
    source = SimpleNamespace(**vars(layer) | stored | no_bias) if stored else layer
    weight, bias, stream = comfy.ops.cast_bias_weight(source, like, offloadable=True)
    try:
        wide = weight.dequantize() if is_quantised(weight) else weight
        scale = getattr(layer, "scale_weight", None)  # ComfyUI 0.3.75's scaled float8
        yield wide if scale is None else wide * scale.to(wide)
    finally:
        comfy.ops.uncast_bias_weight(source, weight, bias, stream)

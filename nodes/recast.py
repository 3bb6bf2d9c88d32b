"""Linear layers whose weights are stored in fewer bits than they compute with: float8, quantised.

ComfyUI makes such a layer's weight anew in every call. Autograd would keep what was made of every layer until the
backward pass, twice to eight times the memory of the stored weights. So it keeps the stored ones, and the backward pass
makes one layer's weight at a time again.
"""

import contextlib
from types import SimpleNamespace

import comfy.model_management as mm
import comfy.ops
import torch
from torch.autograd.function import once_differentiable


@contextlib.contextmanager
def casting_again():
    """Let every loaded layer of this kind keep its stored weight while it is differentiated, not the cast one."""
    models = {id(loaded.model.model): loaded.model.model for loaded in mm.current_loaded_models if loaded.model}
    # Once each: models may share layers.
    layers = {id(layer): layer for model in models.values() for layer in model.modules() if _is_cast(layer)}.values()
    with contextlib.ExitStack() as replaced:
        for layer in layers:
            forward = _keeping_stored(layer, layer.forward_comfy_cast_weights)
            replaced.enter_context(_replaced(layer, "forward_comfy_cast_weights", forward))
            if _detaches(layer):
                replaced.enter_context(_replaced(layer, "_full_precision_mm", True))
        yield


@contextlib.contextmanager
def _replaced(layer, name, value):
    """Set an attribute of this one object, where it hides a method of its class, and put back what was there."""
    own = {name: vars(layer)[name]} if name in vars(layer) else {}
    setattr(layer, name, value)
    try:
        yield
    finally:
        delattr(layer, name)
        vars(layer).update(own)


def _is_cast(layer):
    weight = getattr(layer, "weight", None)
    if not hasattr(layer, "forward_comfy_cast_weights") or not hasattr(layer, "in_features") or weight is None:
        return False
    return weight.ndim == 2 and (weight.dtype.itemsize == 1 or hasattr(weight, "__tensor_flatten__"))


def _detaches(layer):
    """Whether a layer rounds its input and loses its gradient: ComfyUI 0.3.75's, on a GPU with float8 arithmetic."""
    if hasattr(comfy.ops, "QuantLinearFunc") or getattr(layer, "input_scale", None) is None:
        return False
    return getattr(layer, "_full_precision_mm", True) is False


def _keeping_stored(layer, forward):
    def run(x, *args, **kwargs):
        if x.requires_grad and torch.is_grad_enabled():
            return _Linear.apply(x, layer.weight, layer, lambda x: forward(x, *args, **kwargs))
        return forward(x, *args, **kwargs)

    return run


class _Linear(torch.autograd.Function):
    """forward(x), whose gradient by x is that by the output times the layer's weight, made of the stored one again."""

    @staticmethod
    def forward(ctx, x, weight, layer, forward):
        ctx.save_for_backward(weight)
        ctx.layer = layer
        return forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (stored,) = ctx.saved_tensors
        return gradient @ _cast(stored, ctx.layer, gradient), None, None, None


def _cast(stored, layer, like):
    """Return what the layer's forward makes of its stored weight, in the dtype of `like`: LoRA and scales applied."""
    own = {"weight": stored, "bias": None, "weight_function": layer.weight_function, "bias_function": []}
    weight, _ = comfy.ops.cast_bias_weight(SimpleNamespace(**vars(layer) | own), like)
    weight = weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight
    scale = getattr(layer, "scale_weight", None)  # ComfyUI 0.3.75's scaled float8
    return weight if scale is None else weight * scale.to(weight)

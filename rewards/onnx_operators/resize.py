"""ONNX's Resize and the older Upsample: axis by axis, each output a weighted sum of a few inputs, its taps."""

import math

import torch

PLACES = {
    "half_pixel": lambda at, scale, length, out: (at + 0.5) / scale - 0.5,
    "half_pixel_symmetric": lambda at, scale, length, out: (
        length / 2 * (1 - out / (scale * length)) + (at + 0.5) / scale - 0.5
    ),
    "pytorch_half_pixel": lambda at, scale, length, out: (at + 0.5) / scale - 0.5 if out > 1 else torch.zeros_like(at),
    "align_corners": lambda at, scale, length, out: at * (length - 1) / (scale * length - 1 or 1),
    "asymmetric": lambda at, scale, length, out: at / scale,
}
"""The attribute coordinate_transformation_mode -> where in the input an output lies."""

NEAREST = {
    "round_prefer_floor": lambda at: (at - 0.5).ceil(),
    "round_prefer_ceil": lambda at: (at + 0.5).floor(),
    "floor": torch.floor,
    "ceil": torch.ceil,
}
"""The attribute nearest_mode -> which input counts."""


def resize(node, x, roi=None, scales=None, sizes=None):
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    if sizes is not None and sizes.numel():
        lengths, scales = _lengths(node, x, axes, sizes.tolist())
    else:
        scales = scales.tolist()
        lengths = [_scaled(x.shape[axis], scale) for axis, scale in zip(axes, scales, strict=True)]
    where = node.get("coordinate_transformation_mode", "half_pixel")
    return _resized(node, x, zip(axes, lengths, scales, strict=True), where)


def resize_of_set_10(node, x, scales):
    """Resize as it was in operator set 10, and Upsample before it."""
    scales = node.setting("scales", scales)
    sizes = [(axis, _scaled(x.shape[axis], scale), scale) for axis, scale in enumerate(scales)]
    return _resized(node, x, sizes, "asymmetric", "floor")


def _scaled(length, scale):
    """Return an output's length as onnxruntime counts it, in float32: 5/3 of 3 are 5, in float64 they would be 4."""
    return int((torch.tensor(scale, dtype=torch.float32, device="cpu") * length).floor())


def _lengths(node, x, axes, sizes):
    """Return the lengths of the axes and their scales, where the file gives sizes."""
    scales = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(x.shape[axis] * scale + 0.5) for axis in axes], [scale] * len(axes)


def _resized(node, x, sizes, where, nearest="round_prefer_floor"):
    if where not in PLACES:
        raise ValueError(f"the coordinate_transformation_mode {where} is not implemented")
    for axis, out, scale in sizes:
        if out != x.shape[axis] or scale != 1:
            indices, shares = _taps(node, x.shape[axis], out, scale, where, nearest)
            x = _summed(x, axis, indices.to(x.device), shares.to(x.device, x.dtype))
    return x


def _summed(x, axis, indices, shares):
    """Return the sum over taps of x at indices (out, taps) of an axis, by their shares."""
    behind = [1] * (x.ndim - axis - 1)
    if indices.shape[1] == 1:
        return x.index_select(axis, indices[:, 0])
    parts = (
        x.index_select(axis, index) * share.view(-1, *behind)
        for index, share in zip(indices.unbind(1), shares.unbind(1), strict=True)
    )
    return sum(parts)


def _taps(node, length, out, scale, where, nearest):
    """Return which inputs of an axis make each output, (out, taps), and their shares, which sum to 1."""
    mode = node.get("mode", "nearest")
    # onnxruntime's places are float32: halfway between two inputs it matters which is nearest.
    dtype = torch.float32 if mode == "nearest" else torch.float64
    at = PLACES[where](torch.arange(out, dtype=dtype, device="cpu"), scale, length, out)
    if mode == "nearest":
        index = NEAREST[node.get("nearest_mode", nearest)](at).long().clamp(0, length - 1)
        return index[:, None], torch.ones(out, 1, dtype=torch.float64, device="cpu")
    kernel, reach = (_linear, 1) if mode == "linear" else (_cubic(node.get("cubic_coeff_a", -0.75)), 2)
    narrow = min(scale, 1.0) if node.get("antialias", 0) else 1.0  # wider where the picture shrinks
    reach = math.ceil(reach / narrow)
    indices = at.floor().long()[:, None] + torch.arange(1 - reach, reach + 1, device="cpu")
    shares = kernel((indices - at[:, None]).abs() * narrow)
    inside = (indices >= 0) & (indices < length)
    if node.get("exclude_outside", 0):
        shares = shares * inside
    return indices.clamp(0, length - 1), shares / shares.sum(dim=1, keepdim=True)


def _linear(distance):
    return (1 - distance).clamp(min=0)


def _cubic(a):
    """Return Keys' kernel (1981)."""

    def kernel(d):
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))

    return kernel


def resize_or_older(node, x, *settings):
    return resize_of_set_10(node, x, *settings) if node.opset < 11 else resize(node, x, *settings)


def upsample(node, x, scales=None):
    return resize_of_set_10(node, x, scales)


OPERATORS = {"Resize": resize_or_older, "Upsample": upsample}

NUMBERS = {"Resize": (1, 2, 3), "Upsample": (1,)}
"""As in `elementwise.py`."""

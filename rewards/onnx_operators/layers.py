"""ONNX's operators with weights or windows: convolutions, products of matrices, pooling, normalisation."""

import torch
from torch.nn import functional as F

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
"""Number of spatial axes -> PyTorch's function."""


class Window:
    """What slides over the spatial axes of (B, C, *sizes).

    Attributes:
        kernel, strides, dilations: one number an axis.
        pads: (before, after) an axis, what the file says or `auto_pad` makes.
        beyond: an axis's zeros behind those, where `ceil_mode` lets the last window stick out.
    """

    def __init__(self, node, sizes, kernel):
        axes = len(sizes)
        self.kernel, self.strides = kernel, node.get("strides", [1] * axes)
        self.dilations = node.get("dilations", [1] * axes)
        self.reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        self.pads = self._pads(node, sizes)
        self.beyond = [0] * axes
        if node.get("ceil_mode", 0):
            self.beyond = [self._beyond(axis, size) for axis, size in enumerate(sizes)]

    def _pads(self, node, sizes):
        auto = node.get("auto_pad", "NOTSET")
        if auto == "NOTSET":
            pads = node.get("pads", [0] * 2 * len(sizes))
            return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
        if auto == "VALID":
            return [(0, 0)] * len(sizes)
        totals = [
            max((-(-size // stride) - 1) * stride + reach - size, 0)
            for size, stride, reach in zip(sizes, self.strides, self.reach, strict=True)
        ]
        return [halves(total, auto) for total in totals]

    def _beyond(self, axis, size):
        (before, after), stride, reach = self.pads[axis], self.strides[axis], self.reach[axis]
        padded = size + before + after
        count = -(-(padded - reach) // stride) + 1
        if (count - 1) * stride >= size + before:  # a window must begin before the padding behind
            count -= 1
        return max((count - 1) * stride + reach - padded, 0)

    def padded(self, x, value=0.0, beyond=True):
        """Return x with its padding, which holds `value`."""
        behind = self.beyond if beyond else [0] * len(self.pads)
        lengths = [(before, after + more) for (before, after), more in zip(self.pads, behind, strict=True)]
        flat = [length for pair in reversed(lengths) for length in pair]
        return F.pad(x, flat, value=value) if any(flat) else x


def halves(total, auto):
    """Return a padding in two halves; of an odd one the larger half is behind for SAME_UPPER, else before."""
    less, more = total // 2, total - total // 2
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def conv(node, x, weight, bias=None):
    window = Window(node, x.shape[2:], list(weight.shape[2:]))
    before = [pair[0] for pair in window.pads]
    even = all(low == high >= 0 for low, high in window.pads)
    x, padding = (x, before) if even else (window.padded(x), 0)
    return CONV[x.ndim - 2](x, weight, bias, window.strides, padding, window.dilations, node.get("group", 1))


def conv_transpose(node, x, weight, bias=None):
    axes = x.ndim - 2
    strides, dilations = node.get("strides", [1] * axes), node.get("dilations", [1] * axes)
    more = node.get("output_padding", [0] * axes)
    whole = CONV_TRANSPOSE[axes](x, weight, bias, strides, 0, more, node.get("group", 1), dilations)
    pads, auto = node.get("pads", [0] * 2 * axes), node.get("auto_pad", "NOTSET")
    sizes = node.get("output_shape")
    if sizes is None and auto.startswith("SAME"):
        sizes = [size * stride for size, stride in zip(x.shape[2:], strides, strict=True)]
    pairs = list(zip(pads[:axes], pads[axes:], strict=True))
    if sizes is not None:
        pairs = [halves(have - want, auto) for have, want in zip(whole.shape[2:], sizes[-axes:], strict=True)]
    return F.pad(whole, [-length for pair in reversed(pairs) for length in pair])


def max_pool(node, x):
    window = Window(node, x.shape[2:], node.get("kernel_shape"))
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = window.padded(x, lowest)
    return MAX_POOL[x.ndim - 2](padded, window.kernel, window.strides, 0, window.dilations)


def average_pool(node, x):
    window = Window(node, x.shape[2:], node.get("kernel_shape"))
    if any(dilation != 1 for dilation in window.dilations):
        raise ValueError("dilations are not implemented")
    pool = AVERAGE_POOL[x.ndim - 2]
    means = pool(window.padded(x), window.kernel, window.strides)
    if means.numel() == 0 or not any(map(any, window.pads)) and not any(window.beyond):
        return means
    counts = torch.ones_like(x[:1, :1])  # where the padding does not count, the mean is over fewer
    if node.get("count_include_pad", 0):
        counts = window.padded(counts, 1.0, beyond=False)
        counts = F.pad(counts, [length for more in reversed(window.beyond) for length in (0, more)])
    else:
        counts = window.padded(counts)
    return means / pool(counts, window.kernel, window.strides)


def spatial(x):
    """Return the axes behind batch and channels."""
    return list(range(2, x.ndim))


def global_average_pool(node, x):
    return x.mean(spatial(x), keepdim=True)


def global_max_pool(node, x):
    return x.amax(spatial(x), keepdim=True)


def gemm(node, a, b, c=None):
    a, b = (x.T if node.get(name, 0) else x for x, name in ((a, "transA"), (b, "transB")))
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    found = a @ b if alpha == 1 else alpha * (a @ b)
    return found if c is None else found + (c if beta == 1 else beta * c)


def einsum(node, *args):
    return torch.einsum(node.get("equation"), *args)


def along_channels(weight, x):
    """Return (C,) as what multiplies (B, C, ..)."""
    return weight.view(-1, *[1] * (x.ndim - 2))


def batch_normalization(node, x, scale, bias, mean, variance):
    if node.get("training_mode", 0):
        raise ValueError("it is in training mode; export the network in evaluation mode")
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.get("epsilon", 1e-5))


def instance_normalization(node, x, scale, bias):
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def layer_normalization(node, x, scale, bias=None):
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5))
    found = centred * inverse * scale
    return (found if bias is None else found + bias), x.mean(axes, keepdim=True), inverse


def group_normalization(node, x, scale, bias):
    groups = node.get("num_groups")
    found = F.group_norm(x, groups, eps=node.get("epsilon", 1e-5))
    if node.opset < 21:  # one number a group; from 21 on one a channel
        scale, bias = (weight.repeat_interleave(x.shape[1] // groups) for weight in (scale, bias))
    return found * along_channels(scale, x) + along_channels(bias, x)


def rms_normalization(node, x, scale):
    axes = list(range(node.get("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node.get("epsilon", 1e-5)) * scale


def lrn(node, x):
    size = node.get("size")
    before = (size - 1) // 2
    squares = F.pad(x.square().movedim(1, -1), (before, size - 1 - before)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    scale = node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * squares
    return x / scale.pow(node.get("beta", 0.75))


def mean_variance_normalization(node, x):
    axes = node.get("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


def grid_sample(node, x, grid):
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "bilinear"), node.get("mode", "bilinear"))
    corners = bool(node.get("align_corners", 0))
    return F.grid_sample(x, grid, mode, node.get("padding_mode", "zeros"), corners)


OPERATORS = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "GridSample": grid_sample,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "MatMul": lambda node, a, b: a @ b,
    "MaxPool": max_pool,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
}

NUMBERS = {}
"""As in `elementwise.py`."""

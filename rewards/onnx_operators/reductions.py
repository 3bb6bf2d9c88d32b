"""ONNX's operators that make one number of many along axes: sums, means, softmax, the largest."""

import torch


def reduced(function):
    """Return the operator of function(x, axes, keepdim)."""

    def operator(node, x, axes=None):
        axes = node.setting("axes", axes)
        if not axes and node.get("noop_with_empty_axes", 0):
            return x
        return function(x, list(axes) if axes else list(range(x.ndim)), bool(node.get("keepdims", 1)))

    return operator


def product(x, axes, keepdim):
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(dim=axis, keepdim=keepdim, dtype=x.dtype)
    return x


def length(x, axes, keepdim):
    """Return the Euclidean length, whose gradient is 0, not NaN, where it is 0."""
    return torch.linalg.vector_norm(x if x.is_floating_point() else x.float(), dim=axes, keepdim=keepdim).to(x.dtype)


def softmax_by(function):
    """Return Softmax or LogSoftmax: over one axis, and before operator set 13 over this one and all behind it."""

    def operator(node, x):
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % max(x.ndim, 1)
        return function(x.flatten(axis), dim=axis).reshape(x.shape)

    return operator


def lp_normalization(node, x):
    axis, p = node.get("axis", -1), node.get("p", 2)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def cumsum(node, x, axis):
    axis = axis.item()
    x = x.flip(axis) if node.get("reverse", 0) else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if node.get("exclusive", 0) else total
    return total.flip(axis) if node.get("reverse", 0) else total


def top_k(node, x, k=None):
    k = node.get("k") if k is None else k.flatten()[0].item()
    axis = node.get("axis", -1)
    values, places = x.sort(dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, k), places.narrow(axis, 0, k)


def extreme(function):
    """Return ArgMax or ArgMin: the place of the first such number."""

    def operator(node, x):
        if node.get("select_last_index", 0):
            raise ValueError("select_last_index is not implemented")
        return function(x, dim=node.get("axis", 0), keepdim=bool(node.get("keepdims", 1)))

    return operator


OPERATORS = {
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "CumSum": cumsum,
    "LogSoftmax": softmax_by(torch.log_softmax),
    "LpNormalization": lp_normalization,
    "ReduceL1": reduced(lambda x, axes, keepdim: x.abs().sum(axes, keepdim)),
    "ReduceL2": reduced(length),
    "ReduceLogSum": reduced(lambda x, axes, keepdim: x.sum(axes, keepdim).log()),
    "ReduceLogSumExp": reduced(torch.logsumexp),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceProd": reduced(product),
    "ReduceSum": reduced(lambda x, axes, keepdim: x.sum(axes, keepdim, dtype=x.dtype)),
    "ReduceSumSquare": reduced(lambda x, axes, keepdim: x.square().sum(axes, keepdim)),
    "Softmax": softmax_by(torch.softmax),
    "TopK": top_k,
}

NUMBERS = {"CumSum": (1,), "TopK": (1,)} | {name: (1,) for name in OPERATORS if name.startswith("Reduce")}
"""As in `elementwise.py`."""

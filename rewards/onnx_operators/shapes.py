"""ONNX's operators that arrange numbers: shapes, slices, joins, gathers."""

import torch
from torch.nn import functional as F


def shape(node, x):
    return torch.tensor(x.shape[node.get("start", 0) : node.get("end")], dtype=torch.int64, device="cpu")


def size(node, x):
    return torch.tensor(x.numel(), device="cpu")


def reshape(node, x, sizes):
    sizes = sizes.tolist()
    if not node.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(node, x):
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(x.shape[:axis].numel(), x.shape[axis:].numel())


def squeeze(node, x, axes=None):
    axes = node.setting("axes", axes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def unsqueeze(node, x, axes=None):
    axes = node.setting("axes", axes)
    axes = axes if isinstance(axes, list) else [axes]
    ndim = x.ndim + len(axes)
    for axis in sorted(axis % ndim for axis in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(node, x):
    return x.permute(node.get("perm", list(range(x.ndim))[::-1]))


def concat(node, *args):
    return torch.cat(args, dim=node.get("axis"))


def split(node, x, sizes=None):
    axis, sizes = node.get("axis", 0), node.setting("split", sizes)
    if sizes is None:  # in equal parts, the last one smaller where need be
        sizes = -(-x.shape[axis] // len(node.outputs))
    return x.split(sizes, dim=axis)


def cut(node, x, starts=None, ends=None, axes=None, steps=None):
    starts, ends = node.setting("starts", starts), node.setting("ends", ends)
    axes = node.setting("axes", axes, range(len(starts)))
    steps = node.setting("steps", steps, [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        kept = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, kept.start, max(kept.stop - kept.start, 0)) if step == 1 else _picked(x, axis, kept)
        else:
            x = _picked(x, axis, kept)
    return x


def _picked(x, axis, kept):
    """Return x at these places of an axis, in their order."""
    return x.index_select(axis, torch.tensor(list(kept), dtype=torch.int64, device=x.device))


def _from_the_front(indices, length):
    """Return indices with those that are negative, and so count from the end, counted from the front."""
    indices = indices.long()
    return torch.where(indices < 0, indices + length, indices)


def gather(node, x, indices):
    axis = node.get("axis", 0) % x.ndim
    picked = x.index_select(axis, _from_the_front(indices, x.shape[axis]).flatten())
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def gather_elements(node, x, indices):
    axis = node.get("axis", 0)
    return x.gather(axis, _from_the_front(indices, x.shape[axis]))


def gather_nd(node, x, indices):
    if node.get("batch_dims", 0):
        raise ValueError("batch_dims is not 0, which is not implemented")
    return x[indices.long().unbind(-1)]


def scatter_nd(node, x, indices, updates):
    if node.get("reduction", "none") != "none":
        raise ValueError(f"the reduction {node.get('reduction')} is not implemented")
    return x.index_put(indices.long().unbind(-1), updates)


def expand(node, x, sizes):
    return x.expand(torch.broadcast_shapes(x.shape, sizes.tolist()))


def tile(node, x, repeats):
    return x.repeat(repeats.tolist())


def pad(node, x, pads=None, value=None, axes=None):
    pads, mode = node.setting("pads", pads), node.get("mode", "constant")
    axes = range(x.ndim) if axes is None else axes.tolist()
    half = len(pads) // 2
    around = {axis % x.ndim: (pads[at], pads[at + half]) for at, axis in enumerate(axes)}
    if mode == "constant":
        value = node.get("value", 0.0) if value is None else value.item()
        pairs = [around.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]
        return F.pad(x, [length for pair in pairs for length in pair], value=value)
    for axis, (before, after) in around.items():
        if before or after:
            x = x.index_select(axis, _padded(x.shape[axis], before, after, mode).to(x.device))
    return x


def _padded(length, before, after, mode):
    """Return which place of an axis each place of the padded one repeats."""
    places = torch.arange(-before, length + after, device="cpu")
    if mode == "edge":
        return places.clamp(0, length - 1)
    if mode == "wrap":
        return places % length
    if mode == "reflect":
        period = max(2 * length - 2, 1)
        return (length - 1) - ((places % period) - (length - 1)).abs()
    raise ValueError(f"the mode {mode} is not implemented")


def depth_to_space(node, x):
    size, (batch, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    x = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // size**2, height * size, width * size)


def space_to_depth(node, x):
    size, (batch, channels, height, width) = node.get("blocksize"), x.shape
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, size)
    x = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * size**2, height // size, width // size)


def constant_of_shape(node, sizes):
    value = node.get("value", torch.zeros(1, device="cpu"))
    return value.expand(sizes.tolist())


def arange(node, start, limit, delta):
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device="cpu")


def trilu(node, x, diagonal=None):
    diagonal = 0 if diagonal is None else diagonal.item()
    return torch.triu(x, diagonal) if node.get("upper", 1) else torch.tril(x, diagonal)


def dropout(node, x, ratio=None, training=None):
    """Return the numbers as they are, since nothing is trained, and which of them are kept: all."""
    if training is not None and training.item():
        raise ValueError("it is in training mode; export the network in evaluation mode")
    return x, torch.ones_like(x, dtype=torch.bool)


OPERATORS = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Pad": pad,
    "Range": arange,
    "Reshape": reshape,
    "ScatterND": scatter_nd,
    "Shape": shape,
    "Size": size,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}

NUMBERS = {
    "ConstantOfShape": (0,), "Dropout": (1, 2), "Expand": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "Reshape": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Trilu": (1,), "Unsqueeze": (1,),
}  # fmt: skip
"""As in `elementwise.py`."""

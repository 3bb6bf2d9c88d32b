"""Reads ONNX files: a graph of operations and its weights. They hold no code, and no package is needed to read them.

    path --read--> Graph: nodes in the order in which they run, weights by name, inputs and outputs

An ONNX file is one message of Protocol Buffers. `MESSAGES` lists what is read of it, by the numbers of onnx.proto;
fields that are not listed, such as documentation, are skipped.
"""

import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import torch

from . import weights

METADATA = 14
"""Number of the field of a model that says what its author pleased."""

MESSAGES = {
    "model": {7: ("graph", "graph"), 8: ("opset_import", ["opset"]), METADATA: ("metadata_props", ["entry"])},
    "opset": {1: ("domain", "text"), 2: ("version", "int")},
    "graph": {
        1: ("node", ["node"]), 5: ("initializer", ["tensor"]), 11: ("input", ["value"]), 12: ("output", ["value"]),
        15: ("sparse_initializer", ["bytes"]),
    },
    "node": {
        1: ("input", ["text"]), 2: ("output", ["text"]), 3: ("name", "text"), 4: ("op_type", "text"),
        5: ("attribute", ["attribute"]), 7: ("domain", "text"),
    },
    "attribute": {
        1: ("name", "text"), 2: ("f", "float"), 3: ("i", "int"), 4: ("s", "text"), 5: ("t", "tensor"),
        7: ("floats", ["float"]), 8: ("ints", ["int"]), 9: ("strings", ["text"]), 20: ("type", "int"),
    },
    "tensor": {
        1: ("dims", ["int"]), 2: ("data_type", "int"), 4: ("float_data", ["float"]), 5: ("int32_data", ["int"]),
        7: ("int64_data", ["int"]), 8: ("name", "text"), 9: ("raw_data", "bytes"), 10: ("double_data", ["double"]),
        13: ("external_data", ["entry"]), 14: ("data_location", "int"),
    },
    "entry": {1: ("key", "text"), 2: ("value", "text")},
    "value": {1: ("name", "text"), 2: ("type", "type")},
    "type": {1: ("tensor_type", "tensor_type")},
    "tensor_type": {1: ("elem_type", "int"), 2: ("shape", "shape")},
    "shape": {1: ("dim", ["dim"])},
    "dim": {1: ("dim_value", "int"), 2: ("dim_param", "text")},
}  # fmt: skip
"""Message -> number of a field -> (its name, what it is: a message or one of `EMPTY`; in a list where repeated)."""

EMPTY = {"int": 0, "float": 0.0, "double": 0.0, "text": "", "bytes": b""}
"""Kind of a plain field -> its value where the file leaves it out."""

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""ONNX's number of a type of tensors -> PyTorch's."""

ATTRIBUTES = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}
"""ONNX's number of a type of attributes -> the field with the value."""

LEAST_OPSET = 7
"""The version of the operators from which on shapes are broadcast as in NumPy."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        op: its type, "Conv"; of other domains than ONNX's own with that, "com.microsoft.FusedConv".
        name: its own, for messages.
        inputs, outputs: names of values; "" is an optional one that is left out.
        attributes: name -> number, text, tensor, or a list of numbers.
        opset: version of the operators, which decides what some attributes mean.
    """

    op: str
    name: str
    inputs: list
    outputs: list
    attributes: dict
    opset: int

    def get(self, name, default=None):
        """Return an attribute, or `default` where the file leaves it out."""
        return self.attributes.get(name, default)

    def setting(self, name, tensor, default=None):
        """Return numbers that are an attribute in older files, an input in newer ones: as a list or a number."""
        return self.get(name, default) if tensor is None else tensor.tolist()


@dataclass(frozen=True)
class Input:
    """What a graph takes: name, dtype, and shape with None where any size will do."""

    name: str
    dtype: torch.dtype | None
    shape: tuple


@dataclass(frozen=True)
class Graph:
    """A file's contents.

    Attributes:
        nodes: each behind those that make its inputs.
        weights: name -> tensor on the CPU.
        inputs: those that are no weights.
        outputs: names.
        metadata: name -> text, whatever the author has put there.
    """

    nodes: list
    weights: dict
    inputs: list
    outputs: list
    metadata: dict


@torch.inference_mode(False)
def read(path, dtype=torch.float32):
    """Read a file.

    Args:
        path: of the file; weights that are kept beside it are read from there.
        dtype: of all floating-point numbers, whatever theirs is in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX file, damaged, or holds what is not read.
    """
    path = Path(path)
    if not path.is_file():
        raise weights.missing(path, "ONNX")
    if path.stat().st_size == 0:
        raise _damaged(path)
    try:
        return _graph(_parsed(_mapped(path), "model"), path, dtype)
    except (AttributeError, LookupError, RuntimeError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise _damaged(path) from error


def metadata_of(path):
    """Return name -> text, what a file says of itself; its graph is passed over. Of what is no such file, nothing."""
    path = Path(path)
    try:
        status = path.stat()
        return dict(_metadata(path, status.st_mtime_ns, status.st_size))
    except (OSError, ValueError, LookupError, TypeError):
        return {}


@lru_cache(maxsize=256)  # the lists of many nodes ask for it, each time that a page is loaded
def _metadata(path, modified, size):
    try:
        entries = [_parsed(value, "entry") for number, value in fields(_mapped(path)) if number == METADATA]
    except (ValueError, LookupError, TypeError):
        return ()
    return tuple((entry.key, entry.value) for entry in entries)


def _mapped(path):
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _damaged(path):
    return ValueError(
        f"{path.name} is no whole ONNX file, of {path.stat().st_size} bytes. A web page or a Git LFS pointer may have"
        " been saved in its place, or the download has stopped; download the file again"
    )


LONGEST = 70
"""Bits of the ten bytes that the longest integer takes."""


def _varint(part, place):
    """Return an integer, signed, of seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = part[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if shift > LONGEST:
            raise IndexError(place)
        if byte < 0x80:
            return (value - (1 << 64) if value >> 63 else value), place


def fields(part):
    """Yield (number, value) of a message, a memoryview: each value is an int or a part of it."""
    place = 0
    while place < len(part):
        key, place = _varint(part, place)
        wire = key & 7
        if key >> 3 < 1:  # as in a file of zeros, which a download has not filled yet
            raise IndexError(place)
        if wire == 0:
            value, place = _varint(part, place)
        else:
            length, place = _varint(part, place) if wire == 2 else ({1: 8, 5: 4}[wire], place)
            value, place = part[place : place + length], place + length
            if length < 0 or place > len(part):
                raise IndexError(place)
        yield key >> 3, value


def _parsed(part, message):
    """Return a message's fields by name."""
    known = MESSAGES[message]
    found = {name: [] if isinstance(kind, list) else EMPTY.get(kind) for name, kind in known.values()}
    for number, value in fields(part):
        name, kind = known.get(number, (None, None))
        if isinstance(kind, list):
            found[name] += _repeated(value, *kind)
        elif name is not None:
            found[name] = _value(value, kind)
    return SimpleNamespace(**found)


def _repeated(value, kind):
    """Return the values of a repeated field: one, or of numbers as many as are packed together."""
    if kind == "int" and not isinstance(value, int):
        numbers, place = [], 0
        while place < len(value):
            number, place = _varint(value, place)
            numbers.append(number)
        return numbers
    if kind in ("float", "double"):
        letter = kind[0]
        return struct.unpack(f"<{len(value) // struct.calcsize(letter)}{letter}", value)
    return [_value(value, kind)]


def _value(value, kind):
    if isinstance(value, int) != (kind == "int"):
        raise TypeError(kind)
    if kind == "int":
        return value
    if kind == "float":
        return struct.unpack("<f", value)[0]
    if kind == "text":
        return bytes(value).decode()
    return value if kind == "bytes" else _parsed(value, kind)


def _graph(model, path, dtype):
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    opset = opsets.get("", opsets.get("ai.onnx"))
    if model.graph is None or opset is None or not model.graph.node:
        raise _damaged(path)
    if opset < LEAST_OPSET:
        raise ValueError(
            f"{path.name} is of ONNX's operator set {opset}; expected {LEAST_OPSET} or later. Export it again, or"
            " convert it with onnx.version_converter"
        )
    if model.graph.sparse_initializer:
        raise ValueError(f"{path.name} holds sparse weights; expected an ONNX file with dense ones. Export it so")
    kept = {tensor.name: _tensor(tensor, path, dtype) for tensor in model.graph.initializer}
    inputs = [_input(value, dtype) for value in model.graph.input if value.name not in kept]
    nodes = [_node(node, path, opset, dtype) for node in model.graph.node]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Graph(nodes, kept, inputs, [value.name for value in model.graph.output], metadata)


def _input(value, dtype):
    tensor = value.type.tensor_type if value.type else None
    if tensor is None:
        return Input(value.name, None, ())
    dims = tensor.shape.dim if tensor.shape else []
    kind = DTYPES.get(tensor.elem_type)
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)
    return Input(value.name, dtype if kind is not None and kind.is_floating_point else kind, shape)


def _node(node, path, opset, dtype):
    own = node.domain in ("", "ai.onnx")
    attributes = {attribute.name: _attribute(attribute, path, dtype) for attribute in node.attribute}
    if own and node.op_type == "Cast":
        kind = _known(attributes["to"], f"{path.name} casts to", "a cast to")
        attributes["to"] = dtype if kind.is_floating_point else kind
    op = node.op_type if own else f"{node.domain}.{node.op_type}"
    return Node(op, node.name, node.input, node.output, attributes, opset)


def _known(number, found, expected):
    """Return PyTorch's dtype of one of ONNX's types; ValueError, in words that go around it, where there is none."""
    if number not in DTYPES:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES.values())
        raise ValueError(f"{found} ONNX's type {number}; expected {expected} one of {known}")
    return DTYPES[number]


def _attribute(attribute, path, dtype):
    value = getattr(attribute, ATTRIBUTES.get(attribute.type, ""), None)  # none of graphs: If and Loop are not run
    return _tensor(value, path, dtype) if isinstance(value, SimpleNamespace) else value


def _tensor(tensor, path, dtype):
    kind = _known(tensor.data_type, f"{path.name} holds {tensor.name!r} as", "numbers of")
    values = _values(tensor, path, kind).reshape(tensor.dims)
    return values.to(dtype) if kind.is_floating_point else values


def _values(tensor, path, kind):
    """Return a tensor's numbers, flat, from whichever field holds them."""
    raw = _beside(tensor, path) if tensor.data_location == 1 else bytearray(tensor.raw_data)  # a copy, which is aligned
    if raw:
        if len(raw) % kind.itemsize:
            raise IndexError(len(raw))
        return torch.frombuffer(raw, dtype=kind)
    if kind in (torch.float16, torch.bfloat16):  # as their bits
        bits = torch.tensor(tensor.int32_data, dtype=torch.int32, device="cpu").to(torch.int16)
        return bits.view(kind)
    numbers = tensor.float_data or tensor.double_data or tensor.int64_data or tensor.int32_data
    return torch.tensor(numbers, dtype=kind, device="cpu")


def _beside(tensor, path):
    """Return the bytes of a weight that is kept in a file of its own, which must lie beside the file."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    name = said.get("location", "")
    if not name or Path(name).name != name:  # no way out of the folder
        raise ValueError(f"{path.name} keeps weights in {name!r}; expected a file beside the ONNX file")
    beside = path.parent / name
    if not beside.is_file():
        raise FileNotFoundError(f"{path.name} keeps its weights in {name}; put that file beside it, into {path.parent}")
    with beside.open("rb") as file:
        file.seek(int(said.get("offset", 0)))
        return bytearray(file.read(int(said.get("length", -1))))

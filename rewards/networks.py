"""What the networks of reward models have in common: how they are made of a file's weights, and how they are run.

Made without a second copy: where neither device nor dtype changes, the file's tensors themselves are the parameters.
Run in their own dtype whatever autocast says, float32 or wider outside, on the device they are on at that moment.
"""

import contextlib
from math import prod

import torch

from ..core.precision import outside_autocast, wide
from . import weights

GRAPH_WIDTH = 16
"""Numbers a layer's graph holds per token and unit of width: 10 with GELU, 14 with quick GELU, and some to run with."""

AT_ONCE = 16
"""Pictures that are judged in one call without gradient: no network is much faster with more, and memory grows."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Those that networks run in."""

CUT = "%s reads %d tokens of a text, and this one has %d; only this counts of it: %s"
"""What a warning says of a text that is too long: name of the file, tokens read and found, the text that is left."""


class Tower:
    """The networks of one file.

    Attributes:
        name: of its file, for messages.
        kind: "CLIP", "ImageReward", "CycleReward", "DINOv2", "SigLIP", "MPS", "ONNX", "FaceNet" or "MTCNN".
        module: the networks; they may be moved to another device from outside.
        on_use: called with the bytes that a run will take before it, if set: the place to load `module` to a device.
        image_size: side of the pixels that it takes.
    """

    def __init__(self, name, kind):
        self.name, self.kind, self.on_use = name, kind, None

    @contextlib.contextmanager
    def running(self, memory=0):
        """Ask for `memory` bytes, and yield the device to run on; autocast is off, which rounds scores and caches."""
        if self.on_use is not None:
            self.on_use(memory)
        device = next(self.module.parameters()).device
        with outside_autocast(device.type):
            yield device


def build(network_of, state, kind, name, device, dtype, wide=(), names=None):
    """Return network_of(state), frozen, on `device`.

    Args:
        network_of: called with the state dict, on the meta device; the sizes are to be read off the weights.
        state: name -> tensor, exactly the network's parameters.
        kind, name: of the network and of the file, for messages.
        dtype: of the parameters; of those whose names begin as one of `wide` float32 or wider.
        names: called with the state dict and the network, where transformers calls parts of it otherwise than the file
            does, and not in every version alike; returns the state dict under the network's names.

    Raises:
        ValueError: the weights are not such a network's.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; expected one of {', '.join(map(str, DTYPES))}")
    odd = [key for key, value in state.items() if not value.is_floating_point()]
    if odd:
        raise ValueError(f"{name} holds {odd[0]} as {state[odd[0]].dtype}; expected floating-point weights")
    state = {key: _placed(value, device, dtype, key.startswith(tuple(wide))) for key, value in state.items()}
    try:
        with torch.device("meta"):
            network = network_of(state)
        if names is not None:
            state = names(state, network)
        network.load_state_dict(state, assign=True)
    except Exception as error:  # weights of other names and shapes can raise nearly anything
        found = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{name} is not a whole {kind} ({found}). Download it again, or take another export of it"
        ) from error
    for module in network.modules():
        for key, buffer in module.named_buffers(recurse=False):  # position_ids, which no file need have
            setattr(module, key, torch.arange(buffer.shape[-1], device=device)[None])
    return network.eval().requires_grad_(False)


def layers(state, prefix):
    """Return the number of layers whose names begin with `prefix` and their number."""
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))


def graph_bytes(network, pixels):
    """Return the most that a vision network of transformers holds for its backward pass, besides weights, in bytes.

    Args:
        network: with a config and parameters.
        pixels: (B, 3, H, W); without `requires_grad` one layer is held at a time.
    """
    config = network.config
    tokens = len(pixels) * (prod(side // config.patch_size for side in pixels.shape[-2:]) + 1)
    depth = config.num_hidden_layers if pixels.requires_grad else 1
    return GRAPH_WIDTH * tokens * depth * config.hidden_size * next(network.parameters()).element_size()


def run(network, pixels, dtype):
    """Return network(pixels) as float32 or wider, with a gradient that float16 does not lose.

    A score's gradient by one of many pixels, times a small weight, is less than the least float16. So each picture's
    gradient enters a float16 network with a largest entry of 1, and the factor is taken out behind it.

    Args:
        network: pixels -> (B, n), each row by its own picture alone.
        pixels: (B, ..).
        dtype: the network's.
    """
    pixels = wide(pixels)
    if dtype != torch.float16 or not pixels.requires_grad:
        return wide(network(pixels))
    pixels = pixels.view_as(pixels)  # a tensor of our own, whose hook is not left on the caller's
    found, scale = wide(network(pixels)), []

    def enter(gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("a float16 network has no second derivatives; expected create_graph=False, or float32")
        scale[:] = [gradient.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)]
        return gradient / scale[0]

    def leave(gradient):
        # Where the pictures are on another device than the network, so is their gradient.
        return gradient * scale[0].to(gradient.device).view(-1, *[1] * (gradient.ndim - 1))

    found.register_hook(enter)
    pixels.register_hook(leave)
    return found


def slices(images):
    """Return the slices of a batch to judge one after another: of all where it has a gradient, else of `AT_ONCE`."""
    size = len(images) if images.requires_grad else AT_ONCE
    return [slice(start, start + size) for start in range(0, len(images), size)]


def check_tower(tower, reward, kinds, sources):
    """Raise ValueError, naming the reward, unless it is a Tower of such a kind; `sources` of `weights.SOURCES` are."""
    if getattr(tower, "kind", None) not in kinds:
        found = f"{tower.name}, of kind {tower.kind}" if isinstance(tower, Tower) else repr(tower)
        raise ValueError(
            f"{reward} needs a tower of kind {' or '.join(kinds)}, which load_tower makes of its file; found {found}."
            f" Use {weights.known_files(sources)}"
        )


def _placed(weight, device, dtype, is_wide):
    kept = torch.promote_types(dtype, torch.float32) if is_wide else dtype
    # A weight made in ComfyUI's inference mode could take part in no gradient; and one that alone is not converted
    # would keep all of its file mapped.
    return weight.to(device, kept, copy=weight.is_inference() or kept != dtype)

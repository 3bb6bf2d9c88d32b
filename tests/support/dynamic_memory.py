"""ComfyUI 0.33's dynamic video memory on the pretend device: each weight is evicted as soon as its layer has run.

Imported in ComfyUI's folder, after the device is made.
"""

import comfy.model_patcher
import comfy_aimdo.host_buffer
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import torch
from comfy.cli_args import args


class Memory:
    """What ComfyUI asks of a `ModelVBAR`; a place in it is (this, number, bytes)."""

    def __init__(self, size, index):
        self.tensors, self.signatures = [], []

    def alloc(self, size):
        self.tensors.append(None)
        self.signatures.append(0)
        return self, len(self.tensors) - 1, size

    def prioritize(self):
        pass

    def loaded_size(self):
        return 0

    def free_memory(self, size):
        return 0


class HostBuffer:
    """Nothing is pinned."""

    size = 0

    def __init__(self, *sizes):
        pass


def tensor_at(place, device):
    memory, number, size = place
    if memory.tensors[number] is None:
        memory.tensors[number] = torch.empty(size, dtype=torch.uint8, device=device)
    return memory.tensors[number]


def evict(place):
    """Overwrite what is there: bytes that read as NaN."""
    memory, number, _ = place
    memory.signatures[number] += 1
    if memory.tensors[number] is not None:
        memory.tensors[number].data.fill_(255)  # .data: nor does autograd notice an eviction


def use():
    """Let models that are made from now on live there."""
    vbar = comfy_aimdo.model_vbar
    vbar.ModelVBAR, vbar.vbar_unpin = Memory, evict
    vbar.vbar_fault = lambda place: place[0].signatures[place[1]]
    vbar.vbar_signature_compare = lambda one, other: one == other
    comfy_aimdo.torch.aimdo_to_tensor, comfy_aimdo.host_buffer.HostBuffer = tensor_at, HostBuffer
    args.disable_pinned_memory = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic

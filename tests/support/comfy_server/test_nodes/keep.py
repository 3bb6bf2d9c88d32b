"""Nodes that carry what a workflow made back to the test, and a text into it."""

import itertools
from pathlib import Path

import folder_paths
import torch
from safetensors.torch import save_file

COUNT = itertools.count()


class AnyType(str):
    """ComfyUI compares types with `!=`: this one fits all."""

    def __ne__(self, other):
        return False


def tensors_of(value) -> dict:
    """The tensors of a LATENT, an IMAGE, a conditioning or any object with tensor attributes, by name."""
    if isinstance(value, torch.Tensor):
        return {"tensor": value}
    names = ("initial", "injected")  # of a DNO_NOISE
    fields = value if isinstance(value, dict) else {name: getattr(value, name, None) for name in names}
    return {name: field for name, field in fields.items() if isinstance(field, torch.Tensor)}


class DNOTestKeep:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"key": ("STRING", {}), "value": (AnyType("*"), {})}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "keep"
    CATEGORY = "tests"

    def keep(self, key, value):
        file = f"kept_{next(COUNT)}.safetensors"
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors_of(value).items()}
        folder = Path(folder_paths.get_output_directory())
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / file)
        return {"ui": {"kept": [[key, file]]}}


class DNOTestText:
    """A text whose output goes into any input, as those of primitives of other packs."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {})}}

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"
    CATEGORY = "tests"

    def give(self, text):
        return (text,)


NODES = (DNOTestKeep, DNOTestText)

"""The embedded model's weights: one half-precision safetensors file, parts told apart by their prefix."""

from pathlib import Path

import torch

from . import configs, vocabulary

PATH = Path(__file__).parent / "model.safetensors"
PARTS = ("unet", "vae", "text", "scorer")
_EMBEDDING = "text_model.embeddings.token_embedding.weight"


def part(name, dtype=torch.float32, path=PATH):
    """Read one part of the model.

    Of the text encoder's token embedding the file holds only the rows of known words; the rows of all other tokens
    come back as zeros.

    Args:
        name: "unet" or "vae" (diffusers' keys), "text" (transformers' keys, with the "text_model." prefix) or "scorer".
        dtype: of the returned tensors.
        path: the weights' file.

    Returns:
        A state dict.

    Raises:
        FileNotFoundError: the weights are not beside this file.
    """
    from safetensors import safe_open

    if name not in PARTS:
        raise ValueError(f"expected one of {', '.join(PARTS)}, found {name!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"the embedded model's weights are missing: expected {path}")
    prefix = name + "."
    with safe_open(path, framework="pt") as file:
        state = {k.removeprefix(prefix): file.get_tensor(k).to(dtype) for k in file.keys() if k.startswith(prefix)}
    if name == "text":
        used = state[_EMBEDDING]
        state[_EMBEDDING] = used.new_zeros(configs.TEXT["vocab_size"], used.shape[1])
        state[_EMBEDDING][list(vocabulary.STORED_IDS)] = used
    return state


def save(parts, path=PATH):
    """Write {part: state dict} in half precision; the text encoder's embedding already holds the used rows only."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{key}": value.detach().to("cpu", torch.float16).contiguous()
        for name, state in parts.items()
        for key, value in state.items()
    }
    save_file(
        tensors,
        path,
        metadata={"format": "pt", "license": "Apache-2.0", "modelspec.title": "comfyui_dno embedded model"},
    )

"""What tells one model's weights from another's, for noise files."""

import hashlib

import torch


@torch.no_grad()
def fingerprint(module):
    """Return 16 hexadecimal digits made from a network's one-dimensional weights (norms and biases).

    These are few, and LoRA leaves them alone. Names and order do not count, so that diffusers' and ComfyUI's forms of
    one Stable Diffusion agree. Values are rounded to float16, so that a float32 model and its float16 copy agree;
    a bfloat16 or float8 copy counts as another model.

    Example:
        >>> float32, float16 = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4).half()
        >>> fingerprint(float32) == fingerprint(float16)
        True
        >>> fingerprint(float32) == fingerprint(torch.nn.LayerNorm(5))
        False
    """
    digests = []
    for parameter in module.parameters():
        if parameter.ndim == 1:
            values = parameter.detach().to("cpu", torch.float16).contiguous().view(torch.int16)
            digests.append(hashlib.sha256(values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]

"""What tells one model's weights from another's, for noise files."""

import hashlib

import torch


@torch.no_grad()
def fingerprint(module):
    """Return 16 hexadecimal digits made from a network's one-dimensional weights (norms and biases).

    These are few, and LoRA leaves them alone. Names and order do not count, so that diffusers' and ComfyUI's forms of
    one Stable Diffusion agree; values are rounded to bfloat16, so that float32, float16 and bfloat16 agree.
    """
    digests = []
    for parameter in module.parameters():
        if parameter.ndim == 1:
            values = parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
            digests.append(hashlib.sha256(values.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]

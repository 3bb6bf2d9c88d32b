"""How exact arithmetic is kept exact: float32 or wider, outside any autocast, and random numbers that a key decides.

The noise, its probability, the steps and the optimiser work on hundreds of thousands of numbers whose mean must be
known to a few parts in a thousand. Half precision cannot, and neither can a matrix product that autocast makes half.
"""

import functools
import hashlib

import torch


def wide(tensor):
    """Return `tensor` in float32, or as it is where it is wider; its graph is kept."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def outside_autocast(function):
    """Make a function compute in its tensors' own dtypes, also where its caller is inside `torch.autocast`.

    The function's first tensor argument says which device's autocast is left.
    """

    @functools.wraps(function)
    def exact(*args, **kwargs):
        kind = next((device_type(value) for value in args if device_type(value)), "cpu")
        if not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return exact


def device_type(value):
    """Return the device type of a tensor, or of the first tensor in a list; None of anything else."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(device_type, value)), None)
    if torch.is_tensor(value):
        return value.device.type
    return device_type(getattr(value, "initial", None)) if hasattr(value, "initial") else None


def mixed_seed(*key):
    """Return a seed that depends on all of `key` (numbers and words) and resembles no other key's, nor a user's own.

    PyTorch's CPU generators look at the lower 32 bits of a seed alone: seeds that are made by adding large constants
    meet those that people type in.

    Returns:
        an int in [0, 2^63).
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def normal(shape, like, *key):
    """Draw normal numbers of `shape` that `key` decides, in the dtype and on the device of `like`.

    CUDA draws them on the device, where it costs nothing; everything else on the CPU, the same on each of them.
    """
    place = like.device if like.device.type == "cuda" else torch.device("cpu")
    generator = torch.Generator(place).manual_seed(mixed_seed(*key))
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=place).to(like.device)

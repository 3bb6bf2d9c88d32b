"""Float32 or wider, whatever autocast says: where rewards leave the caller's settings of precision."""

import contextlib

import torch


def wide(tensor):
    """Return the tensor as float32, or as it is where it is wider.

    Example:
        >>> import torch
        >>> wide(torch.ones(2, dtype=torch.float16)).dtype, wide(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def outside_autocast(device_type):
    """Return a context in which nothing is cast by itself; autocast would round scores, and what is cached of texts.

    Example:
        >>> import torch
        >>> a = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), outside_autocast("cpu"):
        ...     (a @ a).dtype
        torch.float32
    """
    # Asked first: of a device that knows no autocast, or that came with a library of its own, leaving it may raise.
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()

"""How exact arithmetic is kept exact: float32 or wider, outside any autocast, and random numbers that a key decides.

The noise, its probability, the steps and the optimiser work on hundreds of thousands of numbers whose mean must be
known to a few parts in a thousand. Half precision cannot, and neither can a matrix product that autocast makes half.
"""

import contextlib
import functools
import hashlib
import math
import numbers

import torch

from .philox import normals


def wide(tensor):
    """Return `tensor` in float32, or as it is where it is wider; its graph is kept.

    Example:
        >>> import torch
        >>> wide(torch.ones(2, dtype=torch.float16)).dtype, wide(torch.ones(2, dtype=torch.float64)).dtype
        (torch.float32, torch.float64)
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def outside_autocast(device_type):
    """Return a context in which nothing is cast by itself; autocast would round scores and probabilities.

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


def exactly(function):
    """Make a function compute in its tensors' own dtypes, also where its caller is inside `torch.autocast`.

    The function's first tensor, or Noise, says which device's autocast is left.

    Example:
        >>> import torch
        >>> square = exactly(lambda a: a @ a)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     square(torch.ones(2, 2)).dtype
        torch.float32
    """

    @functools.wraps(function)
    def computed(*args, **kwargs):
        kind = next(filter(None, map(_device_type, args)), "cpu")
        with outside_autocast(kind):
            return function(*args, **kwargs)

    return computed


def _device_type(value):
    """Return the device type of a tensor, of the first tensor in a list, or of a Noise; None of anything else."""
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_device_type, value)), None)
    tensor = value if torch.is_tensor(value) else getattr(value, "initial", None)
    return tensor.device.type if torch.is_tensor(tensor) else None


def mixed_seed(*key):
    """Return a seed that depends on all of `key` (numbers and words) and resembles no other key's, nor a user's own.

    PyTorch's CPU generators look at the lower 32 bits of a seed alone: seeds that are made by adding large constants
    meet those that people type in.

    Returns:
        an int in [0, 2^63).

    Example:
        >>> mixed_seed("candidate", 0, 1) == mixed_seed("candidate", 0, 1), mixed_seed("candidate", 0, 1) < 2**20
        (True, False)
    """
    return int.from_bytes(hashlib.sha256(repr(_plain(key)).encode()).digest()[:8], "big") >> 1


def _plain(value):
    """Return a key with Python's own whole numbers: NumPy's are written otherwise."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return int(value) if isinstance(value, numbers.Integral) else value


def normal(shape, like, *key):
    """Draw normal numbers of `shape` that `key` decides, in float32, in the dtype and on the device of `like`.

    The same on every device, up to the rounding of a logarithm and a cosine (`philox.normals`).

    Example:
        >>> import torch
        >>> z = torch.zeros(2)
        >>> torch.equal(normal((2,), z, "candidate", 7), normal((2,), z, "candidate", 7))
        True
    """
    return normals(math.prod(shape), mixed_seed(*key), like.device).view(shape).to(like.dtype)


@contextlib.contextmanager
def repeatable(device, key):
    """Let random numbers of the global generators be those that `key` decides, and leave the generators as found.

    Some patches of models draw them in every call (ToMe, HyperTile), and some decoders: a noise would give another
    picture each time. With None as the key they draw on, as without this.

    Example:
        >>> import torch
        >>> with repeatable(torch.device("cpu"), ("step", 1)):
        ...     first = torch.rand(2)
        >>> with repeatable(torch.device("cpu"), ("step", 1)):
        ...     torch.equal(torch.rand(2), first)
        True

    Args:
        device: the torch.device that is drawn on, beside the CPU.
        key: numbers and words, or None.
    """
    generators = [] if key is None else global_generators(device)
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(mixed_seed(*key))
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def global_generators(device):
    """Return the generators that random numbers come from where none is named: the CPU's and the device's.

    Example:
        >>> import torch
        >>> global_generators(torch.device("cpu")) == [torch.default_generator]
        True
    """
    library = getattr(torch, device.type, None)  # torch.cuda, torch.xpu, torch.mps
    if hasattr(library, "default_generators"):
        index = library.current_device() if device.index is None else device.index
        return [torch.default_generator, library.default_generators[index]]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    return [torch.default_generator]

"""What a Fourier transform can tell: numbers that are rounding error have phases too, and must not be listened to."""

import torch


def heard(spectrum, dims):
    """Return booleans, the shape of a complex spectrum: which frequencies stand above the rounding of the largest.

    Example:
        >>> heard(torch.tensor([1.0 + 0j, 1e-9 + 0j]), dims=0)
        tensor([ True, False])

    Args:
        spectrum: complex.
        dims: over which the largest is taken.
    """
    size = spectrum.abs()
    return size > 8 * torch.finfo(size.dtype).eps * size.amax(dim=dims, keepdim=True)

"""Patterns in the noise that no random permutation can see: its correlation with itself, shifted.

A random permutation scatters every pattern, so that P over permutations sees little but the histogram of z. A blurred
field of the right mean and variance passes. Here z, as it is laid out, is paired with itself shifted by s places: s = 1
is each number's right neighbour, the width W the one below, H W the next channel, C H W the next noise. All n // 2
shifts come from one Fourier transform. [derived here; not in the paper]

    rho_s   = sum_i z_i z_(i+s) / sum_i z_i^2, cyclic
    ln p2   = min(0, ln 2 - m max(sqrt(1 + max_s |rho_s|) - 1 - e, 0)^2 / 2),  m = n // 2
    e       = sqrt(ln n / (2 n)) + ln n / n

This is Lemma 1's ln p2 of the pairing that is worst. z / rms(z), seen as n rows (z_i, z_(i+s)), has the second moments
[[1, rho_s], [rho_s, 1]], so M2 is |rho_s|. Two things differ, since the rows overlap and the worst shift is chosen:

- m. The square root of the larger eigenvalue, sqrt(1 + |rho_s|), is the largest singular value of those rows over
  sqrt(n). A change of z is in two columns, so the value changes by at most sqrt(2 / n) times the change: as much as
  that of n / 2 disjoint rows, which is all that the concentration in Lemma 1's proof needs. The largest over all s
  changes by no more, so that the bound holds of the worst shift without a factor for their number.
- e, in place of sqrt(k / m). It bounds how far the mean of that largest value is above 1, half of E max_s |rho_s|. Each
  n rho_s is a quadratic form in normal numbers with variance n, sub-gamma with scale 2, and the largest of n such, of
  either sign, has a mean of at most sqrt(2 n ln n) + 2 ln n. (A shift by n / 2 has twice the variance, since its pairs
  all come twice; it is one among n / 2 and of no weight in this.)

Of the length of z this says nothing, since z / rms(z) is what it looks at: the other layouts judge that. On true noise
the worst |rho_s| sqrt(n) was at most 6.1 in 243,200 draws of n = 192 to 835,584, and ln p2 falls below 0 from about 8.
"""

import functools
import math

import torch

from .memory import is_out_of_memory
from .precision import exactly, wide


@exactly
def log_pairing_probability(z):
    """Return ln p2 of the worst of all pairings (i, i + s); differentiable by z, in closed form.

    Example:
        >>> true = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> log_pairing_probability(true)
        tensor([0.])
        >>> log_pairing_probability(true[:, :1024].repeat(1, 4)) < -100  # the same numbers four times
        tensor([True])

    Args:
        z: (B, n) noise; computed in float32 or wider.

    Returns:
        (B,), at most 0.
    """
    z = wide(z)
    n = z.shape[-1]
    if n < 2:
        return z.sum(dim=-1) * 0
    usual = math.sqrt(math.log(n) / (2 * n)) + math.log(n) / n
    excess = ((1 + _WorstCorrelation.apply(z).abs()).sqrt() - 1 - usual).clamp(min=0)
    return (math.log(2) - n // 2 * excess.square() / 2).clamp(max=0)


def autocorrelation(z):
    """Return rho_s of the shifts s = 1 .. n // 2, (B, n // 2), of noise z (B, n); 0 where z is 0.

    Example:
        >>> autocorrelation(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
        tensor([[-1.,  1.]])
    """
    return _products(z) / _square(z)


def _products(z):
    """Return sum_i z_i z_(i+s) of the shifts s = 1 .. n // 2, (B, n // 2)."""
    return _correlated(z) if _transforms(z.device) else _correlated(z.cpu()).to(z.device)


@functools.cache
def _transforms(device):
    """Return whether a device has complex numbers and Fourier transforms; DirectML and older Metal have none."""
    try:
        _correlated(torch.ones(1, 8, device=device))
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _correlated(z):
    """Return what `_products` does, on the device of z."""
    n = z.shape[-1]
    power = torch.view_as_real(torch.fft.rfft(z)).square_().sum(dim=-1)
    return torch.fft.irfft(power, n=n)[:, 1 : n // 2 + 1]


class _WorstCorrelation(torch.autograd.Function):
    """rho_s of the shift where it is largest or most negative, (B,).

    Its gradient is (z_(i+s) + z_(i-s) - 2 rho_s z_i) / ||z||^2: two shifted copies, where autograd would transform
    again, twice.
    """

    @staticmethod
    def forward(ctx, z):
        shift = _products(z).abs_().argmax(dim=-1, keepdim=True) + 1
        # Once more by the sum itself, since a transform in float32 is less exact.
        rho = (z * _shifted(z, shift)).sum(dim=-1, keepdim=True) / _square(z)
        ctx.save_for_backward(z, shift, rho)
        return rho[:, 0]

    @staticmethod
    def backward(ctx, gradient):
        z, shift, rho = ctx.saved_tensors
        slope = (_shifted(z, shift) + _shifted(z, -shift)).sub_(2 * rho * z)
        return slope.mul_(gradient[:, None] / _square(z))


def _shifted(z, shift):
    """Return z_(i+s) of noise z (B, n) and shifts (B, 1), picked by place: no shift is waited for on a device."""
    found, n = torch.empty_like(z), z.shape[-1]
    for row, by, shifted in zip(z, shift.to(torch.int32), found, strict=True):
        places = torch.arange(n, dtype=torch.int32, device=z.device).add_(by).remainder_(n)
        torch.index_select(row, 0, places, out=shifted)
    return found


def _square(z):
    """Return ||z||^2, (B, 1); where that is 0, so are all products, and their quotients shall be."""
    return z.square().sum(dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)

"""Patterns in the noise that no random permutation can see: its correlation with itself, shifted.

A random permutation scatters every pattern, so that P over permutations sees little but the histogram of z. A blurred
field of the right mean and variance passes. Here z, as it is laid out, is paired with itself shifted: its noises by u
and the numbers in each of them by v, both cyclic. v = 1 is each number's right neighbour, the width W the one below,
H W the next channel, u = 1 the next noise. All shifts (u, v) but (0, 0) come from one Fourier transform in two
dimensions, whose rows fit a processor's cache: of one row as long as z it would take three times as long. [derived
here; not in the paper]

    rho_s   = sum_i z_i z_(i+s) / sum_i z_i^2, s = (u, v)
    ln p2   = min(0, ln 2 - m max(sqrt(1 + max_s |rho_s|) - 1 - e, 0)^2 / 2),  m = n // 2
    e       = sqrt(ln n / (2 n)) + ln n / n

This is Lemma 1's ln p2 of the pairing that is worst. z / rms(z), seen as n rows (z_i, z_(i+s)), has the second moments
[[1, rho_s], [rho_s, 1]], so M2 is |rho_s|; s and -s are the same pairs. Two things differ, since the rows overlap and
the worst shift is chosen:

- m. The square root of the larger eigenvalue, sqrt(1 + |rho_s|), is the largest singular value of those rows over
  sqrt(n). A change of z is in two columns, so the value changes by at most sqrt(2 / n) times the change: as much as
  that of n / 2 disjoint rows, which is all that the concentration in Lemma 1's proof needs. The largest over all s
  changes by no more, so that the bound holds of the worst shift without a factor for their number.
- e, in place of sqrt(k / m). It bounds how far the mean of that largest value is above 1, half of E max_s |rho_s|. Each
  n rho_s is a quadratic form in normal numbers with variance n, sub-gamma with scale 2, and the largest of n such, of
  either sign, has a mean of at most sqrt(2 n ln n) + 2 ln n. (A shift that is its own opposite, three at most, has
  twice the variance, since its pairs all come twice; among n / 2 these are of no weight in this.)

Of the length of z this says nothing, since z / rms(z) is what it looks at: the other layouts judge that. On true noise
the worst |rho_s| sqrt(n) was at most 6.7 in 369,000 draws of n = 192 to 3,276,800, of one noise to 51, and ln p2 falls
below 0 from about 8.
"""

import functools
import math

import torch

from .memory import is_out_of_memory
from .precision import exactly, wide


@exactly
def log_pairing_probability(z, noises=1):
    """Return ln p2 of the worst of all pairings (i, i + s); differentiable by z, in closed form.

    Example:
        >>> true = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> log_pairing_probability(true)
        tensor([0.])
        >>> log_pairing_probability(true[:, :1024].repeat(1, 4)) < -100  # the same numbers four times
        tensor([True])

    Args:
        z: (B, n) noise; computed in float32 or wider.
        noises: how many noises of one length z consists of.

    Returns:
        (B,), at most 0.

    Raises:
        ValueError: n is no multiple of `noises`.
    """
    z = wide(z)
    n = z.shape[-1]
    if n % noises:
        raise ValueError(f"z has {n} numbers, of {noises} noises; expected as many numbers of each")
    if n < 2:
        return z.sum(dim=-1) * 0
    usual = math.sqrt(math.log(n) / (2 * n)) + math.log(n) / n
    worst = _WorstCorrelation.apply(z.unflatten(-1, (noises, n // noises)))
    excess = ((1 + worst.abs()).sqrt() - 1 - usual).clamp(min=0)
    return (math.log(2) - n // 2 * excess.square() / 2).clamp(max=0)


def autocorrelation(z):
    """Return rho_s of the shifts s = (u, v), (B, noises // 2 + 1, numbers), of noise z (B, noises, numbers).

    A shift by more than half of the noises is the opposite of one that is there. 0 where z is 0.

    Example:
        >>> autocorrelation(torch.tensor([[[1.0, -1.0, 1.0, -1.0]]]))
        tensor([[[ 1., -1.,  1., -1.]]])
    """
    products = _products(z)
    return products / _square(products[:, :1, :1])


def _products(z):
    """Return sum_i z_i z_(i+s) of the shifts s, (B, noises // 2 + 1, numbers), of z (B, noises, numbers)."""
    return _correlated(z) if _transforms(z.device) else _correlated(z.cpu()).to(z.device)


@functools.cache
def _transforms(device):
    """Return whether a device has complex numbers and Fourier transforms; DirectML and older Metal have none."""
    try:
        _correlated(torch.ones(1, 2, 4, device=device))
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _correlated(z):
    """Return what `_products` does, on the device of z."""
    spectrum = torch.fft.rfft2(z)
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    # This is ihfft, but for its conjugate, a mark on the tensor that not every device's library reads.
    half = torch.fft.rfft(power, dim=1, norm="forward").conj_physical()
    return torch.fft.irfft(half, n=z.shape[2])


class _WorstCorrelation(torch.autograd.Function):
    """rho_s of the shift where it is largest or most negative, (B,), of noise z (B, noises, numbers).

    Its gradient is (z_(i+s) + z_(i-s) - 2 rho_s z_i) / ||z||^2: two shifted copies, where autograd would transform
    again, twice.
    """

    @staticmethod
    def forward(ctx, z):
        products = _products(z).flatten(1)
        square = _square(products[:, :1])
        products[:, 0] = 0  # not shifted at all
        shift = products.abs().argmax(dim=-1, keepdim=True)
        rho = products.gather(-1, shift) / square
        ctx.save_for_backward(z, shift, rho, square)
        return rho[:, 0]

    @staticmethod
    def backward(ctx, gradient):
        z, shift, rho, square = ctx.saved_tensors
        u, v = shift[:, 0] // z.shape[-1], shift[:, 0] % z.shape[-1]
        slope = _shifted(z, u, v).add_(_shifted(z, -u, -v)).sub_(2 * rho[..., None] * z)
        return slope.mul_((gradient[:, None] / square)[..., None])


def _shifted(z, u, v):
    """Return z_(i+s) of noise z (B, noises, numbers) and shifts s = (u, v), (B,) each.

    Picked by place: no shift is waited for on a device.
    """
    noises, numbers = z.shape[1:]
    rows, columns = (torch.arange(count, dtype=torch.int32, device=z.device) for count in (noises, numbers))
    found = torch.empty_like(z)
    for one, by, beside, shifted in zip(z, u.to(torch.int32), v.to(torch.int32), found, strict=True):
        places = ((rows + by) % noises * numbers)[:, None] + (columns + beside) % numbers
        torch.index_select(one.flatten(), 0, places.flatten(), out=shifted.view(-1))
    return found


def _square(unshifted):
    """Return ||z||^2 from the product of z with itself; where it is 0, so are all products, and their quotients."""
    return unshifted.clamp(min=torch.finfo(unshifted.dtype).tiny)

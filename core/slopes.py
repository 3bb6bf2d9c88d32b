"""Whether autograd's gradient through a model is that of differences: for models and patches that nobody has tried.

A network that detaches a part of what it computes, by a kernel, a cache or a conversion to numbers, has a gradient that
is wrong without a word, and a search by it climbs nowhere in particular. So a search that needs gradients first moves x
a little, at one noise level, and compares.
"""

import contextlib
from functools import partial

import torch

from .precision import normal

# Lengths of the differences, in parts of x. Twice as long ones are taken only where these disagree with autograd, and
# the next length only where the two tell nothing: in half precision short differences are mostly rounding.
LENGTHS = 1e-2, 5e-2, 1e-1

# Where autograd's slope is off by more than WRONG, it is wrong: a network that detaches a half of its result is off by
# a half. Where two differences differ by more than UNCLEAR, in parts of their size, they tell nothing. Below, the
# shorter is off by less than WRONG: by a third of UNCLEAR if they differ by curvature, by its square if by rounding.
UNCLEAR, WRONG = 0.2, 0.1


def refuse_a_wrong_gradient(denoise, network, x, sigma, in_place):
    """Raise RuntimeError where the gradient through a model is not that of differences.

    What is compared is each result of the network and the denoised that guidance makes of them: the derivative along a
    random direction by differences, D, with autograd's, of which <D, J direction> is all that one backward pass gives.

    Args:
        denoise: denoise(x, sigma) -> denoised, which runs `network`.
        network: the module inside the model.
        x: (B, ..), the scaled sample at `sigma`.
        sigma: (B,).
        in_place: the `InPlace` of the `SampleMap`.

    Example:
        >>> from comfyui_dno.core.in_place import InPlace
        >>> network = torch.nn.Linear(8, 8)
        >>> x, sigma = torch.randn(2, 8), torch.ones(2)
        >>> refuse_a_wrong_gradient(lambda x, sigma: x - network(x), network, x, sigma, InPlace())
    """
    direction = normal(x.shape, x, "check of the model's gradient") * x.std()
    for length in LENGTHS:
        with torch.no_grad():
            slopes = _differences(denoise, network, x, sigma, direction, length)
        by_autograd = partial(_products, denoise, network, x, sigma, direction, slopes)
        found, expected = in_place.differentiate("model", by_autograd), sum(bool(slope.any()) for slope in slopes)
        if not abs(found - expected) > WRONG * expected:  # also where they are no numbers: the search tells of it
            return
        with torch.no_grad():
            longer = _differences(denoise, network, x, sigma, direction, 2 * length)
        if all((b - a).norm() <= UNCLEAR * a.norm() for a, b in zip(slopes, longer, strict=True)):
            raise RuntimeError(
                f"the gradient through this model is wrong: by autograd its results change {found / expected:.2f} times"
                " as fast as they do. Something in it detaches a part of what it computes: a kernel, a quantisation or"
                " a cache that knows no gradients, or a model family that is newer than this pack. Remove nodes that"
                " patch the model, or use a solver that needs no gradient (ZeNO, Search)"
            )


def _differences(denoise, network, x, sigma, direction, length):
    """Return the derivative of each result along `direction`, by central differences of this length."""
    ends = [_results(denoise, network, x + sign * length * direction, sigma) for sign in (1, -1)]
    return [(ahead - behind) / (2 * length) for ahead, behind in zip(*ends, strict=True)]


def _products(denoise, network, x, sigma, direction, slopes):
    """Return the sum of <slope, J direction> / |slope|^2 by autograd: how many results change, where it is right."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        # The last ones: a call in which autograd refuses an operation may have been made once more.
        found = _results(denoise, network, x, sigma)[-len(slopes) :]
        weights = [slope / slope.square().sum().clamp(min=1e-30) for slope in slopes]
        # Scaled to a largest entry of 1, so that the way back through half precision loses nothing.
        scale = max(weight.abs().max() for weight in weights).clamp(min=1e-30)
        pairs = [(part, weight / scale) for part, weight in zip(found, weights, strict=True) if part.requires_grad]
        parts, incoming = zip(*pairs, strict=True)
        (gradient,) = torch.autograd.grad(parts, x, incoming)
    return float((gradient * direction).sum() * scale)


def _results(denoise, network, x, sigma):
    """Return all that the network returns while x is denoised, and the denoised, in float32."""
    with _kept_results(network) as found:
        denoised = denoise(x, sigma)
    return [part.float() for part in (*found, denoised)]


@contextlib.contextmanager
def _kept_results(network):
    """Give a list that takes a copy of every tensor that the network returns."""
    found = []

    def keep(_module, _args, output):
        parts = output if isinstance(output, (list, tuple)) else [output]
        found.extend(part.clone() for part in parts if torch.is_tensor(part))

    hook = network.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()

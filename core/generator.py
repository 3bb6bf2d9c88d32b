"""Any function from noise to samples as a map: a GAN, a flow, a simulator, and samples that are no pictures.

    z (B, *shape) --function--> sample (B, ..)

In the words of `SampleMap` it is one step whose denoised is the sample, with nothing to decode. So whatever searches
noise for pictures searches it for other things too: a chain of points in space, a sound, a molecule's angles.
"""

from dataclasses import dataclass

import torch

from .sample_map import SampleMap
from .schedule import Schedule


def generator_map(function, shape, batch=1, most_rows=None, device=None, name=None):
    """Return the map of a generator that is a function of its noise alone.

    Solvers that need no gradient (ZeNO, Search, TRS) only call the function, without any graph; with those that climb a
    gradient it must be differentiable for autograd, and so must the reward. A reward is asked as reward(samples, None).

    Example:
        >>> def walk(noise):  # a sound: a random walk of 64 steps
        ...     return noise.cumsum(dim=1) / 8
        >>> def loudness(samples, prompts=None):
        ...     return samples.square().mean(dim=1)
        >>> sample_map = generator_map(walk, (64,))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, loudness, noise, core.ZeNO(candidates=8), iterations=5)
        >>> loudness(result.images) > loudness(walk(noise.initial))  # what is found is called images, whatever it is
        tensor([True])

    Args:
        function: noise (rows, *shape), normal numbers of unit variance, float32 -> samples (rows, ..), floating point.
            It must be a pure function that treats its rows alike and apart, for any number of rows.
        shape: of one sample's noise, such as (512,) or (4, 64, 64).
        batch: B, how many samples are searched at the same time, each by itself.
        most_rows: most samples made in one call when candidates are tried; None: all at once.
        device: where the noise belongs; None: wherever it is.
        name: tells this generator from others; saved with a noise, which then starts no search of another's.

    Returns:
        SampleMap. Samples (B, C, H, W) of 1 or 3 channels in [0, 1] are pictures to rewards and plots. Of any other
        shape they are whatever the reward takes them for; those with four dimensions each are refused, since they
        would be taken for videos.
    """
    return SampleMap(
        _Generator(function), Schedule((1.0, 0.0)), (batch, *shape), eta=0.0, start=_as_it_is, most_rows=most_rows,
        device=device, model=name,
    )  # fmt: skip


@dataclass(frozen=True)
class _Generator:
    """A function of noise as a `denoise(x, sigma)` that checks what it gives."""

    function: object

    def __call__(self, x, sigma):
        sample = self.function(x)
        if not torch.is_tensor(sample) or not sample.is_floating_point() or sample.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"the generator gave {_in_words(sample)} for {len(x)} noises; expected floats ({len(x)}, ..)"
            )
        if not 2 <= sample.ndim <= 4:
            raise ValueError(
                f"the generator gave samples of shape {tuple(sample.shape[1:])}; expected one to three dimensions. Make"
                " a single number a vector of one, and flatten what has more"
            )
        if torch.is_grad_enabled() and x.requires_grad and not sample.requires_grad:
            raise ValueError(
                "the generator gave samples without gradient, which this solver needs; expected a function that"
                " autograd can differentiate. Take a solver that needs none: ZeNO, Search or TRS"
            )
        return sample


def _in_words(value):
    return f"{value.dtype} {tuple(value.shape)}" if torch.is_tensor(value) else f"a {type(value).__name__}"


def _as_it_is(noise):
    return noise

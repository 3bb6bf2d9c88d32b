"""What a sampler of k-diffusion's kind asks for, found by running it on a tiny latent with a made-up network.

    which noises it asks for, and how often it calls the network
    whether it can be searched at all: the same noise gives the same picture, whatever else is in the batch
    whether its gradient is right: compared with a difference

So any sampler can be taken that keeps to the convention of `sampler_map.py`, and one that does not is known before the
real network is called.
"""

from dataclasses import dataclass, replace

import torch

from .noise import Noise
from .sampler_map import SamplerMap, SamplerTraits
from .schedule import Schedule

SHAPE = (2, 4, 2, 2)
"""Of the tiny latent: two pictures, to see whether one depends on the other."""


@dataclass(frozen=True)
class _Precision:
    """How closely runs are compared.

    Attributes:
        dtype: of the tiny latent.
        same: relative difference above which two results are not the same, far above what rounding makes.
        step: of the central difference, a compromise of rounding and curvature.
        gradient: relative difference from it above which the gradient is wrong. One that leaves out a part of the way
            is some per cent off.
    """

    dtype: torch.dtype
    same: float
    step: float
    gradient: float


PRECISIONS = (_Precision(torch.float64, 1e-9, 1e-5, 1e-4), _Precision(torch.float32, 1e-4, 1e-2, 1e-2))
"""Double first: some samplers, like ComfyUI's uni_pc, make tensors of their own in single precision."""


class CannotBeSearchedError(ValueError):
    """Why a sampler cannot be searched."""


def try_sampler(sampler, sigmas, brownian=False, denoise=None, judge_denoised=False):
    """Return the `SamplerTraits` of a sampler at these sigmas.

    Example:
        >>> def ancestral(model, x, sigmas, noise_sampler, callback):  # to denoised, then noise of the next level
        ...     for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        ...         x = model(x, sigma.expand(len(x)))
        ...         if sigma_next > 0:
        ...             x = x + sigma_next * noise_sampler(sigma, sigma_next)
        ...     return x
        >>> try_sampler(ancestral, [4.0, 2.0, 1.0, 0.0])
        SamplerTraits(intervals=((4.0, 2.0), (2.0, 1.0)), calls=3, brownian=False, silent=(), wrong_gradient='')

    Args:
        sampler: (model, x, sigmas, noise_sampler, callback) -> x.
        sigmas: the noise levels, a sequence or a 1-d tensor on the device where they will be used.
        brownian: whether the sampler's noises are parts of one Brownian motion.
        denoise: the made-up network, smooth and of each row alone; None: one that suits most samplers.
        judge_denoised: whether the map's latent will be what the sampler last told as denoised.

    Raises:
        CannotBeSearchedError: no solver can search this sampler's noise.
    """
    with torch.inference_mode(False):
        sigmas = torch.as_tensor(sigmas).clone()
        for precision in PRECISIONS:
            trial = _Trial(sampler, sigmas, denoise or wavy, precision, judge_denoised)
            try:
                traits = SamplerTraits(*trial.asked(), brownian)
                trial.check(traits)
                return trial.differentiated(traits)
            except CannotBeSearchedError as error:
                refused = error
        raise refused


def wavy(x, sigma):
    """Return what a made-up network finds: smooth, of each row alone, and nowhere linear.

    Example:
        >>> wavy(torch.tensor([[0.0]]), torch.tensor([1.0]))
        tensor([[0.]])
    """
    u = x / (1 + sigma.view(-1, *[1] * (x.ndim - 1)) ** 2).sqrt()
    return 0.7 * u.sin() + 0.3 * u


@dataclass
class _Trial:
    """Runs of a sampler on the tiny latent."""

    sampler: object
    sigmas: torch.Tensor
    denoise: object
    precision: _Precision
    judge_denoised: bool

    @torch.no_grad()
    def asked(self):
        """Return the intervals that it asks noise for, and the number of its network calls.

        In the real sigmas' dtype and on their device: ends of intervals shall be the very numbers of real runs.
        """
        first, again = (self._asked(self._drawn(seed, SHAPE).to(self.sigmas)) for seed in (0, 1))
        if first != again:
            raise CannotBeSearchedError(
                "the sampler chooses its steps by the picture, so that a noise is not always for the same step; use one"
                " with fixed steps"
            )
        intervals, levels, told = first
        if self.judge_denoised and not told:
            raise CannotBeSearchedError(
                "the sampler never calls its callback, which here must tell what is to be judged: the sigmas end above"
                " 0, so the last sample has noise left in it. Use sigmas that end at 0, or another sampler"
            )
        return intervals, len(levels)

    def _asked(self, x):
        intervals, levels, told = [], [], []

        def noise_sampler(sigma, sigma_next):
            intervals.append((float(sigma), float(sigma_next)))
            return torch.zeros_like(x)

        def model(x, sigma):
            levels.append(float(sigma[0]))
            return self.denoise(x, sigma)

        with _explained():
            self.sampler(model, self.sigmas[0] * x, self.sigmas.clone(), noise_sampler, told.append)
        return tuple(intervals), tuple(levels), len(told)

    def check(self, traits):
        """Raise where the picture of a noise is not that noise's alone."""
        sample_map, noise = self._map(traits), self._noise(traits)
        with _explained():
            first = sample_map.latent(noise)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed() + 1)
                again = sample_map.latent(noise)
            alone = replace(sample_map, shape=(1, *SHAPE[1:])).latent(noise.item(0))
        if not first.isfinite().all():
            raise CannotBeSearchedError("the sampler's result is not finite at these sigmas; use others")
        if _difference(again, first) > self.precision.same:
            raise CannotBeSearchedError(
                "the sampler draws random numbers of its own, which cannot be searched; use one that takes a"
                " noise_sampler, or an option that switches them off (s_churn 0)"
            )
        if _difference(alone, first[:1]) > self.precision.same:
            raise CannotBeSearchedError("the sampler lets the pictures of a batch depend on each other; use another")

    def differentiated(self, traits):
        """Return the traits with what only the gradient shows: noises without effect, and whether it is right."""
        sample_map, noise = self._map(traits), self._noise(traits)
        gradient, wrong = self._differentiated(sample_map, noise)
        if self.judge_denoised and not wrong:
            _, wrong = self._differentiated(replace(sample_map, judge_denoised=True), noise)
        if wrong or traits.brownian:
            return replace(traits, wrong_gradient=wrong)
        silent = [number for number, part in enumerate(gradient.injected) if not part.any()]
        return replace(traits, silent=tuple(silent))

    def _differentiated(self, sample_map, noise):
        """Return the gradient by the noise, or None, and what is wrong with it, or ''."""
        weights = self._drawn(3, SHAPE)
        try:
            gradient = sample_map.pullback(noise)[1].from_latent(weights)
        except RuntimeError as error:
            return None, f"it cannot be differentiated ({str(error).splitlines()[0]})"
        flat, direction = noise.flat(), self._drawn(4, noise.flat().shape)
        step = self.precision.step * direction
        ahead, behind = (sample_map.latent(noise.with_flat(flat + sign * step)) for sign in (1, -1))
        expected = ((ahead - behind) * weights).sum() / (2 * self.precision.step)
        found = (gradient.flat() * direction).sum()
        if (found - expected).abs() > self.precision.gradient * expected.abs():
            return gradient, "a part of its gradient is missing"
        return gradient, ""

    def _map(self, traits):
        schedule = Schedule(self.sigmas.tolist())
        return SamplerMap(self.denoise, schedule, SHAPE, sampler=self.sampler, traits=traits)

    def _noise(self, traits):
        return Noise(self._drawn(0, SHAPE), self._drawn(2, (len(traits.cells), *SHAPE)))

    def _drawn(self, seed, shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=self.precision.dtype)


class _explained:
    """Says that it was a trial where a sampler raises."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Exception) and not isinstance(error, CannotBeSearchedError):
            raise CannotBeSearchedError(
                f"the sampler failed on a tiny latent ({kind.__name__}: {error}); use another"
            ) from error


def _difference(found, expected):
    return (found - expected).abs().max() / expected.abs().max()

"""How much the model itself believes in a picture: the loss it was trained by, on the latent that a search has found.

A reward can be pleased by pictures that the model would not make. P(z) judges the noise alone and misses some of them,
because a likely noise may sample to an unlikely picture. So the model is asked about the picture [ours]: add noise to
the latent x0 and see how well the network takes it away again.

    x           = alpha x0 + sigma e                                   e ~ N(0, I), a few fixed ones
    loss(sigma) = mean over e and entries of (D(x, sigma) - x0)^2 / sigma^2          with the prompt, without guidance
    gap(sigma)  = the same without the prompt - loss(sigma)

A high loss: no picture of this model. A low gap: a picture, but of something else than the prompt, which explains
nothing of it (the score of a diffusion classifier, Li et al. 2023). Both depend on the prompt, so they are told in
standard deviations of the same numbers over ordinary samples of it.

For every family the loss is that of its training. With k-diffusion's x = x0 + sigma e and D = x - sigma eps,
D - x0 = sigma (e - eps): the error of the noise. For rectified flow, x = (1 - t) x0 + t e and D = x - t v, so that
D - x0 = t ((e - x0) - v): the error of the velocity [derived]. Levels are told by the ratio of noise to signal,
sigma / alpha: sigma itself in k-diffusion's form, t = ratio / (1 + ratio) for flow.
"""

from dataclasses import dataclass, field

import torch

from .checks import check_positive, check_whole
from .noise import Noise
from .precision import mixed_seed, normal, outside_autocast, wide
from .sample_map import SampleMap

LEAST_SPREAD = 1e-3
"""Of ordinary samples' mean loss, the least that counts as their standard deviation: less is rounding."""


@dataclass
class Belief:
    """How far a searched picture is from what the model makes of its prompt, in standard deviations; watch it.

    The smaller of two: how far the loss is above that of ordinary samples, as a number below 0, and how far the gap is
    below theirs. Ordinary samples score about 0. It judges latents, so it cannot be a reward of pictures: it is
    watched, and may have a floor, or end the search.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> belief, noise = core.Belief(sample_map), sample_map.randn(seed=0)
        >>> result = core.optimize(
        ...     sample_map, rewards.Brightness(), noise, core.GradientAscent(0.3), iterations=9, watch=[belief],
        ...     floors={"belief": -4.0},
        ... )
        >>> result.history.watched, result.history.best_row["watch/belief"][0] >= -4
        (['belief', 'belief loss'], True)

    Attributes:
        sample_map: of the search.
        ratios: the noise levels, as ratios of noise to signal.
        noises: how many are added to each latent at each level.
        samples: how many ordinary samples it is compared with, drawn once, at the first call.
        initial: x_T of the ordinary samples, (B, ..), where it is no noise; None: it is drawn.
        name: what histories and floors call it; what it is made of are "<name> loss" and "<name> gap".
    """

    sample_map: SampleMap
    ratios: tuple = (1.5, 3.0)
    noises: int = 4
    samples: int = 8
    initial: torch.Tensor | None = None
    name: str = "belief"
    _ordinary: list | None = field(default=None, init=False, repr=False, compare=False)

    of_latents = True
    differentiable = False

    def __post_init__(self):
        if not self.ratios:
            raise ValueError("there are no noise levels to ask the model at; expected one or more ratios > 0")
        for ratio in self.ratios:
            check_positive(ratio=ratio)
        check_whole(1, noises=self.noises)
        check_whole(2, samples=self.samples)

    def __call__(self, latent, prompts=None):
        """Return (B,) scores of latents, (B, ..) of the map's shape; the prompts are the map's own."""
        return self.part_scores(latent, prompts)[self.name]

    @property
    def part_settings(self):
        """Name -> the settings of what it records, JSON types."""
        settings = {"ratios": list(self.ratios), "noises": self.noises, "samples": self.samples}
        parts = ["loss", "gap"] if self.sample_map.unguided else ["loss"]
        return {self.name: settings} | {f"{self.name} {part}": {} for part in parts}

    @torch.no_grad()
    def part_scores(self, latent, prompts=None):
        """Return name -> (B,): the belief, and what it is the smaller of; without a gap where the map knows none."""
        with outside_autocast(latent.device.type):
            if self._ordinary is None:
                self._ordinary = [self._measured(each) for each in self._samples(latent)]
            loss, gap = self._measured(wide(latent))
            losses, gaps = zip(*self._ordinary, strict=True)
            losses = torch.stack(losses)
            parts = {f"{self.name} loss": -_deviations(loss, losses, losses)}
            if gap is not None:
                parts[f"{self.name} gap"] = _deviations(gap, torch.stack(gaps), losses)
        return {self.name: torch.stack([*parts.values()]).amin(dim=0)} | parts

    def _measured(self, latent):
        """Return (levels, B) losses and gaps, means over the noises."""
        noises = fixed_noises(latent, self.noises)
        found = [denoising_losses(self.sample_map, latent, ratio, noises) for ratio in self.ratios]
        losses, gaps = zip(*found, strict=True)
        loss = torch.stack(losses).mean(dim=1)
        return loss, None if gaps[0] is None else torch.stack(gaps).mean(dim=1)

    def _samples(self, latent):
        """Return the latents of the ordinary samples, one batch each; every picture of a batch has the same noises."""
        sample_map, found = self.sample_map, []
        drawn = [self._drawn(index).to(wide(latent)) for index in range(self.samples)]
        size = sample_map.candidates_in_one_call(self.samples)
        for part in (drawn[first : first + size] for first in range(0, self.samples, size)):
            together = part[0].with_flat(torch.cat([noise.flat() for noise in part]))
            found += wide(sample_map.latent(together)).split(len(latent))
        return found

    def _drawn(self, index):
        """Return the noise of one ordinary sample."""
        one = Noise.randn((1, *self.sample_map.shape[1:]), self.sample_map.injected, mixed_seed("belief", index))
        initial, injected = one.initial.expand(self.sample_map.shape), one.injected.expand(-1, *self.sample_map.shape)
        return Noise(initial if self.initial is None else self.initial.to(initial), injected)


def _deviations(value, ordinary, losses):
    """Return (B,), how many standard deviations `value` is above the mean of `ordinary`, the mean over the levels.

    Args:
        value: (levels, B).
        ordinary: (n, levels, B).
        losses: (n, levels, B), of the ordinary samples, whose size says what is rounding.
    """
    least = (LEAST_SPREAD * losses.mean(dim=0)).clamp(min=torch.finfo(losses.dtype).tiny)
    return ((value - ordinary.mean(dim=0)) / ordinary.std(dim=0).maximum(least)).mean(dim=0)


def denoising_losses(sample_map, latent, ratio, noises):
    """Return the denoising losses of latents at one noise level.

    Args:
        sample_map: whose model is asked.
        latent: (B, ..), of the map's shape.
        ratio: of noise to signal, > 0.
        noises: (k, 1, ..), the noises e, each for all B latents.

    Returns:
        loss: (k, B), with the prompt.
        gap: (k, B), the loss without the prompt less that with it; None where the map knows none without.
    """
    alpha, sigma = levels_of(ratio, sample_map.schedule.family)
    entries = searched_entries(sample_map, latent)
    losses, gaps = [], []
    for part in noises.tensor_split(sample_map.calls(len(noises))):
        x = alpha * latent + sigma * sample_map.schedule.s_noise * part
        cond, uncond = unguided(sample_map, x.flatten(0, 1), sigma)
        losses.append(_loss(cond, latent, sigma, entries))
        if uncond is not None:
            gaps.append(_loss(uncond, latent, sigma, entries) - losses[-1])
    return torch.cat(losses), torch.cat(gaps) if gaps else None


def levels_of(ratio, family):
    """Return (alpha, sigma), the levels of signal and noise whose ratio is sigma / alpha."""
    return (1.0, ratio) if family == "vp" else (1 / (1 + ratio), ratio / (1 + ratio))


def unguided(sample_map, x, sigma):
    """Return denoised with the prompt and without it, or None; of a map that knows neither its own denoised."""
    sigma = x.new_full((len(x),), sigma)
    return sample_map.unguided(x, sigma) if sample_map.unguided else (sample_map.denoise(x, sigma), None)


def searched_entries(sample_map, latent):
    """Return booleans, the shape of the latent: where it is searched, and everywhere in one that is kept whole."""
    if sample_map.mask is None:
        return torch.ones_like(latent, dtype=torch.bool)
    free = (sample_map.mask > 0).to(latent.device).expand(latent.shape)
    return free | ~free.flatten(1).any(dim=1).view(-1, *[1] * (latent.ndim - 1))


def _loss(denoised, latent, sigma, entries):
    """Return (k, B), the mean square error of denoised (k * B, ..), in units of sigma^2, over the entries."""
    error = ((denoised.unflatten(0, (-1, len(latent))) - latent) / sigma).square() * entries
    return error.flatten(2).sum(dim=2) / entries.flatten(1).sum(dim=1)


def fixed_noises(like, count, seed=0):
    """Return (count, 1, ..), the noises that are added to every latent of the shape of `like`, (B, ..)."""
    # In float32 whatever the latent is, so that they are the same numbers.
    shape = (1, *like.shape[1:])
    return torch.stack([normal(shape, like.float(), "belief", seed, index) for index in range(count)])

"""How much the model itself believes in a picture: the loss it was trained by, on the latent that a search has found.

A reward can be pleased by pictures that the model would not make. P(z) judges the noise alone and misses some of them,
because a likely noise may sample to an unlikely picture. So the model is asked about the picture [ours]: add noise to
the latent x0, and see how well the network takes it away again, and how much the prompt helps.

    x             = alpha x0 + sigma e                                 e ~ N(0, I), a few fixed ones
    loss(sigma)   = mean over e and entries of (D(x, sigma) - x0)^2 / sigma^2            without guidance
    evidence      = mean over sigma of ln (loss without the prompt / loss with it)
    belief        = evidence / evidence of ordinary samples of the prompt

The belief is 1 for ordinary samples and 0 for what the prompt explains nothing of: for no picture at all, where both
losses are large alike, and for a picture of something else. The difference of the two losses is what a diffusion
classifier goes by (Li et al. 2023); their ratio was the better judge of searched pictures, see docs/results.md.

Where there is no model without the prompt (Flux), or the prompt explains nothing of ordinary samples either, the
belief is how small the loss with it is, the ordinary samples' loss / loss (geometric means over sigma): a weaker judge.

For every family the loss is that of its training. With k-diffusion's x = x0 + sigma e and D = x - sigma eps,
D - x0 = sigma (e - eps): the error of the noise. For rectified flow, x = (1 - t) x0 + t e and D = x - t v, so that
D - x0 = t ((e - x0) - v): the error of the velocity [derived]. Levels are told by the ratio of noise to signal,
sigma / alpha: sigma itself in k-diffusion's form, t = ratio / (1 + ratio) for flow. At one level the two losses differ
by a constant factor, so the belief is the same.
"""

from dataclasses import dataclass, field, replace

import torch

from .checks import check_positive, check_whole
from .noise import Noise
from .precision import mixed_seed, normal, outside_autocast, wide
from .sample_map import SampleMap

LEAST_EVIDENCE = 1e-3
"""Of ordinary samples, the least that says something: where there is less, the prompt explains nothing of them."""


@dataclass(frozen=True)
class Belief:
    """How much the searched model believes in a picture: 1 as in ordinary ones of the prompt, 0 not at all.

    It judges latents, so it cannot be what is optimised: it is watched, may have a floor, or end the search.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise, solver = sample_map.randn(seed=0), core.GradientAscent(0.1)
        >>> watch, floors = [core.Belief()], {"belief": 0.5}
        >>> result = core.optimize(
        ...     sample_map, rewards.Brightness(), noise, solver, iterations=9, watch=watch, floors=floors
        ... )
        >>> result.history.best_row["watch/belief"][0] >= 0.5
        True
        >>> core.Belief().of(sample_map)(result.latent).shape  # outside of a search
        torch.Size([1])

    Attributes:
        ratios: the noise levels, as ratios of noise to signal.
        noises: how many are added to each latent at each level. An evaluation costs so many rows of network calls for
            each picture, times the levels, twice.
        samples: how many ordinary samples it is compared with, drawn at the first call.
        sample_map: of the search, which `optimize` fills in.
        initial: x_T of the ordinary samples, (B, ..), where it is no noise; None: it is drawn.
    """

    ratios: tuple = (6.0, 12.0)
    noises: int = 4
    samples: int = 4
    sample_map: SampleMap | None = None
    initial: torch.Tensor | None = None
    _ordinary: list = field(default_factory=list, init=False, repr=False, compare=False)

    name = "belief"
    of_latents = True

    def __post_init__(self):
        if not self.ratios:
            raise ValueError("there are no noise levels to ask the model at; expected one or more ratios > 0")
        for ratio in self.ratios:
            check_positive(ratio=ratio)
        check_whole(1, noises=self.noises, samples=self.samples)

    def of(self, sample_map, noise=None):
        """Return the belief of a map's model, ready to be asked.

        Args:
            sample_map: the SampleMap.
            noise: where a search starts: where its x_T is all zeros, and so no noise, that of ordinary samples is too.
        """
        keeps = noise is not None and not noise.initial.any()
        return replace(self, sample_map=sample_map, initial=noise.initial if keeps else None)

    def stages(self, sample_map):
        """Return how often the ordinary samples call a map's `on_step`, for progress bars."""
        return sample_map.network_calls * sample_map.calls(self.samples)

    def __call__(self, latent, prompts=None):
        """Return (B,) scores of latents, (B, ..) of the map's shape; the prompts are the map's own."""
        return self.part_scores(latent, prompts)[self.name]

    @property
    def part_settings(self):
        """Name -> the settings of what it records, JSON types."""
        settings = {"ratios": list(self.ratios), "noises": self.noises, "samples": self.samples}
        return {self.name: settings, f"{self.name} loss": {}}

    @torch.no_grad()
    def part_scores(self, latent, prompts=None):
        """Return name -> (B,): the belief, and "belief loss", what it would be by the loss with the prompt alone."""
        if self.sample_map is None:
            raise ValueError(
                "a belief is that of the model which is searched, in what the search has found; expected it to be"
                " watched (in ComfyUI: the watch input of a DNO Sampler), or asked as belief.of(sample_map)"
            )
        with outside_autocast(latent.device.type):
            if not self._ordinary:
                self._ordinary.extend(self._measured(each) for each in self.ordinary_latents(latent))
            log_loss, evidence = self._measured(wide(latent))
            usual_loss, usual = (torch.stack(each).mean(dim=0) for each in zip(*self._ordinary, strict=True))
            by_loss = (usual_loss - log_loss).exp()
            known = usual > LEAST_EVIDENCE
            belief = torch.where(known, evidence / torch.where(known, usual, 1.0), by_loss)
        return {self.name: belief, f"{self.name} loss": by_loss}

    def _measured(self, latent):
        """Return of each latent (B, ..) ln of the loss with the prompt and the evidence, means over the levels."""
        noises, found = fixed_noises(latent, self.noises), []
        for ratio in self.ratios:
            with_prompt, without = denoising_losses(self.sample_map, latent, ratio, noises)
            log_loss = with_prompt.mean(dim=0).log()
            evidence = torch.zeros_like(log_loss) if without is None else without.mean(dim=0).log() - log_loss
            found.append(torch.stack([log_loss, evidence]))
        return torch.stack(found).mean(dim=0)

    def ordinary_latents(self, latent):
        """Return the ordinary samples of the prompts, a list of (B, ..) like `latent`, once it is known whose.

        Every picture of a batch has the same noises.
        """
        sample_map, found = self.sample_map, []
        drawn = [self._drawn(index).to(wide(latent)) for index in range(self.samples)]
        size = sample_map.candidates_in_one_call(self.samples)
        for part in (drawn[first : first + size] for first in range(0, self.samples, size)):
            together = part[0].with_flat(torch.cat([noise.flat() for noise in part]))
            found += wide(sample_map.latent(together)).split(len(latent))
        return found

    def _drawn(self, index):
        """Return the noise of one ordinary sample."""
        shape, injected = self.sample_map.shape, self.sample_map.injected
        one = Noise.randn((1, *shape[1:]), injected, mixed_seed("belief", index))
        initial = one.initial.expand(shape) if self.initial is None else self.initial.to(one.initial)
        return Noise(initial, one.injected.expand(injected, *shape))


def waits_for_a_map(reward):
    """Whether a watched reward is a belief of which it is not known yet whose."""
    return isinstance(reward, Belief) and reward.sample_map is None


def denoising_losses(sample_map, latent, ratio, noises):
    """Return the denoising losses of latents at one noise level.

    Args:
        sample_map: whose model is asked.
        latent: (B, ..), of the map's shape.
        ratio: of noise to signal, > 0.
        noises: (k, 1, ..), the noises e, each for all B latents.

    Returns:
        with_prompt, without: (k, B) each; `without` is None where the map knows no model without the prompt.
    """
    alpha, sigma = levels_of(ratio, sample_map.schedule.family)
    entries = searched_entries(sample_map, latent)
    found = []
    for part in noises.tensor_split(sample_map.calls(len(noises))):
        x = alpha * latent + sigma * sample_map.schedule.s_noise * part
        both = unguided(sample_map, x.flatten(0, 1), sigma)
        found.append([None if each is None else _losses(each, latent, sigma, entries) for each in both])
    with_prompt, without = zip(*found, strict=True)
    return torch.cat(with_prompt), None if without[0] is None else torch.cat(without)


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


def _losses(denoised, latent, sigma, entries):
    """Return (k, B), the loss of denoised (k * B, ..)."""
    return mean_error(denoised.unflatten(0, (-1, len(latent))), latent, sigma, entries)


def mean_error(denoised, latent, sigma, entries):
    """Return (.., B), the mean over entries (B, ..) of ((denoised - latent) / sigma)^2, denoised (.., B, ..)."""
    error = ((denoised - latent) / sigma).square() * entries
    return error.flatten(-(latent.ndim - 1)).sum(dim=-1) / entries.flatten(1).sum(dim=1)


def fixed_noises(like, count, seed=0):
    """Return (count, 1, ..), the noises that are added to every latent of the shape of `like`, (B, ..)."""
    # In float32 whatever the latent is, so that they are the same numbers.
    shape = (1, *like.shape[1:])
    return torch.stack([normal(shape, like.float(), "belief", seed, index) for index in range(count)])

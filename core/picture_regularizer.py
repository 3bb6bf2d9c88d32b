"""Terms that keep a searched picture one that the model would make, where those of `regularizer.py` look at its noise.

A likely noise may sample to an unlikely picture, which no term on the noise feels. These terms ask the model about the
picture's latent x0, as `Belief` does: add noise, and look at what the network takes away again, without guidance.

    x = alpha x0 + sigma e     D = D(x, sigma)     loss = mean over entries of (D - x0)^2 / sigma^2

    belief    gamma * evidence / that of ordinary samples    evidence = mean of ln (loss without the prompt / with it)
    loss     -gamma * mean of ln (loss with the prompt / that of ordinary samples)
    start    -gamma * mean of |D - D'|^2 / |D' - x0'|^2      x0' the picture of the start, D' = D(alpha x0' + sigma e)

Means are over the noise levels and a few e, always the same. `Belief` takes the mean over e before the logarithm; here
it is taken after, so that each call of the network is differentiated and freed by itself. The e are not those of
`Belief`, which may watch the same search as a judge of its own.

"loss" is the distance of two scores [derived]. The score of the picture's own forward process is
(alpha x0 - x) / sigma^2, the model's (alpha D - x) / sigma^2, so that they differ by alpha (D - x0) / sigma^2. With
alpha = 1, d KL / d ln sigma = E |D - x0|^2 / sigma^2 is what each octave of noise adds to the KL divergence of the
picture's process from the model's: the loss, times the number of entries. The logarithm [ours] lets all levels count
alike, and frees gamma from that number.

"start" is the distance of two denoising distributions, of the searched picture and of the start's, under the same noise
and in units of the start's own loss. It is after MIRA's abstract (arXiv 2510.01549), whose body was not to be had; the
formula is ours [derived]. It keeps a search near its start, whether what it would find elsewhere is good or not.
"""

from dataclasses import dataclass
from functools import partial

import torch

from .belief import LEAST_EVIDENCE, Belief, fixed_noises, levels_of, mean_error, searched_entries, unguided
from .checks import check_finite
from .memory import STEP
from .precision import outside_autocast, wide
from .sample_map import LOST_GRADIENT, vjp
from .scoring import name_of

PICTURE_KINDS = ("belief", "loss", "start")
OWN_NOISES = 1
"""The seed of the noises that are added to latents; those of `Belief` have another."""


@dataclass(frozen=True)
class PictureRegularizer:
    """A term of the picture's latent that is added to the reward, asked of the model that is searched.

    It is for solvers that take the reward's gradient back through the model: GradientAscent with Exact, Hybrid1 or
    Hybrid2, TrustAscent. An evaluation calls the network once for each noise at each level, forward, and backward
    where a gradient is taken; memory is that of one call for the B pictures. A trial that TrustAscent accepts calls it
    forward twice, unless the map keeps graphs and these fit too.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise, solver = sample_map.randn(seed=0), core.GradientAscent(0.1)
        >>> kept, free = (
        ...     core.optimize(sample_map, rewards.Brightness(), noise, solver, PictureRegularizer("start", gamma), 9)
        ...     for gamma in (1000.0, 0.0)
        ... )
        >>> start = sample_map.sample(noise)
        >>> bool((kept.images - start).norm() < (free.images - start).norm() / 2)
        True

    Attributes:
        kind: "belief", "loss" or "start", see the module. Where the model knows none without the prompt, or the prompt
            explains nothing of ordinary samples, "belief" is "loss".
        gamma: weight against the reward, at least 0.
        beside: a regulariser of the noise whose term is added too, or None.
        ratios: the noise levels, as ratios of noise to signal.
        noises: how many are tried at each level.
        samples: how many ordinary samples "belief" and "loss" compare with, drawn once for each search.
    """

    kind: str = "belief"
    gamma: float = 0.3
    beside: object = None
    ratios: tuple = (6.0, 12.0)
    noises: int = 2
    samples: int = 4

    of_latents = True

    def __post_init__(self):
        if self.kind not in PICTURE_KINDS:
            raise ValueError(f"unknown kind {self.kind!r}; expected 'belief', 'loss' or 'start'")
        check_finite(gamma=self.gamma)
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}; expected a number >= 0")
        if regularizes_pictures(self.beside):
            raise ValueError("beside is a regularizer of the picture too; expected one of the noise, or None")
        self.judge()  # which checks the rest

    def of(self, sample_map, noise):
        """Return the PictureTerm of a search.

        Args:
            sample_map: the SampleMap that is searched.
            noise: the Noise that this very search starts from.
        """
        return PictureTerm(self, sample_map, noise)

    @property
    def calls(self):
        """How often an evaluation calls the network."""
        return len(self.ratios) * self.noises

    def stages(self, sample_map):
        """Return how often what it compares with calls a map's `on_step`, for progress bars."""
        return sample_map.network_calls if self.kind == "start" else self.judge().stages(sample_map)

    def judge(self):
        """Return the Belief of the same levels, whose ordinary samples are those that pictures are compared with."""
        return Belief(self.ratios, self.noises, self.samples)


class PictureTerm:
    """A `PictureRegularizer` in one search: it knows the model, and what its pictures are compared with.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> term = PictureRegularizer("start").of(sample_map, noise)
        >>> value, d_latent = term.gradient(sample_map.latent(noise) + 1)
        >>> value < 0, d_latent.shape
        (tensor([True]), torch.Size([1, 3, 4, 4]))

    Args:
        regularizer, sample_map, noise: of the search, as `PictureRegularizer.of` takes them.
    """

    def __init__(self, regularizer, sample_map, noise):
        self.regularizer, self.sample_map, self.noise = regularizer, sample_map, noise
        self._compared = None  # an `Ordinary` or a `Start`, once the first latent was asked about

    @torch.no_grad()
    def value(self, latent, graphs=None):
        """Return the term (B,) of latents, (B, ..) of the map's shape.

        Where the map keeps graphs, and has room for more than those of a run's steps, those of these calls are put into
        `graphs`, a dict, from where `gradient` takes them.
        """
        latent = wide(latent)
        with outside_autocast(latent.device.type):
            compared = self._compared_with(latent)
            found = [self._told(call, latent, compared, graphs) for call in self._calls(latent)]
        return self._weighed(found, compared)

    @torch.no_grad()
    def gradient(self, latent, graphs=None):
        """Return the term (B,) of latents and its gradient by them, (B, ..), float32 or wider."""
        latent, graphs = wide(latent), {} if graphs is None else graphs
        values, total = [], torch.zeros_like(latent)
        with outside_autocast(latent.device.type):
            compared = self._compared_with(latent)
            for call in self._calls(latent):
                slope = partial(self._slope, call, latent, compared, graphs)
                value, d_latent = self.sample_map.in_place.differentiate("model", slope)
                values.append(value)
                total += d_latent
        return self._weighed(values, compared), self.regularizer.gamma / len(values) * total

    def _weighed(self, values, compared):
        """Return the term (B,), of the values [(B,), ..] of each call of the network."""
        return self.regularizer.gamma * (torch.stack(values).mean(dim=0) + compared.constant)

    def _calls(self, latent):
        """Return the calls of the network that an evaluation makes."""
        schedule, noises = self.sample_map.schedule, fixed_noises(latent, self.regularizer.noises, OWN_NOISES)
        levels = [levels_of(ratio, schedule.family) for ratio in self.regularizer.ratios]
        asked = [(alpha, sigma, sigma * schedule.s_noise * e.to(latent)) for alpha, sigma in levels for e in noises]
        return [Call(number, *each) for number, each in enumerate(asked)]

    def _denoised(self, call, x):
        """Return (B, 1 or 2, ..): denoised with the prompt, and for "belief" without it, where the model knows that."""
        with_prompt, without = unguided(self.sample_map, x, call.sigma)
        both = self.regularizer.kind == "belief" and without is not None
        return torch.stack([with_prompt, without] if both else [with_prompt], dim=1)

    def _told(self, call, latent, compared, graphs):
        """Return (B,), what one call of the network says of the latents; keep its graph where there is room."""
        plan, found = self.sample_map.plan, self.sample_map.in_place.found
        if graphs is None or "model" in found or call.number >= plan.kept - self.sample_map.network_calls:
            denoised = self._denoised(call, call.noised(latent))
        else:
            graphs[call.name] = self._with_graph(call, latent)
            denoised = graphs[call.name][1].detach()
        return compared.value(call, wide(denoised), latent, searched_entries(self.sample_map, latent))

    def _with_graph(self, call, latent):
        """Return the noised latent as a leaf of autograd's graph, and what the network makes of it."""
        x = call.noised(latent).requires_grad_()
        with torch.enable_grad(), self.sample_map.plan.graph(STEP):
            denoised = self._denoised(call, x)
        if not denoised.requires_grad:
            raise RuntimeError(LOST_GRADIENT.format(stage="model, asked about the picture,"))
        return x, denoised

    def _slope(self, call, latent, compared, graphs):
        """Return what `_told` does, and its gradient by the latents: directly, and back through the network."""
        x, denoised = graphs.pop(call.name, None) or self._with_graph(call, latent)
        seen, x0 = wide(denoised.detach()).requires_grad_(), latent.clone().requires_grad_()
        with torch.enable_grad():
            value = compared.value(call, seen, x0, searched_entries(self.sample_map, latent))
        by_denoised, directly = torch.autograd.grad(
            value, (seen, x0), torch.ones_like(value), allow_unused=True, materialize_grads=True
        )
        return value.detach(), directly + call.alpha * vjp(denoised, x, by_denoised)

    def _compared_with(self, latent):
        """Return what the latents are compared with, an `Ordinary` or a `Start`; it is sampled at the first call."""
        if self._compared is None:
            calls = self._calls(latent)
            if self.regularizer.kind == "start":
                start = wide(self.sample_map.latent(self.noise)).to(latent)
                denoised = [wide(self._denoised(call, call.noised(start)))[:, 0] for call in calls]
                self._compared = Start(start, denoised)
            else:
                self._compared = self._ordinary(calls, latent)
        return self._compared

    def _ordinary(self, calls, latent):
        """Return the `Ordinary` of the model's own samples of the prompt."""
        found = []
        for sample in self.regularizer.judge().of(self.sample_map, self.noise).ordinary_latents(latent):
            entries = searched_entries(self.sample_map, sample)
            told = [logs(call, wide(self._denoised(call, call.noised(sample))), sample, entries) for call in calls]
            found += [torch.stack(each) for each in told]
        log_loss, evidence = torch.stack(found).mean(dim=0)
        return Ordinary.of(log_loss, evidence if self.regularizer.kind == "belief" else torch.zeros_like(evidence))


@dataclass(frozen=True)
class Call:
    """One call of the network: a noise level, and one noise for each latent.

    Attributes:
        number: of the call in an evaluation.
        alpha, sigma: the levels of signal and noise.
        noise: (1, ..), sigma e.
    """

    number: int
    alpha: float
    sigma: float
    noise: torch.Tensor

    @property
    def name(self):
        """What its graph is kept under, beside those of a run's steps."""
        return f"picture {self.number}"

    def noised(self, latent):
        return self.alpha * latent + self.noise


@dataclass(frozen=True)
class Ordinary:
    """What "belief" and "loss" compare a picture with: ordinary samples of the prompt.

    Each picture's term is linear in ln loss and in the evidence, so that calls of the network add up.

    Attributes:
        by_loss, by_evidence: (B,), the factors of -ln loss and of the evidence.
        constant: (B,).
    """

    by_loss: torch.Tensor
    by_evidence: torch.Tensor
    constant: torch.Tensor

    @classmethod
    def of(cls, log_loss, evidence):
        """Return it for the means (B,) over ordinary samples; where the evidence is next to 0, the loss is judged."""
        known = evidence > LEAST_EVIDENCE
        by_evidence = torch.where(known, 1 / torch.where(known, evidence, 1.0), 0.0)
        return cls((~known).to(log_loss), by_evidence, torch.where(known, 0.0, log_loss))

    def value(self, call, denoised, latent, entries):
        """Return (B,), what one call says of the latents, by its denoised (B, 1 or 2, ..)."""
        log_loss, evidence = logs(call, denoised, latent, entries)
        return self.by_evidence * evidence - self.by_loss * log_loss


@dataclass(frozen=True)
class Start:
    """What "start" compares a picture with: the picture that the search began with.

    Attributes:
        latent: (B, ..), x0'.
        denoised: D' of each call, (B, ..).
    """

    latent: torch.Tensor
    denoised: list
    constant = 0.0

    def value(self, call, denoised, latent, entries):
        """Return (B,), what one call says of the latents, by its denoised (B, 1, ..)."""
        before = self.denoised[call.number]
        loss = mean_error(before, self.latent, call.sigma, entries)
        return -mean_error(denoised[:, 0], before, call.sigma, entries) / loss


def logs(call, denoised, latent, entries):
    """Return ln of the loss with the prompt and the evidence, (B,) each, of one call's denoised (B, 1 or 2, ..)."""
    log_loss, *without = (mean_error(each, latent, call.sigma, entries).log() for each in denoised.unbind(1))
    return log_loss, without[0] - log_loss if without else torch.zeros_like(log_loss)


def regularizes_pictures(regularizer):
    """Whether a regulariser, or None, looks at the picture's latent and not at the noise."""
    return getattr(regularizer, "of_latents", False)


def parted(regularizer):
    """Return the two that a regulariser, or None, is made of: that of the noise, and that of the picture."""
    return (regularizer.beside, regularizer) if regularizes_pictures(regularizer) else (regularizer, None)


def refuse_without_gradient(solver, regularizer):
    """Raise ValueError for a regulariser of the picture with a solver that climbs no gradient through the model."""
    if regularizes_pictures(regularizer) and not getattr(solver, "regularizes_pictures", False):
        raise ValueError(
            f"{name_of(solver)} takes no gradient of the reward back through the whole model, to which a picture"
            " regularizer could add its own; expected Gradient, Trust, or hybrid-1 and hybrid-2 of Zeroth-Order."
            " Take one of these solvers, or a regularizer of the noise, or none"
        )

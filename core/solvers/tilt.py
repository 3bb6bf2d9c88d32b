"""Tilt: one sampling run whose injected noises lean towards the reward and stay as white as true noise.

[reconstructed] After the abstract of NoiseTilt (arXiv 2606.18066); neither its body nor code was to be had, so every
formula here is ours. At a step from x that injects the noise w, with D = denoise(x),

    g  = d r(decode(D)) / d x, or / d D with D held constant
    w' = sqrt(1 - k^2) w + k white(g)                                                       0 < k < 1, the strength

white(g) keeps the phases of g's Fourier transform and sets every amplitude to that of white noise. g is known before w
is drawn, so w' has unit variance and a flat spectrum as true noise has, whatever g is: what is added looks like noise
to the model, which is why a tilted run stays a picture. The transform is over the sides of each channel; of a video
over the frames too, since noise that repeats from frame to frame is no noise, however white each frame is.

Two cases are settled so that no noise is invented [ours]: a frequency at which g is 0, up to rounding, keeps w's own
number; and where a mask lets only some entries move, white(g) is cut to them and has unit variance among them.

A tilted run is M(z') of an ordinary noise z': its probability can be judged, it can be saved, replayed and searched on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..checks import check_whole
from ..estimators import Exact, Hybrid1
from ..guided import guidance
from ..noise import Noise
from ..precision import wide
from ..sample_map import optimised_injected
from ..schedule import step_coefficients
from ..spectrum import heard
from .base import Leader, SamplesItself, evaluated, neighbour, refuse_another_sampler


@dataclass
class Tilt(SamplesItself):
    """Tilt the noise of one sampling run towards the reward; use `optimize(.., iterations=1)`.

    The run costs a call of the model for each step, and through "model" a backward pass for each tilted one. Iteration
    1 tilts the noise that the search starts from, and each further one new noise, as best-of-N does: a second tilt of
    the same noise would leave what is probable.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Contrast(), noise, Tilt(strength=0.4), iterations=1)
        >>> rewards.Contrast()(result.images) > rewards.Contrast()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        strength: k in (0, 1): how much of the noise the reward decides. 0.2 is careful, 0.4 strong.
        through: "model" takes the gradient through decoder and model. "decoder" takes it through the decoder alone: the
            calls and the memory of plain sampling, and the model need not be differentiable.
        start, stop: the share of the noisy steps where the tilting begins and ends, 0 .. 1.
        every: of those steps each how many one is tilted.
        strengths: several strengths to try one after another in place of `strength`; of each picture the run that
            scores highest stays, among those that pass the search's floors, or else the weakest.
        estimator: Exact(), or Hybrid1() for rewards without a gradient.
        guide_decode: latent -> images for the gradient alone, where a cheaper decoder is to be had; None: the map's.
        seed: of the new noises of further iterations.
    """

    strength: float = 0.3
    through: str = "model"
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    strengths: tuple = ()
    estimator: object = field(default_factory=Exact)
    guide_decode: Callable | None = None
    seed: int = 0

    def __post_init__(self):
        for strength in (self.strength, *self.strengths):
            if not 0 < strength < 1:
                raise ValueError(f"the strength is {strength}; expected a number in (0, 1), 0.2 to 0.4 suit most")
        if self.through not in ("model", "decoder"):
            raise ValueError(f"through is {self.through!r}; expected 'model' or 'decoder'")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"start is {self.start} and stop {self.stop}; expected 0 <= start < stop <= 1")
        check_whole(1, every=self.every)
        if not isinstance(self.estimator, (Exact, Hybrid1)):
            raise ValueError(
                f"the estimator is {type(self.estimator).__name__}, which perturbs the noise of whole runs; expected"
                " Exact() or Hybrid1(), which look at the picture of one step"
            )

    @property
    def differentiates(self):
        return True if self.through == "model" else "decoder"

    def graphs(self, calls, iterations):
        return 1

    def guesses(self, calls):
        return 1 if self.through == "model" else 0

    def fresh(self, checkpoint=None):
        return replace(self)

    def stages(self, sample_map):
        backward = len(self._steps(sample_map)) if self.through == "model" else 0
        return len(self._strengths) * (sample_map.stages + backward)

    @property
    def _strengths(self):
        return sorted(self.strengths) or [self.strength]

    def step(self, problem, noise):
        """Evaluate `noise`; return (the noise of the best tilted run, the Evaluation of `noise`)."""
        self._check(problem.sample_map)
        evaluation = evaluated(problem, noise, self._leader)
        clean = noise
        if problem.iteration > 0:
            clean = noise.with_flat(neighbour(problem, noise, noise.flat(), 0, 1.0, self.seed))
        best = problem.best.anew()
        for strength in self._strengths:
            found = self._tilted(problem, clean, strength)
            log_p = torch.minimum(*problem.log_probabilities(found[0]))
            best.offer(*found, log_p, problem.iteration, problem.under_floors(*found[1:3]))
        self._leader = Leader(best.noise.flat(), best.latent, best.images, best.scores, None)
        return best.noise, evaluation

    def _steps(self, sample_map):
        """Return the indices of the steps to tilt: those that inject a noise, which is searched, in the window."""
        count = sample_map.injected
        window = range(math.ceil(self.start * count), math.ceil(self.stop * count), self.every)
        searched = optimised_injected(sample_map.part, count)
        schedule = sample_map.schedule
        noisy = [step_coefficients(*pair, sample_map.eta, schedule.family)[2] > 0 for pair in schedule.intervals]
        if sample_map.judge_denoised:
            noisy[-1] = False  # what the last step injects is not seen
        return [index for index in window if index in searched and noisy[index]]

    def can_tilt(self, sample_map):
        """Return whether there is a noise to lean."""
        return bool(self._steps(sample_map))

    def run(self, problem, noise):
        """Return one tilted run of `noise` as a Leader, which `problem` has not judged."""
        found, latent, images, scores = self._tilted(problem, noise, self.strength)
        return Leader(found.flat(), latent, images, scores, None)

    def _check(self, sample_map):
        refuse_another_sampler(self, sample_map)
        if not self.can_tilt(sample_map):
            raise ValueError(
                f"Tilt leans the noise that each step injects, and here is none to lean: eta {sample_map.eta},"
                f" {sample_map.schedule.steps} steps, part {sample_map.part!r}, start {self.start}, stop {self.stop};"
                " expected eta > 0, two steps or more, a part with injected noises, and a step between start and stop"
            )

    @torch.no_grad()
    def _tilted(self, problem, noise, strength):
        """Sample `noise` with tilted injected noises: return (the Noise that did it, latent, images, scores)."""
        sample_map, steps = problem.sample_map, self._steps(problem.sample_map)
        free = noise.with_flat(sample_map.active_entries(noise)).injected
        found, norms = Noise(noise.initial, noise.injected.clone(), noise.settings), {}
        x = sample_map.start(noise.initial)
        for index in range(sample_map.schedule.steps):
            sample_map.report("forward", index)
            if index in steps:
                denoised, gradient = self._guidance(problem, noise, x, index)
                norms[f"the gradient of the reward at step {index + 1}"] = gradient.flatten(1).norm(dim=1)
                gradient = torch.where(gradient.isfinite(), gradient, 0.0)
                found.injected[index] = tilted(noise.injected[index], gradient, strength, free[index])
            else:
                denoised = sample_map.denoise(x, x.new_full((len(x),), sample_map.schedule.sigmas[index]))
            x = sample_map.step(x, denoised, index, found)
        problem.end_where_not_finite(norms)  # all at once: each look makes the host wait
        latent = sample_map.to_latent(x)
        images = sample_map.images(latent)
        scores = problem.score(images[None])[0].to(noise.initial.device)
        return found, latent, images, scores

    def _guidance(self, problem, noise, x, index):
        """Return the denoised at x (B, ..) and the gradient g of its picture's reward, both of x's shape."""
        if self.through == "model":
            problem.sample_map.report("backward", index)
        judge = self._estimator(index)
        return guidance(
            problem.sample_map, x, index, lambda images: judge.by_images(problem, noise, images)[1],
            decode=self.guide_decode, of_model=self.through == "model",
        )  # fmt: skip

    def _estimator(self, index):
        """Return the estimator of step `index`: perturbations of its own, so that the errors of steps do not add up."""
        if isinstance(self.estimator, Exact):
            return self.estimator
        return replace(self.estimator, seed=(self.estimator.seed, index))


def tilted(noise, gradient, strength, free):
    """Return w' = sqrt(1 - k^2) w + k white(g), where the entries are free to move, and w elsewhere.

    Example:
        >>> w, g = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> moved = tilted(w, g, 0.999999, torch.ones_like(w, dtype=torch.bool))
        >>> spectrum = torch.fft.fft2(moved, norm="ortho").abs()
        >>> bool((spectrum - 1).abs().max() < 0.01)  # flat
        True

    Args:
        noise: w, (B, C, H, W) or (B, C, F, H, W), unit variance.
        gradient: g, the shape of w.
        strength: k in (0, 1).
        free: booleans, the shape of w.
    """
    dims, sides = tuple(range(2, noise.ndim)), noise.shape[2:]
    spectrum = torch.fft.rfftn(wide(gradient) * free, dim=dims)
    decided = heard(spectrum, dims=(1, *dims))
    white = torch.fft.irfftn(torch.sgn(spectrum) * decided, s=sides, dim=dims, norm="ortho")
    own = torch.fft.irfftn(torch.fft.rfftn(wide(noise), dim=dims) * decided, s=sides, dim=dims)
    white = white * _lost(white, free, dims)
    moved = noise + ((math.sqrt(1 - strength**2) - 1) * own + strength * white).to(noise)
    return torch.where(free, moved, noise)


def _lost(white, free, dims):
    """Return the factor that gives `white` among the free entries of each channel the mean square it has over all."""
    among = (white * free).square().sum(dim=dims, keepdim=True) / free.sum(dim=dims, keepdim=True).clamp(min=1)
    return (white.square().mean(dim=dims, keepdim=True) / among.clamp(min=1e-30)).sqrt()

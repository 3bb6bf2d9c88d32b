"""What a solver may ask of the thing it optimises, and the best answer so far.

Whatever a solver evaluates, as the noise of an iteration or as one of a search's candidates, goes through a `Problem`,
which keeps each picture's best. (The tiny perturbations of an estimator are not candidates.)
"""

import time
from dataclasses import dataclass, field, replace

import torch

from .estimators import Exact
from .history import Evaluation
from .noise import Noise
from .regularizer import ProbabilityRegularizer, log_noise_probability
from .sample_map import SampleMap
from .scoring import NotFiniteError, name_of, numbered, score

# Far from the seeds that users start from: a direction or a candidate must not be the starting noise itself.
DIRECTION_SEED = 2**53 + 91


@dataclass
class Best:
    """Each picture's best so far: the highest reward among those whose noise is probable enough.

    Attributes:
        floor: least ln P, of the whole z and of x_T alone.
        noise, latent, images: of the best, B rows each, mixed from several iterations.
        scores: (B,).
        passed: (B,), whether its noise passes the floor; where none did yet, the first stays.
        iterations: (B,) ints, when it was found.
    """

    floor: float
    noise: Noise | None = None
    latent: torch.Tensor | None = None
    images: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    iterations: torch.Tensor | None = None

    def offer(self, noise, latent, images, scores, log_p, iteration):
        """Take over the pictures that improve.

        Args:
            noise, latent, images, scores: B rows each.
            log_p: (B,), the smaller of ln P of z and of x_T.
            iteration: number of updates made before.
        """
        passes = (log_p >= self.floor).to(scores.device)
        if self.noise is None:
            self.noise, self.latent, self.images, self.scores, self.passed = noise, latent, images, scores, passes
            self.iterations = torch.full((len(scores),), iteration)
            return
        better = passes & (~self.passed | (scores > self.scores))
        self.noise = Noise(
            _where(better, noise.initial, self.noise.initial),
            _where(better, noise.injected, self.noise.injected, dim=1),
            self.noise.settings,
        )
        self.latent = _where(better, latent, self.latent)
        self.images = _where(better, images, self.images)
        self.scores = _where(better, scores, self.scores)
        self.passed = self.passed | better
        self.iterations[better.cpu()] = iteration


@dataclass(frozen=True)
class Candidates:
    """q candidates for each of B pictures, sampled.

    Attributes:
        flat: (q, B, n).
        latent: (q, B, C, H, W).
        images: (q, B, 3, H, W).
    """

    flat: torch.Tensor
    latent: torch.Tensor
    images: torch.Tensor


@dataclass
class Problem:
    """What a solver may ask: values, gradients, candidates.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> problem = Problem(sample_map, rewards.Brightness())
        >>> problem.evaluate(noise).scores.shape
        torch.Size([1])
        >>> evaluation, gradient = problem.gradient(noise)
        >>> gradient.initial.shape == noise.initial.shape
        True

    Attributes:
        sample_map, reward, regularizer, watch, iterations: as `optimize` takes them.
        best: the best of everything evaluated here.
        iteration: number of updates made so far; the loop counts.
        started: time the run began, seconds.
    """

    sample_map: SampleMap
    reward: object
    regularizer: ProbabilityRegularizer | None = None
    watch: tuple = ()
    iterations: int = 50
    best: Best = field(default_factory=lambda: Best(floor=float("-inf")))
    iteration: int = 0
    started: float = field(default_factory=time.perf_counter)
    _chosen: tuple | None = field(default=None, init=False, repr=False, compare=False)

    def evaluate(self, noise):
        """Sample and score `noise`, forward only; what `chosen` has given is neither sampled nor scored again."""
        watched = None
        if self._chosen is not None and self._chosen[0] is noise:
            _, watched, latent, images, scores = self._chosen
        else:
            latent = self.sample_map.latent(noise)
            images = self.sample_map.images(latent)
            scores = score(self.reward, images, self.sample_map.prompts)
        penalty = self.regularizer.gradient(self.sample_map, noise, self.iteration)[0] if self.regularizer else None
        return self.evaluation(noise, latent, images, scores, penalty=penalty, watched=watched)

    def gradient(self, noise, estimator=None):
        """Sample and score `noise`, and differentiate reward + regulariser by it.

        Args:
            noise: where.
            estimator: of `estimators`; default Exact().

        Returns:
            the Evaluation of `noise`, and the Noise of gradients of scores + penalty.
        """
        estimate = (estimator or Exact())(self, noise)
        norm = estimate.gradient.flat().norm(dim=1)
        self.require_finite(norm, "the gradient of the reward by the noise")
        gradient, penalty = estimate.gradient, None
        if self.regularizer:
            penalty, extra = self.regularizer.gradient(self.sample_map, noise, self.iteration)
            gradient = Noise(gradient.initial + extra.initial, gradient.injected + extra.injected)
        return self.evaluation(noise, estimate.latent, estimate.images, estimate.scores, norm, penalty), gradient

    def sample(self, noise, flat):
        """Sample candidates without gradient, at most `sample_map.most_rows` pictures in one call.

        Args:
            noise: a Noise of the shape.
            flat: (q, B, n).
        """
        batch = flat.shape[1]
        latents, images = [], []
        for chunk in flat.tensor_split(self.sample_map.calls(len(flat))):
            latents.append(self.sample_map.latent(noise.with_flat(chunk.flatten(0, 1))))
            images.append(self.sample_map.images(latents[-1]))
        latent, image = (torch.cat(parts).unflatten(0, (-1, batch)) for parts in (latents, images))
        return Candidates(flat, latent, image)

    def score(self, images):
        """Score candidates' pictures (q, B, 3, H, W), as many in one call as are sampled in one: (q, B), finite."""
        prompts, found = self.sample_map.prompts, []
        for chunk in images.tensor_split(self.sample_map.calls(len(images))):
            repeated = None if prompts is None else list(prompts) * len(chunk)
            found.append(score(self.reward, chunk.flatten(0, 1), repeated).unflatten(0, chunk.shape[:2]))
        scores = torch.cat(found)
        self.require_finite(scores)
        return scores

    def offer(self, noise, candidates, scores):
        """Let each picture's highest-scoring candidate compete for the best, the next where its noise is improbable."""
        left, rows = scores.clone(), torch.arange(scores.shape[1], device=scores.device)
        while True:
            highest, index = left.max(dim=0)
            if not (highest > torch.where(self.best.passed, self.best.scores, -torch.inf)).any():
                return
            taken = noise.with_flat(candidates.flat[index, rows])
            log_p = torch.minimum(*self.log_probabilities(taken))
            sampled = candidates.latent[index, rows], candidates.images[index, rows], highest
            self.best.offer(taken, *sampled, log_p, self.iteration)
            left[index, rows] = -torch.inf

    def chosen(self, evaluation, candidates, scores):
        """Return the noise of each picture's highest-scoring candidate, or of `evaluation` where none is higher.

        `evaluate` then knows what this very Noise samples to and scores.

        Args:
            evaluation: an Evaluation.
            candidates: Candidates of the same pictures.
            scores: (q, B).
        """
        highest, index = scores.max(dim=0)
        better, rows = highest > evaluation.scores, torch.arange(scores.shape[1], device=scores.device)
        found = [
            _where(better, new[index, rows], old)
            for new, old in (
                (candidates.flat, evaluation.noise.flat()), (candidates.latent, evaluation.latent),
                (candidates.images, evaluation.images), (scores, evaluation.scores),
            )
        ]  # fmt: skip
        noise = evaluation.noise.with_flat(found[0])
        self._chosen = noise, None if better.any() else evaluation.watched, *found[1:]
        return noise

    def randn(self, q, like, seed=0):
        """Draw (q, *like.shape) normal numbers for this iteration, on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed((DIRECTION_SEED + 1_000_003 * (seed + 1) + self.iteration) % 2**63)
        return torch.randn((q, *like.shape), generator=generator, dtype=like.dtype, device="cpu").to(like.device)

    def log_probabilities(self, noise):
        """Return ln P of the whole z and of x_T alone, each (B,)."""
        whole, initial = self.sample_map.active(noise), self.sample_map.active_initial(noise)
        return log_noise_probability(whole), log_noise_probability(initial)

    def check_gradient(self, noise, step=1e-2):
        """Compare the exact gradient with a central difference along one random direction.

        Returns:
            (B,) relative errors; about 0.01 or less in float32 where the reward is smooth.
        """
        alone = replace(self, best=Best(floor=float("-inf")))
        _, gradient = alone.gradient(noise)
        direction = Noise.randn(noise.initial.shape, len(noise.injected), DIRECTION_SEED).to(noise.initial)
        direction = self.sample_map.masked(direction)
        ends = [
            alone.evaluate(noise.with_flat(noise.flat() + sign * step * direction.flat())) for sign in (1, -1)
        ]
        values = [end.scores + (end.penalty if end.penalty is not None else 0) for end in ends]
        expected = (values[0] - values[1]) / (2 * step)
        found = (gradient.flat() * direction.flat()).sum(dim=1)
        return (found - expected).abs() / expected.abs().clamp(min=1e-12)

    def evaluation(self, noise, latent, images, scores, gradient_norm=None, penalty=None, watched=None):
        """Record everything about one sampled and scored noise, and let it compete for the best.

        Args:
            noise .. penalty: see `Evaluation`.
            watched: likewise, where it is known already.
        """
        self.require_finite(scores)
        log_p, log_p_initial = self.log_probabilities(noise)
        self.best.offer(noise, latent, images, scores, torch.minimum(log_p, log_p_initial), self.iteration)
        return Evaluation(
            noise=noise,
            latent=latent,
            images=images,
            scores=scores,
            watched=self.watched(images) if watched is None else watched,
            log_p=log_p,
            log_p_initial=log_p_initial,
            gradient_norm=gradient_norm,
            penalty=penalty,
            iteration=self.iteration,
            seconds=time.perf_counter() - self.started,
        )

    def watched(self, images):
        """Return name -> scores (B,) of what is recorded beside the score: watched rewards, each part of combined ones.

        Of several with one name the second has a 2 behind it, and so on.
        """
        prompts, found = self.sample_map.prompts, []
        for place, reward in enumerate((self.reward, *self.watch)):
            if callable(getattr(reward, "part_scores", None)):
                found += reward.part_scores(images, prompts).items()
            elif place > 0:
                found.append((name_of(reward), score(reward, images, prompts)))
        names = numbered([name for name, _ in found])
        return dict(zip(names, (scores for _, scores in found), strict=True))

    def require_finite(self, values, what=None):
        """Raise NotFiniteError unless all values are finite."""
        if not torch.isfinite(values).all():
            what = what or f"the reward {name_of(self.reward)}"
            raise NotFiniteError(f"{what} is {values.tolist()} at iteration {self.iteration}; expected finite numbers")


def _where(mask, new, old, dim=0):
    """Return `new` where the (B,) mask is true along dimension `dim`, `old` elsewhere."""
    return torch.where(mask.to(old.device).view(-1, *[1] * (old.ndim - 1 - dim)), new, old)

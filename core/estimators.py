"""Where the gradient of the reward by the noise comes from (the paper's Section 4 and Appendix D).

    Exact         autograd through the reward                             r differentiable
    Hybrid1       d r / d x estimated from r(x + mu xi), xi on pixels     exact backward pass of M     Eq. (13)
    Hybrid2       d r / d x estimated from x_i = M(z + mu xi)             exact backward pass of M     Eq. (14)
    ZerothOrder   d r / d z estimated from r(M(z + mu xi)): ZO-SGD        M is never differentiated

The first three hand a gradient by the images to the same `Pullback`; the last needs none. Symbols: r the reward, M the
noise-to-sample map, x = M(z), xi ~ N(0, I), q the number of perturbations, mu their size. Perturbed noises are
candidates of one batch, candidate-major, (q * B) rows, as many in one call as `SampleMap.most_rows` allows; the
baseline r(x) is scored together with the first of them, so that a reward's drift makes no difference of its own. Of a
call nothing is kept but its part of the sum: perturbations are drawn anew by their seeds where they are needed again.
A perturbation whose score is not finite does not count.

Eq. (18) of the paper writes r(M(x_i)) where r(x_i) is meant. [derived] H_2 is about mu^2 J J^T d r / d x with J the
Jacobian of M: a preconditioned ascent direction, not a multiple of the gradient.
"""

from dataclasses import dataclass

import torch

from .checks import check_positive, check_whole
from .memory import STEP
from .noise import Noise
from .sample_map import of_items
from .scoring import exact


@dataclass(frozen=True)
class Estimate:
    """A noise, sampled and scored, with the gradient of its scores.

    Attributes:
        latent, images, scores: of the noise, (B, ..).
        gradient: Noise of gradients of the scores and the picture's term, entries that are not optimised 0.
        picture_term: (B,), of the problem's regulariser of the picture; None without one.
    """

    latent: torch.Tensor
    images: torch.Tensor
    scores: torch.Tensor
    gradient: Noise
    picture_term: torch.Tensor | None = None


class ImageGradient:
    """An estimator of the gradient by the images, `by_images`; the pullback takes that to the noise.

    Attributes:
        differentiates: whether the sample map is differentiated.
    """

    differentiates = True

    def passes(self, sample_map):
        """Return how many passes, forward or backward, one estimate makes."""
        return 2

    def __call__(self, problem, noise):
        """Return the Estimate at `noise`."""
        images, vjp = problem.sample_map.pullback(noise)
        try:
            scores, d_images = vjp.spared(lambda: self.by_images(problem, noise, images))
            picture_term, d_latent = vjp.spared(lambda: problem.by_latent(vjp.latent), STEP)
            gradient = vjp(d_images, d_latent)
        finally:
            vjp.release()
        return Estimate(vjp.latent, images, scores, gradient, picture_term)


class Exact(ImageGradient):
    """The reward's own gradient, by autograd.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([1.0, 0.0]), shape=(1, 3, 1, 1), eta=0.0)
        >>> problem = core.Problem(sample_map, lambda images, prompts: images.sum(dim=(1, 2, 3)))
        >>> Exact()(problem, sample_map.randn(seed=0)).gradient.flat()  # images = sqrt(2) / 2 x_T
        tensor([[0.7071, 0.7071, 0.7071]])
    """

    def by_images(self, problem, noise, images):
        sample_map = problem.sample_map
        return sample_map.in_place.differentiate("reward", lambda: exact(problem.reward, images, sample_map.prompts))


@dataclass(frozen=True)
class Hybrid1(ImageGradient):
    """H_1 = mean of (r(x + mu xi) - r(x)) xi / mu, Eq. (13): the reward sees pictures with white noise on the pixels.

    Poor for rewards that mean something on clean pictures only.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([1.0, 0.0]), shape=(1, 3, 1, 1), eta=0.0)
        >>> problem = core.Problem(sample_map, lambda images, prompts: images.sum(dim=(1, 2, 3)))
        >>> gradient = Hybrid1(q=64)(problem, sample_map.randn(seed=0)).gradient.flat()  # by the pixels estimated
        >>> bool((gradient > 0).all())
        True

    Attributes:
        q: number of perturbations; the paper's 8.
        mu: standard deviation of the noise on pixels in [0, 1]; the paper's 0.01.
        seed: of the perturbations.
    """

    q: int = 8
    mu: float = 0.01
    seed: int = 0

    def __post_init__(self):
        check_whole(1, q=self.q)
        check_positive(mu=self.mu)

    def by_images(self, problem, noise, images):
        baseline, mean, count = None, torch.zeros_like(images), problem.sample_map.candidates_in_one_call(self.q + 1)
        for first in range(0, self.q + 1, count):
            # Number 0 is the picture itself.
            indices = range(first, min(first + count, self.q + 1))
            xi = [problem.draw(i, images, self.seed) if i else torch.zeros_like(images) for i in indices]
            scores = problem.score(torch.stack([images + self.mu * each for each in xi]))
            baseline = scores[0] if baseline is None else baseline
            for weights, each in zip(_differences(scores, baseline), xi, strict=True):
                mean += of_items(weights, each) * each
        return baseline, mean / (self.q * self.mu)


@dataclass(frozen=True)
class Hybrid2(ImageGradient):
    """H_2 = mean of (r(x_i) - r(x)) (x_i - x) / mu^2 with x_i = M(z + mu xi), Eq. (14): clean pictures only.

    The division by mu^2 is ours [derived]: H_2 then tends to J J^T d r / d x, whatever mu is.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([1.0, 0.0]), shape=(1, 3, 1, 1), eta=0.0)
        >>> problem = core.Problem(sample_map, lambda images, prompts: images.sum(dim=(1, 2, 3)))
        >>> gradient = Hybrid2(q=64)(problem, sample_map.randn(seed=0)).gradient.flat()  # along the model's own ways
        >>> bool((gradient > 0).all())
        True

    Attributes:
        q: number of perturbations, each one more sampling run; the paper's 4.
        mu: standard deviation of the perturbation of z; the paper's 0.02.
        seed: of the perturbations.
    """

    q: int = 4
    mu: float = 0.02
    seed: int = 0

    def __post_init__(self):
        check_whole(1, q=self.q)
        check_positive(mu=self.mu)

    def passes(self, sample_map):
        return 2 + sample_map.calls(self.q)

    def by_images(self, problem, noise, images):
        flat, baseline, mean = noise.flat(), None, torch.zeros_like(images)

        def propose(index):
            return problem.sample_map.moved(noise, flat + self.mu * problem.draw(index, flat, self.seed))

        for candidates in problem.candidates(noise, self.q, propose):
            together = candidates.images if baseline is not None else torch.cat([images[None], candidates.images])
            scores = problem.score(together)
            if baseline is None:
                baseline, scores = scores[0], scores[1:]
            for weights, pictures in zip(_differences(scores, baseline), candidates.images, strict=True):
                mean += of_items(weights, images) * (pictures - images)
        return baseline, mean / (self.q * self.mu**2)


@dataclass(frozen=True)
class ZerothOrder:
    """ZO-SGD: mean of (r(M(z + mu xi)) - r(M(z))) xi / mu, straight on the noise (Nesterov and Spokoiny 2017).

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([1.0, 0.0]), shape=(1, 3, 1, 1), eta=0.0)
        >>> problem = core.Problem(sample_map, lambda images, prompts: images.sum(dim=(1, 2, 3)))
        >>> gradient = ZerothOrder(q=64)(problem, sample_map.randn(seed=0)).gradient.flat()  # nothing is differentiated
        >>> bool((gradient > 0).all())
        True

    Attributes:
        q: number of perturbations; the paper's 16.
        mu: standard deviation of the perturbation of z; the paper's 0.01.
        seed: of the perturbations.
    """

    q: int = 16
    mu: float = 0.01
    seed: int = 0
    differentiates = False

    def __post_init__(self):
        check_whole(1, q=self.q)
        check_positive(mu=self.mu)

    def passes(self, sample_map):
        return sample_map.calls(self.q + 1)

    def __call__(self, problem, noise):
        """Return the Estimate at `noise`; neither the reward nor the model is differentiated."""
        flat, start = noise.flat(), None
        mean = torch.zeros_like(flat)

        def perturbation(index):
            xi = problem.draw(index, flat, self.seed)
            return problem.sample_map.moved(noise.map(torch.zeros_like), xi)

        def propose(index):
            # Number 0 is the noise itself.
            return flat + self.mu * perturbation(index) if index else flat

        for candidates in problem.candidates(noise, self.q + 1, propose):
            scores = problem.score(candidates.images)
            if start is None:
                start = candidates.latent[0].clone(), candidates.images[0].clone(), scores[0]
            for offset, weights in enumerate(_differences(scores, start[2])):
                if candidates.first + offset:
                    mean += of_items(weights, flat) * perturbation(candidates.first + offset)
        return Estimate(*start, noise.with_flat(mean / (self.q * self.mu)))


def _differences(scores, baseline):
    """Return r(x_i) - r(x) of scores (c, B) and a baseline (B,), 0 where one of them is not finite."""
    differences = scores - baseline
    return torch.where(differences.isfinite(), differences, 0.0)

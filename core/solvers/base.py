"""What the loop asks of every solver, and what several of them share: the neighbours they try, what they found."""

import math
from dataclasses import dataclass

import torch

from ..estimators import Exact
from ..problem import taken, where
from ..sampler_map import SamplerMap


class Solver:
    """What the loop asks of every solver; of one that is not derived from this, `fresh` and `step` alone.

    Example:
        >>> class Wander(core.Solver):  # new noise in each iteration, whatever the scores
        ...     def step(self, problem, noise):
        ...         return problem.sample_map.randn(seed=problem.iteration + 1), problem.evaluate(noise)
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, Wander(), iterations=4)
        >>> len(result.history.rows)
        5

    Attributes:
        regularized: whether it climbs the regulariser's term too.
        regularizes_pictures: whether it climbs that of a PictureRegularizer.
        differentiates: what must be differentiable: True the whole sample map, "decoder" its decoder alone, False
            neither.
        needs_gradient: whether it asks for the reward's own gradient, so that a reward without one is refused before
            anything is sampled.
    """

    regularized = False
    regularizes_pictures = False
    differentiates = True

    @property
    def needs_gradient(self):
        return isinstance(getattr(self, "estimator", None), Exact)

    @property
    def name(self):
        """What a checkpoint calls it."""
        return type(self).__name__

    def fresh(self, checkpoint=None):
        """Return the same solver without state, or with that of a `Checkpoint` which a solver of this name made."""
        return self

    def memory(self):
        """Return the state as name -> Noise, for a `Checkpoint`."""
        return {}

    def stages(self, sample_map):
        """Return how often one `step` calls `sample_map.on_step`, for progress bars."""
        return 2 * sample_map.stages

    def stages_of_steps(self, sample_map, iterations):
        """Return how often the first `iterations` steps of a search call it together."""
        return iterations * self.stages(sample_map)

    def graphs(self, calls, iterations):
        """Return how many network calls' graphs a search with kept graphs holds together, `calls` being a run's."""
        return calls

    def guesses(self, calls):
        """Return how many pictures of each of the batch are decoded at once, with a graph, while a call's graph waits.

        0 where every gradient goes back through a whole run of so many calls, one stage's graph after the other.
        """
        return 0

    def step(self, problem, noise):
        """Evaluate `noise`; return (the next noise, the Evaluation of this one)."""
        raise NotImplementedError

    def evaluate(self, problem, noise):
        """Evaluate the last noise of a run; a solver that knows what it samples to need not sample it again."""
        return problem.evaluate(noise)

    def knows(self, noise):
        """Return whether `noise` is one that this has found and not yet shown, whose `evaluate` samples nothing."""
        return False


def refuse_another_sampler(solver, sample_map):
    """Raise ValueError where another sampler takes the steps, for a solver that has to take them itself."""
    if isinstance(sample_map, SamplerMap):
        raise ValueError(
            f"{solver.name} changes the steps of the sampling itself, and here another sampler takes them; expected"
            " DDIM(eta). Take the sampler input of the DNO node away (in Python: use a SampleMap), or the solver"
        )


def neighbour(problem, noise, flat, index, beta, seed):
    """Return candidate `index` around z, sqrt(1 - beta) z + sqrt(beta) xi, where z is searched, and z elsewhere.

    Args:
        problem: the Problem, which draws xi ~ N(0, I).
        noise: z.
        flat: (B, n), z's `flat()`.
        index: number of the candidate.
        beta: in [0, 1].
        seed: of the candidates.
    """
    xi = problem.draw(index, flat, seed)
    return problem.sample_map.moved(noise, xi.mul_(math.sqrt(beta)).add_(flat, alpha=math.sqrt(1 - beta)))


def within_length(sample_map, noise, moved):
    """Return `moved` (B, n), shortened to the length that true noise may have.

    Steps in one direction add up and lengthen z. Up to sqrt(n) + 2 nothing speaks against its length: ln p2 of the
    paper's Eq. (10) is 0 there for k = 2.

    Args:
        sample_map: the SampleMap.
        noise: the Noise before the step.
        moved: (B, n), its `flat()` after it.
    """
    free = sample_map.active_entries(noise)
    norm = (moved * free).norm(dim=1, keepdim=True).clamp(min=1e-30)
    most = free.sum(dim=1, keepdim=True).sqrt().to(moved) + 2
    return sample_map.moved(noise, moved * (most / norm).clamp(max=1))


@dataclass(frozen=True)
class Leader:
    """Each picture's best noise of one step, sampled and scored: the noise of the next.

    Attributes:
        flat, latent, images, scores: (B, ..).
        watched: what is recorded beside the scores, where it is known of all B.
    """

    flat: torch.Tensor
    latent: torch.Tensor
    images: torch.Tensor
    scores: torch.Tensor
    watched: dict | None

    @property
    def pictures(self):
        return self.latent, self.images

    def is_of(self, noise):
        """Whether it tells what `noise` samples to."""
        return torch.equal(self.flat, noise.flat())

    def or_better(self, candidates, scores):
        """Return the Leader with those candidates in it that score (c, B) higher."""
        highest, index = scores.max(dim=0)
        better = highest > self.scores
        if not better.any():
            return self
        flat = where(better, candidates.flat(index), self.flat)
        stacks = (candidates.latent, self.latent), (candidates.images, self.images)
        return Leader(
            flat,
            *(where(better, taken(stack, index), old) for stack, old in stacks),
            torch.where(better, highest, self.scores),
            None,
        )


def evaluated(problem, noise, leader):
    """Return the Evaluation of `noise`; what `leader`, a Leader or None, knows is neither sampled nor scored again."""
    if leader is None or not leader.is_of(noise):
        return problem.evaluate(noise)
    return problem.evaluation(noise, leader.latent, leader.images, leader.scores, watched=leader.watched)


class SamplesItself(Solver):
    """A solver whose step may sample the noise that it returns: that is not sampled again where the run ends there."""

    _leader = None  # a Leader, of that noise

    def evaluate(self, problem, noise):
        return evaluated(problem, noise, self._leader)

    def knows(self, noise):
        return self._leader is not None and self._leader.is_of(noise)

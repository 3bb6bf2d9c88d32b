"""What the loop asks of every solver, and the neighbours that several of them try."""

import math


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
        differentiates: whether it differentiates the sample map, which then must be differentiable.
    """

    regularized = False
    differentiates = True

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

    def step(self, problem, noise):
        """Evaluate `noise`; return (the next noise, the Evaluation of this one)."""
        raise NotImplementedError

    def evaluate(self, problem, noise):
        """Evaluate the last noise of a run; a solver that knows what it samples to need not sample it again."""
        return problem.evaluate(noise)


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

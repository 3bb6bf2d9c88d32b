"""Searches that keep the best of some candidates: best-of-N, zero-order search, pCN hill-climb."""

from dataclasses import dataclass, field, replace

from ..checks import check_whole
from .base import Leader, Solver, evaluated, neighbour


@dataclass
class Search(Solver):
    """Keep the best of N candidates a z + sqrt(beta) xi around a pivot, a = sqrt(1 - beta); nothing is differentiated.

    `best_of_n`, `zero_order` and `pcn` are the three known searches of this form.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, Search.best_of_n(8), iterations=2)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        candidates: N, sampling runs an iteration.
        beta: in (0, 1]; 1 draws new noise altogether.
        seed: of the candidates.
    """

    candidates: int = 16
    beta: float = 0.1
    seed: int = 0
    differentiates = False
    _leader: Leader | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_whole(1, candidates=self.candidates)
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected a number in (0, 1]")

    @classmethod
    def best_of_n(cls, candidates=16, seed=0):
        """Draw `candidates` new noises an iteration and keep the best of all."""
        return cls(candidates, 1.0, seed)

    @classmethod
    def zero_order(cls, candidates=16, beta=0.1, seed=0):
        """Move the pivot to its best neighbour (Ma et al. 2025), neighbours being as long as true noise."""
        return cls(candidates, beta, seed)

    @classmethod
    def pcn(cls, beta=0.1, seed=0):
        """Climb by preconditioned Crank-Nicolson proposals: one candidate at a time, taken if it is better."""
        return cls(1, beta, seed)

    def fresh(self, checkpoint=None):
        return replace(self)

    def stages(self, sample_map):
        return sample_map.calls(self.candidates) * sample_map.stages

    def step(self, problem, noise):
        """Evaluate `noise` and N candidates; return (the best of them all, the Evaluation of `noise`)."""
        evaluation = self.evaluate(problem, noise)
        leader = Leader(noise.flat(), evaluation.latent, evaluation.images, evaluation.scores, evaluation.watched)
        pivot = leader.flat

        def propose(index):
            return neighbour(problem, noise, pivot, index, self.beta, self.seed)

        for candidates in problem.candidates(noise, self.candidates, propose):
            leader = leader.or_better(candidates, problem.judge(noise, candidates))
        self._leader = leader
        return noise.with_flat(leader.flat), evaluation

    def evaluate(self, problem, noise):
        """Evaluate `noise`; what the last step has found is neither sampled nor scored again."""
        return evaluated(problem, noise, self._leader)

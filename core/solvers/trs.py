"""Trust-region search: parallel regions of noise that grow where they find something and shrink where they do not."""

from dataclasses import dataclass, field, replace
from statistics import NormalDist

import torch

from ..checks import check_whole
from ..problem import where
from .base import Leader, Solver, evaluated

LEAST_SHARE, MOST_SHARE = 0.1, 0.9
"""What share of the entries a candidate changes: each region's candidates cover this range evenly."""
GROW, SHRINK, SMALLEST = 2.0, 0.5, 1e-3
"""What a region's size is multiplied by when it grows and when it shrinks, and the smallest, unless the first is."""
PATIENCE = 3
"""How many iterations in a row a region finds something better before it grows, or nothing before it shrinks."""


@dataclass
class TRS(Solver):
    """Trust-region search (Schweiger et al. 2026, arXiv 2603.14504), from its description; nothing is differentiated.

    R regions search in parallel, each around one of the R best noises found so far, and a candidate changes 10 to 90 %
    of a centre's entries. All centres and candidates compete for the next R centres. A region that found something
    better than its centre in three iterations in a row grows, one that found nothing in three shrinks, and one that
    cannot shrink any more begins anew with the first size. A candidate that becomes a centre inherits the size of the
    region it comes from. The first iteration tries new noises, the start among the first centres.

    [ours] A region of size beta proposes sqrt(1 - beta) z + sqrt(beta) xi in the entries that change, xi ~ N(0, I),
    where the paper draws points of a cube: what is tried is true noise. The sizes are ours too; that a region waits for
    three iterations is from its authors' code.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, TRS(candidates=8), iterations=5)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        candidates: N, sampling runs an iteration, shared evenly by the regions.
        regions: R, at most N are used; each holds one z in memory.
        beta: the first size of a region, in (0, 1].
        seed: of the candidates.
    """

    candidates: int = 16
    regions: int = 4
    beta: float = 0.3
    seed: int = 0
    differentiates = False
    _regions: "Regions | None" = field(default=None, init=False, repr=False, compare=False)
    _leader: Leader | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_whole(1, candidates=self.candidates, regions=self.regions)
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected a number in (0, 1]")

    def fresh(self, checkpoint=None):
        """Return the same solver without state: what is resumed begins its regions anew, around the best."""
        return replace(self)

    def stages(self, sample_map):
        return sample_map.calls(self.candidates) * sample_map.stages

    def step(self, problem, noise):
        """Evaluate `noise` and N candidates; return (the best of them all, the Evaluation of `noise`)."""
        evaluation, z = self.evaluate(problem, noise), noise.flat()
        leader = Leader(z, evaluation.latent, evaluation.images, evaluation.scores, evaluation.watched)
        old = self._regions or Regions.around(leader, min(self.regions, self.candidates), self.beta)

        def propose(index):
            if problem.iteration == 0:
                return problem.sample_map.moved(noise, problem.draw(index, z, self.seed))
            return self._neighbour(problem, noise, old, index)

        contest = Contest(old)
        for candidates in problem.candidates(noise, self.candidates, propose):
            scores = problem.judge(noise, candidates)
            leader = leader.or_better(candidates, scores)
            for index, each in enumerate(scores, start=candidates.first):
                contest.enter(index % len(old.beta), each, index, propose)
        self._regions = contest.ended(resized=problem.iteration > 0, first=self.beta)
        self._leader = leader
        return noise.with_flat(leader.flat), evaluation

    def evaluate(self, problem, noise):
        """Evaluate `noise`; what the last step has found is neither sampled nor scored again."""
        return evaluated(problem, noise, self._leader)

    def _neighbour(self, problem, noise, regions, index):
        """Return candidate `index`, (B, n): its region's centre, changed in a share of the entries."""
        place, region = divmod(index, len(regions.beta))
        z, beta = regions.centres[region], regions.beta[region][:, None].to(regions.centres)
        of_a_region = -(-self.candidates // len(regions.beta))
        share = LEAST_SHARE + (MOST_SHARE - LEAST_SHARE) * (place + 0.5) / of_a_region
        xi = problem.draw(index, z, self.seed)
        changed = problem.draw(index, z, (self.seed, "entries")) < NormalDist().inv_cdf(share)
        moved = torch.where(changed, (1 - beta).sqrt() * z + beta.sqrt() * xi, z)
        return problem.sample_map.moved(noise, moved)


@dataclass(frozen=True)
class Regions:
    """The regions of one iteration, R for each of B pictures.

    Attributes:
        centres: (R, B, n).
        scores: (R, B), of the centres; -inf where a region waits for its first candidate.
        beta: (R, B), the sizes.
        luck: (R, B), in how many iterations in a row something better was found; below 0, in how many nothing was.
    """

    centres: torch.Tensor
    scores: torch.Tensor
    beta: torch.Tensor
    luck: torch.Tensor

    @classmethod
    def around(cls, leader, count, beta):
        """Return `count` regions around one noise, of which all but the first wait for something to hold."""
        scores = torch.full_like(leader.scores.expand(count, -1), -torch.inf)
        scores[0] = leader.scores
        return cls(leader.flat.expand(count, -1, -1), scores, torch.full_like(scores, beta), torch.zeros_like(scores))


class Contest:
    """Who becomes a centre of the next iteration: the R highest of the centres and the candidates of this one.

    Args:
        regions: the Regions of this iteration.
    """

    def __init__(self, regions):
        self.regions = regions
        self.centres, self.scores = regions.centres.clone(), regions.scores.clone()
        numbers = torch.arange(len(self.scores), device=self.scores.device)
        self.origin = numbers[:, None].repeat(1, self.scores.shape[1])
        self.found_better = torch.zeros_like(self.scores, dtype=torch.bool)

    def enter(self, region, scores, index, propose):
        """Let a candidate take the place of the lowest that it beats.

        Args:
            region: number of the region it comes from.
            scores: (B,).
            index, propose: its number, and index -> (B, n), which is asked where the candidate takes a place.
        """
        self.found_better[region] |= scores > self.regions.scores[region]
        rows = torch.arange(len(scores), device=scores.device)
        lowest = self.scores.argmin(dim=0)
        better = scores > self.scores[lowest, rows]
        if not better.any():
            return
        self.centres[lowest, rows] = where(better, propose(index), self.centres[lowest, rows])
        self.scores[lowest, rows] = torch.where(better, scores, self.scores[lowest, rows])
        self.origin[lowest, rows] = torch.where(better, region, self.origin[lowest, rows])

    def ended(self, resized, first):
        """Return the Regions of the next iteration; not `resized`, all keep the size of where they come from.

        Args:
            resized: whether a region that has waited long enough grows or shrinks.
            first: the size that one begins anew with.
        """
        beta, luck = self.regions.beta, self.regions.luck
        if resized:
            found = torch.where(self.found_better, 1.0, -1.0)
            luck = torch.where(luck * found > 0, luck, 0.0) + found
            changes = luck.abs() >= PATIENCE
            factor = torch.where(changes, torch.where(self.found_better, GROW, SHRINK), 1.0)
            least = min(SMALLEST, first)
            anew = changes & ~self.found_better & (beta <= least)
            beta = torch.where(anew, first, (beta * factor).clamp(least, 1.0))
            luck = torch.where(changes, 0.0, luck)
        return Regions(self.centres, self.scores, beta.gather(0, self.origin), luck.gather(0, self.origin))

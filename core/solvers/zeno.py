"""ZeNO: noise optimisation as path-integral control, from rewards alone."""

import math
from dataclasses import dataclass

import torch

from ..checks import check_positive, check_whole
from .base import Solver, neighbour, within_length

FIRST, LAST = 0.3, 0.5
"""Of "geometric": beta of the first iteration, and K times that of the last."""


@dataclass
class ZeNO(Solver):
    """Zeroth-order noise optimisation (Kim et al. 2026): path-integral control with an Ornstein-Uhlenbeck reference.

    The paper's body was not to be had; its abstract gives the idea, and these forms are [derived], with
    a = sqrt(1 - beta), xi_i ~ N(0, I), r_i = r(M(a z + sqrt(beta) xi_i)), i = 1 .. N:

        optimise, linear     w = (r - mean r) / std r      z' = a z + sqrt(beta) sum w xi / sqrt(sum w^2)
        optimise, softmax    w = softmax(r / tau)          z' = a z + sqrt(beta) sum w xi / sqrt(sum w^2)
        sample               w = softmax(r / tau)          z' = a z + sqrt(beta) (sum w xi + sqrt(1 - sum w^2) zeta)
        resample             w = softmax(r / tau)          z' = a z + sqrt(beta) xi_i with probability w_i

    "optimise" climbs: with beta = 2.5 / K a linear reward gains 0.90 sqrt(N K) standard deviations in K iterations,
    where best-of-E gains sqrt(2 ln E). The division by sqrt(sum w^2) keeps z' as long as true noise; without it z
    collapses. "sample" targets the density N(z; 0, I) exp(2 r / tau) for small beta: tau = 2 lambda gives
    exp(r / lambda). "resample" with beta = 1 is self-normalised importance resampling, and best-of-N for tau -> 0.

    The schedule "geometric" [ours] makes more of the evaluations that "optimise" has. Its steps begin long and end
    short, beta_k from 0.3 to 0.5 / K by equal ratios, and z itself, from which no direction is learnt, is sampled only
    at the start and at the end. In between an iteration shows each picture's best so far.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> solver = ZeNO(candidates=8, beta=0.2)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, solver, iterations=5)
        >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
        tensor([True])

    Attributes:
        candidates: N, sampling runs an iteration, beside that of z itself.
        beta: step size in (0, 1]; None takes 2.5 / K, between 0.01 and 0.3, K the iterations of this very call: set it
            for a search that shall be resumed. Of "geometric" the first step's, where None takes 0.3.
        mode: "optimise", "sample" or "resample".
        weights: "linear" or "softmax", of "optimise".
        tau: temperature of the softmax, in units of the reward.
        seed: of the candidates.
        schedule: "constant", or "geometric" of "optimise"; the other modes do not use it. K are the iterations of this
            very call: what resumes a search whose schedule has ended goes on with its last step size.
    """

    candidates: int = 16
    beta: float | None = None
    mode: str = "optimise"
    weights: str = "linear"
    tau: float = 0.1
    seed: int = 0
    schedule: str = "constant"
    differentiates = False

    def __post_init__(self):
        if self.mode not in ("optimise", "sample", "resample"):
            raise ValueError(f"unknown mode {self.mode!r}; expected 'optimise', 'sample' or 'resample'")
        if self.weights not in ("linear", "softmax"):
            raise ValueError(f"unknown weights {self.weights!r}; expected 'linear' or 'softmax'")
        if self.schedule not in ("constant", "geometric"):
            raise ValueError(f"unknown schedule {self.schedule!r}; expected 'constant' or 'geometric'")
        check_whole(2, candidates=self.candidates)  # they are compared
        if self.beta is not None and not 0 < self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected a number in (0, 1]")
        check_positive(tau=self.tau)

    @property
    def _falls(self):
        return self.schedule == "geometric" and self.mode == "optimise"

    def stages(self, sample_map):
        return sample_map.calls(self.candidates + (not self._falls)) * sample_map.stages

    def stages_of_steps(self, sample_map, iterations):
        """Return how often the first `iterations` steps call `sample_map.on_step`; the first samples z in any case."""
        if iterations == 0:
            return 0
        return sample_map.calls(self.candidates + 1) * sample_map.stages + (iterations - 1) * self.stages(sample_map)

    def step(self, problem, noise):
        """Evaluate N candidates around `noise`, and it too but where the schedule falls.

        Returns:
            the next noise, and the Evaluation of this one; where it was not evaluated, that of each picture's best.
        """
        flat, beta = noise.flat(), self._beta(problem)
        first = 1 if self._falls and problem.latest is not None else 0

        def propose(place):
            # The centre goes along in the candidates' call: its own number is 0.
            index = first + place
            return flat if index == 0 else neighbour(problem, noise, flat, index, beta, self.seed)

        scores, evaluation = [], None
        for tried in problem.candidates(noise, self.candidates + 1 - first, propose):
            found = problem.score(tried.images)
            if first + tried.first == 0:  # evaluated before it is judged, so it is no candidate of its own
                centre = (part[0].clone() for part in (tried.latent, tried.images, found.to(flat.device)))
                evaluation = problem.evaluation(noise, *centre)
            scores.append(problem.judge(noise, tried, found))
        scores = torch.cat(scores)[1 - first :]
        towards = self._resampled if self.mode == "resample" else self._mean
        moved = towards(problem, scores, flat).mul_(math.sqrt(beta)).add_(flat, alpha=math.sqrt(1 - beta))
        moved = problem.sample_map.moved(noise, moved)
        if self.mode == "optimise":
            moved = within_length(problem.sample_map, noise, moved)
        return noise.with_flat(moved), evaluation or self._best(problem)

    def _beta(self, problem):
        if self._falls:
            first = FIRST if self.beta is None else self.beta
            last = min(LAST / max(problem.iterations, 1), first)
            return first * (last / first) ** problem.share_of_iterations
        return self.beta if self.beta is not None else min(max(2.5 / max(problem.iterations, 1), 0.01), 0.3)

    def _best(self, problem):
        best = problem.best
        return problem.evaluation(best.noise, best.latent, best.images, best.scores)

    def _mean(self, problem, scores, flat):
        """Return the direction that takes the place of xi in the update, (B, n).

        It is the weighted mean of the candidates' xi, rescaled ("optimise") or filled up with fresh noise ("sample") to
        the length of true noise.

        The xi are drawn anew, one after another, by the seeds that drew them for the candidates.
        """
        weights, length = self._weights(scores), None
        if self.mode == "optimise":  # in the scores' own precision: squares of small and large ones leave half's range
            length = weights.square().sum(dim=0)[:, None].sqrt()
            weights = weights / length.mT.clamp(min=torch.finfo(weights.dtype).tiny)
        mean = torch.zeros_like(flat)
        for index, weight in enumerate(weights.to(flat), start=1):
            mean.addcmul_(problem.draw(index, flat, self.seed), weight[:, None])
        zeta = problem.draw(self.candidates + 1, flat, self.seed)
        if self.mode == "sample":
            square = weights.square().sum(dim=0)[:, None].to(flat)
            return mean + (1 - square).clamp(min=0).sqrt() * zeta
        # Without any difference between the rewards there is no direction: a plain step of the reference process.
        return torch.where(length > 0, mean, zeta)

    def _weights(self, scores):
        """Return the weights (N, B) of the scores (N, B); a score of -inf counts as the lowest that is finite."""
        usable = scores.isfinite()
        lowest = torch.where(usable, scores, torch.inf).amin(dim=0)
        scores = torch.where(usable, scores, torch.where(lowest.isfinite(), lowest, 0.0))
        if self.mode == "optimise" and self.weights == "linear":
            return scores - scores.mean(dim=0)
        weights = (scores / self.tau).softmax(dim=0)
        same = (scores == scores[0]).all(dim=0)
        return torch.where(same, 0.0, weights) if self.mode == "optimise" else weights

    def _resampled(self, problem, scores, flat):
        """Return for each picture one of its xi, (B, n), drawn by the softmax of its scores (Gumbel's trick)."""
        # On the CPU: in float64, which not every device has.
        uniform = torch.special.ndtr(problem.draw(self.candidates + 1, scores.cpu().double(), self.seed))
        gumbel = -(-uniform.log()).log()
        index = (scores.cpu() / self.tau + gumbel).argmax(dim=0) + 1
        found = torch.zeros_like(flat)
        for chosen in index.unique().tolist():
            rows = (index == chosen).to(flat.device)
            found = torch.where(rows[:, None], problem.draw(chosen, flat, self.seed), found)
        return found

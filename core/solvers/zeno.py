"""ZeNO: noise optimisation as path-integral control, from rewards alone."""

import math
from dataclasses import dataclass

import torch

from .base import Solver, around


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
            for a search that shall be resumed.
        mode: "optimise", "sample" or "resample".
        weights: "linear" or "softmax", of "optimise".
        tau: temperature of the softmax, in units of the reward.
        seed: of the candidates.
    """

    candidates: int = 16
    beta: float | None = None
    mode: str = "optimise"
    weights: str = "linear"
    tau: float = 0.1
    seed: int = 0
    differentiates = False

    def __post_init__(self):
        if self.mode not in ("optimise", "sample", "resample"):
            raise ValueError(f"unknown mode {self.mode!r}; expected 'optimise', 'sample' or 'resample'")
        if self.weights not in ("linear", "softmax"):
            raise ValueError(f"unknown weights {self.weights!r}; expected 'linear' or 'softmax'")
        if self.candidates < 2:
            raise ValueError(f"candidates is {self.candidates}; expected 2 or more, to compare them")
        if self.beta is not None and not 0 < self.beta <= 1:
            raise ValueError(f"beta is {self.beta}; expected a number in (0, 1]")
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}; expected a number > 0")

    def stages(self, sample_map):
        return sample_map.calls(self.candidates + 1) * sample_map.stages

    def step(self, problem, noise):
        """Evaluate `noise` and N candidates around it; return (the next noise, the Evaluation of this one)."""
        flat = noise.flat()
        beta = self.beta if self.beta is not None else min(max(2.5 / max(problem.iterations, 1), 0.01), 0.3)
        xi = problem.randn(self.candidates + 1, flat, self.seed)
        xi, zeta = xi[:-1], xi[-1]
        # The centre goes along in the candidates' call; it is evaluated first, so it is no candidate of its own.
        tried = problem.sample(noise, torch.cat([flat[None], around(problem, noise, xi, beta)]))
        scores = problem.score(tried.images)
        evaluation = problem.evaluation(noise, tried.latent[0], tried.images[0], scores[0])
        problem.offer(noise, tried, scores)
        scores = scores[1:]
        free = problem.sample_map.active_entries(noise)
        direction = self._resampled(problem, scores, xi) if self.mode == "resample" else self._mean(scores, xi, zeta)
        moved = math.sqrt(1 - beta) * flat + math.sqrt(beta) * direction
        moved = torch.where(free, moved, flat)
        if self.mode == "optimise":
            # A signal adds up over the iterations and lengthens z. Up to sqrt(n) + 2 nothing speaks against its length:
            # ln p2 is 0 there for k = 2.
            norm = (moved * free).norm(dim=1, keepdim=True).clamp(min=1e-30)
            moved = torch.where(free, moved * ((free.sum(dim=1, keepdim=True).sqrt() + 2) / norm).clamp(max=1), flat)
        return noise.with_flat(moved), evaluation

    def _mean(self, scores, xi, zeta):
        """Return what replaces the proposal's noise: the weighted mean of the xi (N, B, n), as long as true noise."""
        linear = self.mode == "optimise" and self.weights == "linear"
        weights = scores - scores.mean(dim=0) if linear else (scores / self.tau).softmax(dim=0)
        mean = torch.einsum("qb,qbn->bn", weights.to(xi), xi)
        square = weights.square().sum(dim=0)[:, None].to(xi)
        if self.mode == "sample":
            return mean + (1 - square).clamp(min=0).sqrt() * zeta
        # Without any difference between the rewards there is no direction: a plain step of the reference process.
        same = (scores == scores[0]).all(dim=0)[:, None]
        return torch.where(same, zeta, mean / square.clamp(min=1e-30).sqrt())

    def _resampled(self, problem, scores, xi):
        """Return for each picture one of its xi, drawn by the softmax of its scores (Gumbel's trick)."""
        gumbel = -(-torch.special.log_ndtr(problem.randn(len(scores), scores[0].double(), self.seed + 1))).log()
        index = (scores / self.tau + gumbel.to(scores)).argmax(dim=0)
        return xi[index, torch.arange(xi.shape[1], device=xi.device)]

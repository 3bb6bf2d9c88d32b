"""Solvers of max_z r(M(z)) + regulariser: each one's `step(problem, noise)` evaluates the noise and proposes the next.

    GradientAscent   Adam or Nesterov SGD on a gradient, exact or estimated (the paper's Sections 2 to 4)
    ZeNO             path-integral control from candidates' rewards; nothing is differentiated
    Search           keep the best of N candidates around a pivot: best-of-N, zero-order search, pCN hill-climb

Loss-guided diffusion, which steers one sampling run, is in `guidance`.

A solver object holds settings; `fresh()` gives the copy with state that one run uses up, so that a solver can be
shared between runs. The state can be kept with a noise (`Noise.checkpoint`) and given to `fresh` to go on.
"""

import math
from dataclasses import dataclass, field, replace

import torch

from .estimators import Exact
from .noise import Noise


class Solver:
    """What the loop asks of every solver; of one that is not derived from this, `fresh` and `step` alone.

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
        raise NotImplementedError

    def step(self, problem, noise):
        """Evaluate `noise`; return (the next noise, the Evaluation of this one)."""
        raise NotImplementedError


@dataclass
class GradientAscent(Solver):
    """Ascend a gradient of the reward (the paper's Section 5.1: Adam, lr 0.01, no weight decay).

    Attributes:
        estimator: where the gradient comes from, see `estimators`; default exact.
        lr: step size; in units of the noise's standard deviation for Adam. 0.01 is the paper's, 0.03 suits short runs.
        optimizer: "adam", or "sgd" with Nesterov momentum.
        momentum: of "sgd".
        clip: largest Euclidean norm of each picture's gradient before the update, or None.
    """

    lr: float = 0.01
    optimizer: str = "adam"
    momentum: float = 0.9
    clip: float | None = None
    estimator: object = field(default_factory=Exact)
    regularized = True
    _optimizer: torch.optim.Optimizer | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.optimizer not in ("adam", "sgd"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; expected 'adam' or 'sgd'")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}; expected a number > 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; expected a number > 0, or None for no clipping")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected a number in [0, 1)")

    @classmethod
    def reno(cls):
        """Return ReNO's solver (Eyring et al. 2024); `reno` of `optimize` adds the rest of its settings."""
        return cls(lr=5.0, optimizer="sgd", momentum=0.9, clip=0.1)

    @property
    def name(self):
        return f"GradientAscent({self.optimizer})"

    @property
    def differentiates(self):
        return self.estimator.differentiates

    def fresh(self, checkpoint=None):
        solver = replace(self)
        if checkpoint is not None and checkpoint.memory:
            solver._optimizer = solver._new_optimizer(checkpoint.noise)
            params = solver._optimizer.param_groups[0]["params"]
            for param, key in zip(params, ("initial", "injected"), strict=True):
                state = {name: getattr(noise, key).to(param, copy=True) for name, noise in checkpoint.memory.items()}
                count = {"step": torch.tensor(float(checkpoint.iteration))} if self.optimizer == "adam" else {}
                solver._optimizer.state[param].update(state | count)
        return solver

    def memory(self):
        if self._optimizer is None:
            return {}
        initial, injected = (self._optimizer.state[param] for param in self._optimizer.param_groups[0]["params"])
        # A moment has the shape of what it is a moment of, Adam's count of steps has none.
        return {
            name: Noise(value.clone(), injected[name].clone())
            for name, value in initial.items()
            if torch.is_tensor(value) and value.ndim
        }

    def stages(self, sample_map):
        return self.estimator.passes(sample_map) * sample_map.stages

    def step(self, problem, noise):
        """Evaluate `noise` with its gradient and return (the next noise, the Evaluation of this one)."""
        evaluation, gradient = problem.gradient(noise, self.estimator)
        gradient = self._clipped(gradient)
        if self._optimizer is None:
            self._optimizer = self._new_optimizer(noise)
        (initial, injected) = self._optimizer.param_groups[0]["params"]
        with torch.no_grad():
            initial.copy_(noise.initial)
            injected.copy_(noise.injected)
        initial.grad, injected.grad = gradient.initial.to(initial), gradient.injected.to(injected)
        self._optimizer.step()
        moved = replace(noise, initial=initial.detach(), injected=injected.detach()).flat()
        # Moments from before `part` was changed would move what is not optimised now.
        return noise.with_flat(torch.where(problem.sample_map.active_entries(noise), moved, noise.flat())), evaluation

    def _new_optimizer(self, noise):
        params = [noise.initial.detach().clone(), noise.injected.detach().clone()]
        params = [param if param.dtype == torch.float64 else param.float() for param in params]
        if self.optimizer == "adam":
            # Decay would shrink z towards 0, which is improbable: plain Adam, never AdamW.
            return torch.optim.Adam(params, lr=self.lr, maximize=True)
        nesterov = self.momentum > 0
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=nesterov, maximize=True)

    def _clipped(self, gradient):
        if self.clip is None:
            return gradient
        flat = gradient.flat()
        factor = (self.clip / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        return gradient.with_flat(flat * factor)


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
        tried = problem.sample(noise, torch.cat([flat[None], _around(problem, noise, xi, beta)]))
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


@dataclass
class Search(Solver):
    """Keep the best of N candidates a z + sqrt(beta) xi around a pivot, a = sqrt(1 - beta); nothing is differentiated.

    `best_of_n`, `zero_order` and `pcn` are the three known searches of this form.

    Attributes:
        candidates: N, sampling runs an iteration.
        beta: in (0, 1]; 1 draws new noise altogether.
        seed: of the candidates.
    """

    candidates: int = 16
    beta: float = 0.1
    seed: int = 0
    differentiates = False

    def __post_init__(self):
        if self.candidates < 1:
            raise ValueError(f"candidates is {self.candidates}; expected 1 or more")
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

    def stages(self, sample_map):
        return sample_map.calls(self.candidates) * sample_map.stages

    def step(self, problem, noise):
        """Evaluate `noise` and N candidates; return (the best of them all, the Evaluation of `noise`)."""
        evaluation = problem.evaluate(noise)
        xi = problem.randn(self.candidates, noise.flat(), self.seed)
        candidates = problem.sample(noise, _around(problem, noise, xi, self.beta))
        scores = problem.score(candidates.images)
        problem.offer(noise, candidates, scores)
        return problem.chosen(evaluation, candidates, scores), evaluation


def _around(problem, noise, xi, beta):
    """Return the candidates a z + sqrt(beta) xi of xi (N, B, n), a = sqrt(1 - beta); what is not searched stays."""
    flat = noise.flat()
    moved = math.sqrt(1 - beta) * flat + math.sqrt(beta) * xi
    return torch.where(problem.sample_map.active_entries(noise), moved, flat)

"""Gradient ascent on the noise: the paper's own solver, and ReNO's."""

import math
from dataclasses import dataclass, field, replace

import torch

from ..checks import check_positive
from ..estimators import Exact
from ..noise import Noise
from ..precision import wide
from ..problem import where
from ..regularizer import ProbabilityRegularizer
from .base import Solver
from .sphere import PROBABLE_ENOUGH, Sphere, is_searched, kept_probable, least_log_p, parts_of

OU_FALL = 1 / 3
"""What the last iteration's step of "ou" is of the first's."""
OU_FIRST, OU_MOST = 0.9, 0.2
"""Its first step times the root of the number of iterations, and the most that is."""
HALVINGS = 3
"""How often a step of "ou" is halved that would lead to improbable noise."""
CHANCE = -1
"""Beside an estimator's seed, of steps by chance."""


@dataclass
class GradientAscent(Solver):
    """Ascend a gradient of the reward (the paper's Section 5.1: Adam, lr 0.01, no weight decay).

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> result = core.optimize(sample_map, rewards.Brightness(), noise, GradientAscent(lr=0.1), iterations=3)
        >>> scores = result.history.column("score")
        >>> scores == sorted(scores)  # it climbs
        True

    Attributes:
        estimator: where the gradient comes from, see `estimators`; default exact.
        lr: step size; in units of the noise's standard deviation for Adam. 0.01 is the paper's, 0.03 suits short runs.
            Of "ou" the first step's, at most 1; or None, see `ou`.
        optimizer: "adam", "sgd" with Nesterov momentum, or "ou": steps of a given length, see `ou`.
        momentum: of "sgd".
        clip: largest Euclidean norm of each picture's gradient before the update, or None.
    """

    lr: float | None = 0.01
    optimizer: str = "adam"
    momentum: float = 0.9
    clip: float | None = None
    estimator: object = field(default_factory=Exact)
    regularized = True
    _optimizer: torch.optim.Optimizer | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self):
        if self.optimizer not in ("adam", "sgd", "ou"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; expected 'adam', 'sgd' or 'ou'")
        if self.lr is None and self.optimizer != "ou":
            raise ValueError(f"lr is None; expected a number: 'ou' alone can choose it, not {self.optimizer!r}")
        if self.lr is not None:
            check_positive(lr=self.lr)
        if self.optimizer == "ou" and self.lr is not None and self.lr > 1:
            raise ValueError(f"lr is {self.lr}; expected at most 1 with optimizer 'ou', whose step is lr of the noise")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip}; expected a finite number > 0, or None for no clipping")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected a number in [0, 1)")

    @classmethod
    def reno(cls):
        """Return ReNO's solver (Eyring et al. 2024); `reno` of `optimize` adds the rest of its settings."""
        return cls(lr=5.0, optimizer="sgd", momentum=0.9, clip=0.1)

    @classmethod
    def ou(cls, estimator, lr=None):
        """Return the solver for rough estimates of a gradient: every step is as long as its iteration says.

        z_j' = sqrt(1 - b^2) z_j + b |z_j| v_j, b = lr (1 / 3)^(k / (K - 1)) in iteration k of K: a step of an
        Ornstein-Uhlenbeck process whose new noise is the gradient, v_j that of the part z_j, tangent and of length 1,
        so that every part keeps its length. The less probable z is, the more v is pushed back, as in TrustAscent, see
        `sphere`; of a regulariser of the noise it takes the direction alone. A step that would make z improbable is
        halved, three times at most. A picture on whose score no perturbation told takes v by chance, until one does.
        Where lr is None it is 0.9 / sqrt(K), at most 0.2: long steps add up in many iterations. K is this search's, and
        one that goes on from a checkpoint has another. Adam sets each number's step by the sizes of its last gradients;
        an estimate from a few random directions has the direction of chance there, and only its own length to tell.
        [ours]

        Example:
            >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
            >>> noise = sample_map.randn(seed=0)
            >>> solver = GradientAscent.ou(core.Hybrid2())
            >>> result = core.optimize(sample_map, rewards.Brightness(), noise, solver, iterations=5)
            >>> rewards.Brightness()(result.images) > rewards.Brightness()(sample_map.sample(noise))
            tensor([True])
        """
        return cls(lr=lr, optimizer="ou", estimator=estimator)

    @property
    def name(self):
        return f"GradientAscent({self.optimizer})"

    @property
    def differentiates(self):
        return self.estimator.differentiates

    @property
    def regularizes_pictures(self):
        return self.differentiates

    def fresh(self, checkpoint=None):
        solver = replace(self)
        if checkpoint is not None and checkpoint.memory:
            solver._optimizer = solver._new_optimizer(checkpoint.noise)
            params = solver._optimizer.param_groups[0]["params"]
            for param, key in zip(params, ("initial", "injected"), strict=True):
                state = {name: getattr(noise, key).to(param, copy=True) for name, noise in checkpoint.memory.items()}
                if self.optimizer == "adam":
                    state["step"] = torch.tensor(checkpoint.iteration, dtype=torch.float32)
                solver._optimizer.state[param].update(state)
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
        if self.optimizer == "ou":  # which knows directions alone: a regulariser pushes by its own
            evaluation, gradient = problem.gradient(noise, self.estimator, regularized=False)
            return self._turned(problem, evaluation, gradient), evaluation
        evaluation, gradient = problem.gradient(noise, self.estimator)
        moved = self._updated(noise, self._clipped(gradient))
        # Moments from before `part` was changed would move what is not optimised now.
        return noise.with_flat(problem.sample_map.moved(noise, moved.to(noise.initial.dtype))), evaluation

    def _turned(self, problem, evaluation, gradient):
        """Return the Noise after a step of "ou"."""
        noise = evaluation.noise
        sphere = Sphere.of(problem.sample_map, noise)
        u = sphere.unit(sphere.tangent(parts_of(gradient)))
        if not isinstance(self.estimator, Exact):  # whose 0 is the slope; an estimate of 0 has heard nothing
            silent = (evaluation.gradient_norm == 0) & is_searched(problem, noise)
            if silent.any():
                chance = noise.with_flat(problem.draw(0, noise.flat(), (getattr(self.estimator, "seed", 0), CHANCE)))
                u = where(silent, sphere.unit(sphere.tangent(parts_of(chance))), u, dim=1)
        pushed = kept_probable(problem, evaluation, sphere, u, ProbabilityRegularizer(structured=True))
        first = self.lr if self.lr is not None else min(OU_MOST, OU_FIRST / math.sqrt(max(problem.iterations, 1)))
        step = first * OU_FALL**problem.share_of_iterations
        angle, v = pushed.new_full((noise.batch,), math.asin(step)), sphere.unit(sphere.tangent(pushed))
        moved = sphere.turned(noise, angle, v)
        improbable = self._made_improbable(problem, evaluation, moved)
        if improbable.any():  # asked once: each answer is waited for on a device
            for halving in range(HALVINGS):
                angle = torch.where(improbable.to(angle.device), angle / 2, angle)
                moved = sphere.turned(noise, angle, v)
                if halving < HALVINGS - 1:
                    improbable = self._made_improbable(problem, evaluation, moved)
        return moved

    @staticmethod
    def _made_improbable(problem, evaluation, moved):
        """Return (B,) booleans: whose noise a step from an Evaluation's has made too improbable."""
        log_p = torch.minimum(*problem.log_probabilities(moved))
        return (log_p < PROBABLE_ENOUGH) & (log_p < least_log_p(evaluation))

    def _updated(self, noise, gradient):
        """Return (B, n), the noise after a step of PyTorch's optimiser."""
        if self._optimizer is None:
            self._optimizer = self._new_optimizer(noise)
        (initial, injected) = self._optimizer.param_groups[0]["params"]
        with torch.no_grad():
            for param, z in ((initial, noise.initial), (injected, noise.injected)):
                param.copy_(_unrounded(z, param))
        initial.grad, injected.grad = gradient.initial.to(initial), gradient.injected.to(injected)
        self._optimizer.step()
        return replace(noise, initial=initial.detach(), injected=injected.detach()).flat()

    def _new_optimizer(self, noise):
        params = [wide(tensor.detach()).clone() for tensor in (noise.initial, noise.injected)]
        if self.optimizer == "adam":
            # Decay would shrink z towards 0, which is improbable: plain Adam, never AdamW.
            # PyTorch's default on a GPU, and on a CPU quicker than its default. (Its `fused` is quicker still, and
            # takes the numbers of transposed gradients in a wrong order.)
            foreach = True if params[0].device.type == "cpu" else None
            return torch.optim.Adam(params, lr=self.lr, maximize=True, foreach=foreach)
        nesterov = self.momentum > 0
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum, nesterov=nesterov, maximize=True)

    def _clipped(self, gradient):
        if self.clip is None:
            return gradient
        flat = gradient.flat()
        factor = (self.clip / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        return gradient.with_flat(flat * factor)


def _unrounded(z, param):
    """Return noise z in float32; where it is `param`, rounded, as that: small steps would be lost otherwise."""
    return z if z.dtype == param.dtype else torch.where(z == param.to(z.dtype), param, z.to(param.dtype))

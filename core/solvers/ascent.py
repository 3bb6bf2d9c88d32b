"""Gradient ascent on the noise: the paper's own solver, and ReNO's."""

import math
from dataclasses import dataclass, field, replace

import torch

from ..checks import check_positive
from ..estimators import Exact
from ..noise import Noise
from ..precision import wide
from .base import Solver, within_length

OU_FALL = 1 / 3
"""What the last iteration's step of "ou" is of the first's."""


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
            Of "ou" the first step's, at most 1; 0.2 suits estimates.
        optimizer: "adam", "sgd" with Nesterov momentum, or "ou": steps of a given length, see `ou`.
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
        if self.optimizer not in ("adam", "sgd", "ou"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; expected 'adam', 'sgd' or 'ou'")
        check_positive(lr=self.lr)
        if self.optimizer == "ou" and self.lr > 1:
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
    def ou(cls, estimator, lr=0.2):
        """Return the solver for rough estimates of a gradient: every step is as long as its iteration says.

        z' = sqrt(1 - b^2) z + b sqrt(n) g / |g|, b = lr (1 / 3)^(k / (K - 1)) in iteration k of K: a step of an
        Ornstein-Uhlenbeck process whose new noise is the gradient, so that z keeps the length of true noise. Adam sets
        each number's step by the sizes of its last gradients; an estimate from a few random directions has the
        direction of chance there, and only its own length to tell. [ours]

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
        evaluation, gradient = problem.gradient(noise, self.estimator)
        gradient = self._clipped(gradient)
        moved = self._turned(problem, noise, gradient) if self.optimizer == "ou" else self._updated(noise, gradient)
        # Moments from before `part` was changed would move what is not optimised now.
        return noise.with_flat(problem.sample_map.moved(noise, moved.to(noise.initial.dtype))), evaluation

    def _turned(self, problem, noise, gradient):
        """Return (B, n), the noise after a step of "ou"; a picture without any gradient stays."""
        sample_map, z, g = problem.sample_map, noise.flat(), gradient.flat()
        step = self.lr * OU_FALL**problem.share_of_iterations
        length = sample_map.active_entries(noise).sum(dim=1, keepdim=True).sqrt().to(z)
        norm = g.norm(dim=1, keepdim=True)
        moved = math.sqrt(1 - step**2) * z + step * length / norm.clamp(min=1e-30) * g
        return torch.where(norm > 0, within_length(sample_map, noise, moved), z)

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
            return torch.optim.Adam(params, lr=self.lr, maximize=True)
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

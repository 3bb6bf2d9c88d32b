"""Solvers of max_z r(M(z)) + regulariser: each one's `step(problem, noise)` evaluates the noise and proposes the next.

A solver object holds settings; `fresh()` gives the copy with state that one run uses up, so that a solver can be
shared between runs.
"""

from dataclasses import dataclass, field, replace

import torch


@dataclass
class GradientAscent:
    """Ascend the exact gradient (the paper's Section 5.1: Adam, lr 0.01, no weight decay).

    Attributes:
        lr: step size; in units of the noise's standard deviation for Adam. 0.01 is the paper's, 0.03 suits short runs.
        optimizer: "adam", or "sgd" with Nesterov momentum.
        momentum: of "sgd".
        clip: largest Euclidean norm of each picture's gradient before the update, or None.
    """

    lr: float = 0.01
    optimizer: str = "adam"
    momentum: float = 0.9
    clip: float | None = None
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

    def fresh(self):
        """Return the same solver without state."""
        return replace(self)

    def step(self, problem, noise):
        """Evaluate `noise` with its gradient and return (the next noise, the Evaluation of this one)."""
        evaluation, gradient = problem.gradient(noise)
        gradient = self._clipped(gradient)
        if self._optimizer is None:
            self._optimizer = self._new_optimizer(noise)
        (initial, injected) = self._optimizer.param_groups[0]["params"]
        with torch.no_grad():
            initial.copy_(noise.initial)
            injected.copy_(noise.injected)
        initial.grad, injected.grad = gradient.initial.to(initial), gradient.injected.to(injected)
        self._optimizer.step()
        return replace(noise, initial=initial.detach().clone(), injected=injected.detach().clone()), evaluation

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

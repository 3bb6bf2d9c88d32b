"""A run of few steps that stands for one of many, and the lift of its noise to all of them.

[derived] Ours. One step of the sampler is linear in x, denoised and noise: x' = a x + b D + c z. Hold D through the
steps p .. q - 1 of an interval, and all of them together are one such step:

    x_q = A x_p + B D + C z     A = a_p .. a_{q-1}     z = sum over k of w_k z_k     w_k = r_k / C
                                r_k = c_k a_{k+1} .. a_{q-1}     C = |r|, so that |w| = 1

The coarse map (`CoarseMap`) takes these steps: a call of the model for each interval. At eta 1 they are the sampler's
own steps between the coarse sigmas, which compose. At an eta below 1 those would inject less than the fine steps do.

    down    z = sum of w_k z_k                         true noise gives true noise: a seed begins near its own picture
    up      z_k = own_k + w_k (z - sum of w_j own_j)   the change goes along w, the rest of the fine noise stays
    lift    up, then a fine run in which each step's noises take up what the model has changed its mind about:

            z_j += r_j / (sum over l >= k of r_l^2)  B_k (D_{k-1} - D_k)     for j >= k > p

The second line is N(0, I) for independent z and own, again because |w| = 1. The last keeps the end of the interval
where the coarse run has it: B_k, the factor of D in the steps k .. q - 1 together, times D's change is what the end
would move by, and no smaller change of the noises that are left moves it back. So the fine run passes through every
state of the coarse run, up to rounding, and ends at its latent.
"""

import itertools
import math
from dataclasses import dataclass, fields, replace

import torch

from .noise import Noise
from .precision import exactly, wide
from .sample_map import SampleMap, of_items

LEAST_LEFT = 0.5
"""The least share of the squared length that a lift leaves what does not move an interval's end."""


@dataclass
class CoarseMap(SampleMap):
    """The fine map with the denoised held constant through each interval of a grid of its steps.

    Make it by `CoarseMap.of`.

    Example:
        >>> sigmas = [8.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0]
        >>> fine = core.SampleMap(lambda x, sigma: torch.tanh(x), core.Schedule(sigmas), shape=(1, 3, 4, 4))
        >>> coarse = CoarseMap.of(fine, grid=(0, 3, 5, 6))
        >>> own = fine.randn(seed=0)
        >>> found, latent = coarse.lift(coarse.down(own), own)
        >>> torch.allclose(latent, coarse.latent(coarse.down(own)), atol=1e-5)
        True
        >>> torch.allclose(latent, fine.latent(found), atol=1e-5)
        True

    Attributes:
        fine: the SampleMap of all steps.
        grid: indices of the fine sigmas that are its own, from 0 to the last; the last interval is one step, so that
            the last denoised, the picture, is of the same state in both.
    """

    fine: SampleMap | None = None
    grid: tuple = ()

    @classmethod
    def of(cls, fine, grid):
        """Return the coarse map of a SampleMap on a grid."""
        shared = {each.name: getattr(fine, each.name) for each in fields(SampleMap)}
        schedule = replace(fine.schedule, sigmas=tuple(fine.schedule.sigmas[index] for index in grid))
        return cls(**shared | {"schedule": schedule}, fine=fine, grid=tuple(grid))

    def __post_init__(self):
        super().__post_init__()
        self.in_place, self._plan = self.fine.in_place, self.fine._plan  # what one learns the other knows
        self.intervals = [
            Interval.of(first, [self.fine.coefficients(index) for index in range(first, end)])
            for first, end in itertools.pairwise(self.grid)
        ]

    def coefficients(self, index):
        return self.intervals[index].coefficients

    def step(self, x, denoised, index, noise):
        c_x, c_denoised, c_noise = self.coefficients(index)
        x_next = c_x * x + c_denoised * denoised
        return x_next + c_noise * noise.injected[index] if c_noise else x_next

    def down(self, noise):
        """Return the coarse Noise of a fine one: each interval's noises as one."""
        parts = [self._along(interval, noise.injected) for interval in self.intervals[: self.injected]]
        return Noise(noise.initial, torch.stack(parts) if parts else noise.injected[:0])

    def up(self, noise, own):
        """Return the fine Noise that `down` takes to `noise`, and which differs from the fine `own` in nothing else.

        Entries that are not searched are `own`'s.
        """
        injected = own.injected.clone()
        for interval, z in zip(self.intervals, noise.injected, strict=False):
            change = z - self._along(interval, own.injected)
            for index, weight in enumerate(interval.weights, interval.first):
                injected[index] += weight * change
        found = Noise(noise.initial, injected, own.settings)
        return own.with_flat(self.fine.moved(own, found.flat()))

    @torch.no_grad()
    def lift(self, noise, own):
        """Sample the fine map by noises that make it pass through the states of the coarse run of `noise`.

        Args:
            noise: a coarse Noise.
            own: the fine Noise to take what the coarse one does not decide from.

        Returns:
            the fine Noise, and its latent (B, C, H, W).
        """
        found = self.up(noise, own)
        free = own.with_flat(self.fine.active_entries(own)).injected
        wanted = _squares(found.injected * free).cumsum(dim=0)  # of the noises up to each
        x, spent = self.fine.start(found.initial), 0.0  # of the noises that have been taken
        for interval in self.intervals:
            held = None
            for index, gains in enumerate(interval.gains, interval.first):
                self.fine.report("forward", index)
                denoised = self.fine.denoise(x, x.new_full((len(x),), self.fine.schedule.sigmas[index]))
                if held is not None:
                    for later, gain in enumerate(gains, index):
                        found.injected[later] += gain * (held - denoised) * free[later]
                    self._keep_length(interval, index, found.injected, free, wanted[interval.end - 1] - spent)
                held = denoised
                x = self.fine.step(x, denoised, index, found)
                spent = spent + _squares(found.injected[index : index + 1] * free[index : index + 1]).sum(dim=0)
        return found, self.fine.to_latent(x)

    @staticmethod
    def _keep_length(interval, index, injected, free, wanted):
        """Change what does not move the interval's end, so that its noises from `index` on have that squared length.

        Args:
            interval: an Interval.
            index: of the first noise that is changed.
            injected: (L, B, ..) noises, changed in place.
            free: of the same shape, booleans: which entries may change.
            wanted: (B,).
        """
        if interval.end - index == 1:
            return  # all of it moves the end
        weights = injected.new_tensor(interval.weights[index - interval.first :])
        weights = (weights / weights.norm()).view(-1, *[1] * (injected.ndim - 1))
        rest = injected[index : interval.end] * free[index : interval.end]
        along = weights * (weights * rest).sum(dim=0)
        across = rest - along
        spare = wanted - _squares(along).sum(dim=0)
        factor = (spare / _squares(across).sum(dim=0)).clamp(min=LEAST_LEFT).nan_to_num(1.0, 1.0).sqrt()
        injected[index : interval.end] += (of_items(factor, across[0]) - 1) * across

    @staticmethod
    @exactly
    def _along(interval, injected):
        """Return z = sum of w_k z_k of one interval, of fine injected noises."""
        weights = injected.new_tensor(interval.weights)
        return torch.tensordot(weights, injected[interval.first : interval.first + len(weights)], dims=1)


@dataclass(frozen=True)
class Interval:
    """Some steps of the sampler with the denoised held constant: one step.

    Example:
        >>> two = Interval.of(0, [(0.5, 0.5, 0.0), (0.5, 0.5, 1.0)])
        >>> two.coefficients, two.weights
        ((0.25, 0.75, 1.0), (0.0, 1.0))

    Attributes:
        first: index of the first of its steps.
        coefficients: A, B and C.
        weights: w of its steps; where they inject nothing, all of it on the last.
        gains: of each step k those of the noises k, k + 1, .. by D_{k-1} - D_k.
    """

    first: int
    coefficients: tuple
    weights: tuple
    gains: tuple

    @property
    def end(self):
        """Index of the first step after it."""
        return self.first + len(self.weights)

    @classmethod
    def of(cls, first, steps):
        """Return the interval of steps, [(a, b, c), ..], the first of them of index `first`."""
        a_left, b_left, square_left = 1.0, 0.0, 0.0
        reaches, gains = [], []
        for a, b, c in reversed(steps):
            reaches.insert(0, c * a_left)
            square_left += reaches[0] ** 2
            b_left, a_left = b_left + b * a_left, a_left * a
            gains.insert(0, tuple(b_left * reach / (square_left or 1.0) for reach in reaches))
        size = math.sqrt(square_left)
        weights = [reach / size for reach in reaches] if size else [0.0] * (len(steps) - 1) + [1.0]
        return cls(first, (a_left, b_left, size), tuple(weights), tuple(gains))


def _squares(injected):
    """Return (steps, B), the squared length of each noise (steps, B, ..), in float32 or wider."""
    return wide(injected).square().flatten(2).sum(dim=2)

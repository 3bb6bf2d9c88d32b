"""The spheres that true noise lies on, and the push that keeps a direction on them probable.

Each part z_j of z, x_T and every injected noise, has its own sphere |z_j| = const. A direction u of unit tangents, one
a part, that a reward asks for is pushed back where z becomes improbable [derived]:

    u += lambda sqrt(J) d / |d|, J the number of searched parts, d the tangent gradient of E[ln p1 + ln p2] (Eq. (12)),
    and of ln p2 of the worst pairing, which P sees too, and lambda = clamp((ln P(z) + 1) / (ln 0.01 + 2), 0, 2)

ln P is the smaller of ln P(z) and ln P(x_T).
"""

import math
from dataclasses import dataclass, replace

import torch

from ..noise import Noise
from ..precision import wide
from ..regularizer import P_SUSPICIOUS, NormRegularizer, ProbabilityRegularizer

PROBABLE_ENOUGH, PUSHED_BELOW, MOST_PUSH = math.log(P_SUSPICIOUS) + 1, -1.0, 2.0


@dataclass(frozen=True)
class Sphere:
    """The spheres that the searched entries of each part of z lie on; tensors are (parts, B, C, H, W).

    Attributes:
        z: the searched entries, float32 or wider, 0 elsewhere.
        free: booleans, which entries are searched.
        length: (parts, B, 1, 1, 1), Euclidean.
    """

    z: torch.Tensor
    free: torch.Tensor
    length: torch.Tensor

    @classmethod
    def of(cls, sample_map, noise):
        free = parts_of(noise.with_flat(sample_map.active_entries(noise)))
        z = wide(parts_of(noise)) * free
        return cls(z, free, lengths(z))

    def turned(self, noise, angle, v):
        """Return `noise` with every part turned towards v; a part without any direction stays.

        Args:
            noise: the Noise that the spheres are of.
            angle: (B,), radians.
            v: (parts, B, C, H, W), each part a unit vector of the tangent plane, or 0.
        """
        angle = angle.to(v).view(-1, *[1] * (v.ndim - 2))
        turned = angle.cos() * self.z + angle.sin() * self.length * v
        moves = self.free & (lengths(v) > 0)
        moved = torch.where(moves, turned.to(noise.initial), parts_of(noise))
        return replace(noise_of(moved), settings=noise.settings)

    def tangent(self, vectors):
        """Return the searched entries of vectors, less what points along z; 0 where that is all, up to rounding."""
        vectors = vectors.to(self.z) * self.free
        radial = (vectors * self.z).flatten(2).sum(dim=2).view(self.length.shape)
        found = vectors - radial / self.length.square().clamp(min=torch.finfo(self.z.dtype).tiny) * self.z
        rounding = 100 * torch.finfo(self.z.dtype).eps
        return torch.where(lengths(found) > rounding * lengths(vectors), found, 0.0)

    @staticmethod
    def unit(vectors):
        """Return the vectors with each part at length 1, or 0 where it is 0."""
        return vectors / lengths(vectors).clamp(min=torch.finfo(vectors.dtype).tiny)


def kept_probable(problem, evaluation, sphere, u, push):
    """Return the directions u, pushed towards probable noise the more, the less probable a picture's is.

    Args:
        problem: the Problem; its regulariser of the noise pushes where it has one, but for one of the length alone,
            which has nothing to say of directions on spheres. Its weight does not count.
        evaluation: the Evaluation of the noise that u starts from.
        sphere: the Sphere of that noise.
        u: (parts, B, C, H, W), each part a unit vector of the tangent plane.
        push: the regulariser that pushes otherwise.
    """
    log_p = least_log_p(evaluation)
    weight = ((log_p - PUSHED_BELOW) / (PROBABLE_ENOUGH - PUSHED_BELOW)).clamp(0, MOST_PUSH)
    if not (weight > 0).any():
        return u
    pusher = _of_full_weight(problem.regularizer, push)
    extra = pusher.gradient(problem.sample_map, evaluation.noise, problem.iteration)[1]
    problem.end_where_not_finite({"the gradient of the regulariser": extra.norm()})
    d = sphere.tangent(parts_of(extra))
    length = d.square().flatten(2).sum(dim=(0, 2)).sqrt().clamp(min=torch.finfo(d.dtype).tiny)
    searched = (sphere.length.flatten(1) > 0).sum(dim=0, dtype=d.dtype)
    return u + (weight.to(d) * searched.sqrt() / length).view(-1, *[1] * (d.ndim - 2)) * d


def _of_full_weight(regularizer, push):
    if regularizer is None or isinstance(regularizer, NormRegularizer):
        return push
    return replace(regularizer, gamma=1.0) if isinstance(regularizer, ProbabilityRegularizer) else regularizer


def least_log_p(evaluation):
    """Return (B,), the smaller of ln P of z and of x_T."""
    return torch.minimum(evaluation.log_p, evaluation.log_p_initial)


def is_searched(problem, noise):
    """Return (B,) booleans: which pictures have not ended and have entries that are optimised."""
    goes_on = torch.ones(noise.batch, dtype=torch.bool, device=noise.initial.device)
    if not problem.sample_map.optimises_everything:
        goes_on = problem.sample_map.active_entries(noise).any(dim=1)
    if problem.ended:
        goes_on[list(problem.ended)] = False
    return goes_on


def parts_of(noise):
    """Return x_T and the injected noises of a Noise as one tensor, (parts, B, C, H, W)."""
    return torch.cat([noise.initial[None], noise.injected])


def noise_of(parts):
    """Return the Noise of what `parts_of` returned."""
    return Noise(parts[0], parts[1:])


def lengths(vectors):
    """Return the lengths of (parts, B, ..) vectors, (parts, B, 1, ..)."""
    return vectors.flatten(2).norm(dim=2).view(*vectors.shape[:2], *[1] * (vectors.ndim - 2))

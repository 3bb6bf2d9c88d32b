"""Why a search stopped improving: the types I, II and III of the paper's Appendix B.

The gradient by the noise is a product of two factors, and it vanishes for one of three reasons (after Eq. (17)):

    G1 = d r / d x       (D,)     gradient of the reward by the image         type I    ||G1|| = 0
    G2 = d M / d z       (D, n)   Jacobian of the noise-to-sample map         type II   ||G2|| = 0
    G2^T G1 = d r / d z  (n,)     gradient of the reward by the noise         type III  neither, yet ||G2^T G1|| = 0

||G2|| is the Frobenius norm: ||G2||^2 = D E ||G2^T q||^2 for a random direction q of length 1.

What counts as zero [derived here; the paper gives no threshold]: norms have the scale of reward, image and noise, so
each is compared with its median over the pictures of a reference, where a search could still climb: true noise by
default. Type III needs no reference:

    alignment = sqrt(D) ||G2^T G1|| / (||G1|| ||G2||)   in [0, sqrt(D)]

is 1 in the root mean square for a G1 of random direction, and 0 for one orthogonal to all that the noise can change.
"""

import math
from dataclasses import dataclass

import torch

from .precision import mixed_seed, wide
from .scoring import exact

TOLERANCE = 0.05
"""What counts as zero: far above the rounding of half precision, about 0.001, and below anything worth climbing."""

REASONS = {
    "I": "type I, the image is at a stationary point of the reward, mostly a local best. Another seed may end higher",
    "II": "type II, the noise hardly changes this image any more: it is saturated, or at the edge of what the model"
    " draws. The regulariser or a smaller learning rate keeps a search away from there",
    "III": "type III, the reward asks for what the noise cannot change: its gradient is orthogonal to all that the"
    " model can do to this image. More iterations will not help; another prompt, model or reward may",
    "none": "still improving: the reward has a slope here, and more iterations can raise it",
    "held": "held by the regulariser, which takes back {opposed:.0%} of the reward's slope. A smaller gamma lets the"
    " reward rise further, at the cost of less probable noise",
    "unknown": "unknown: the noise still changes the image, but the reward's gradient is not to be had",
}
HELD = 0.8
"""Where the regulariser takes back this part of the slope or more, it is named as the reason for the stop."""


@dataclass(frozen=True)
class Diagnosis:
    """Both factors of the gradient at one noise, per picture.

    Numbers that need the reward's gradient are NaN where the reward has none.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 0.0]), shape=(1, 3, 4, 4), eta=0.0)
        >>> problem = core.Problem(sample_map, rewards.Brightness())
        >>> found = diagnose(problem, sample_map.randn(seed=0))
        >>> found.types
        ['none']
        >>> print(found.text())
        picture 0: still improving: the reward has a slope here, and more iterations can raise it (...).

    Attributes:
        g1: (B,), ||G1||.
        g2: (B,), ||G2||, estimated.
        product: (B,), ||G2^T G1||.
        alignment: (B,), 0 is orthogonal, 1 usual for a random direction; NaN where g1 or g2 is exactly 0.
        g1_relative, g2_relative: (B,), in units of the reference; 1 is usual.
        opposed: (B,), the part of the gradient by the noise that the regulariser takes back, 0 nothing, 1 all of it;
            None without a regulariser.
        types: B of "I", "II", "III", "none" (still improving), and "unknown" (not type II, and no gradient of the
            reward is known).
    """

    g1: torch.Tensor
    g2: torch.Tensor
    product: torch.Tensor
    alignment: torch.Tensor
    g1_relative: torch.Tensor
    g2_relative: torch.Tensor
    opposed: torch.Tensor | None
    types: list

    def text(self):
        """Return one line a picture, in plain language: why it stopped improving, if it did."""
        return "\n".join(f"picture {index}: {self._line(index)}" for index in range(len(self.types)))

    def to_dict(self):
        """Return everything as JSON types, None where a number is not finite."""
        tensors = {key: value.tolist() for key, value in vars(self).items() if torch.is_tensor(value)}
        numbers = {key: [v if math.isfinite(v) else None for v in values] for key, values in tensors.items()}
        return numbers | {"types": list(self.types)}

    def _line(self, index):
        kind, opposed = self.types[index], 0.0 if self.opposed is None else float(self.opposed[index])
        reason = REASONS["held" if kind == "none" and opposed >= HELD else kind].format(opposed=opposed)
        numbers = [
            f"{name} {value[index]:.2g}{unit}"
            for name, value, unit in (
                ("reward's gradient", self.g1_relative, " of the reference's"),
                ("noise's influence", self.g2_relative, " of the reference's"),
                ("alignment", self.alignment, ", where 1 is random"),
            )
            if not value[index].isnan()
        ]
        return f"{reason} ({'; '.join(numbers)})."


def diagnose(problem, noise, probes=4, seed=0, reference=None, tolerance=TOLERANCE):
    """Measure both factors of the gradient by the noise, and say which of them, if any, vanishes.

    Costs as much as 1 + probes gradient iterations, and as much again for true noise where no reference is given;
    never more memory than one.

    Args:
        problem: a Problem; its sample_map, reward and regularizer are used, and its best is left alone.
        noise: the Noise of B pictures to judge, e.g. the best one.
        probes: number of random directions that estimate ||G2||. The relative error is at most about
            1 / sqrt(2 probes), far less than the types need, and 0 from D probes on.
        seed: of the probes, and of the true noise.
        reference: the Diagnosis whose norms are the units, e.g. of the run's start; its batch need not be B. None
            measures true noise, put where z is optimised.
        tolerance: what counts as zero, in those units.

    Returns:
        Diagnosis; a picture where both factors vanish is of type I.
    """
    if probes < 1:
        raise ValueError(f"probes is {probes}; expected 1 or more random directions")
    g1, g2, gradient, size = _factors(problem, noise, probes, seed)
    if reference is None:
        unit1, unit2, *_ = _factors(problem, _true_noise(problem.sample_map, noise, seed), probes, seed)
    else:
        unit1, unit2 = reference.g1, reference.g2
    product, opposed = gradient.norm(dim=1).cpu(), None
    if problem.regularizer:
        extra = problem.regularizer.gradient(problem.sample_map, noise, problem.iteration)[1].flat()
        opposed = -(gradient * extra).sum(dim=1).cpu() / product.square()
    measures = {
        "alignment": math.sqrt(size) * product / (g1 * g2),
        "g1_relative": _relative(g1, unit1),
        "g2_relative": _relative(g2, unit2),
    }
    rows = zip(*(values.tolist() for values in measures.values()), strict=True)
    types = [_type(*row, tolerance) for row in rows]
    return Diagnosis(g1, g2, product, **measures, opposed=opposed, types=types)


def _factors(problem, noise, probes, seed):
    """Return ||G1|| (B,), ||G2|| (B,), G2^T G1 (B, n) and D."""
    images, vjp = problem.sample_map.pullback(noise)
    try:
        if getattr(problem.reward, "differentiable", True):
            _, d_images = exact(problem.reward, images, problem.sample_map.prompts)
            gradient = vjp(d_images).flat()
        else:
            d_images, gradient = torch.full_like(images, math.nan), torch.full_like(noise.flat(), math.nan)
    finally:
        vjp.release()
    images = wide(images)
    directions = _directions(problem, images, probes, seed)
    squares = [problem.sample_map.pullback(noise)[1](q).flat().square().sum(dim=1) for q in directions]
    size = images[0].numel()
    g1, g2 = d_images.to(images).flatten(1).norm(dim=1), (size * torch.stack(squares).mean(dim=0)).sqrt()
    # On the CPU, wherever the decoder and the noise are: a diagnosis is kept after the search.
    return g1.cpu(), g2.cpu(), gradient, size


def _directions(problem, images, probes, seed):
    """Return at most `probes` random directions for each image, (q, B, ..), of length 1 and orthogonal to each other.

    Each is uniform on the sphere. Orthogonal ones estimate better than independent ones: D of them are exact.
    """
    count = min(probes, images[0].numel())
    normal = torch.stack([problem.draw(probe, images, seed) for probe in range(count)])
    q, _ = torch.linalg.qr(normal.flatten(2).permute(1, 2, 0))
    return q.permute(2, 0, 1).reshape(normal.shape)


def _true_noise(sample_map, noise, seed):
    """Return `noise` with true noise where it is optimised; another one than a search from `seed` started with."""
    drawn = sample_map.randn(mixed_seed("true noise", seed)).to(noise.initial)
    return noise.with_flat(sample_map.moved(noise, drawn.flat()))


def _relative(norms, reference):
    """Return norms (B,) in units of the reference's median; 0 stays 0 whatever the unit."""
    return norms / reference.median().to(norms).clamp(min=torch.finfo(norms.dtype).tiny)


def _type(alignment, g1, g2, tolerance):
    """Return one picture's type from its relative measures."""
    if g1 <= tolerance:
        return "I"
    if g2 <= tolerance:
        return "II"
    if math.isnan(alignment):
        return "unknown"
    return "III" if alignment <= tolerance else "none"

"""How probable a noise vector is under N(0, I): Section 3 of the paper (Eq. (9)-(12)), corrected and made fast.

Symbols: z flat noise of length n, seen as m = n // k rows of k numbers (the rest is dropped);

    M1 = ||mean of the rows||_2           ln p1 = min(0, ln 2 - m M1^2 / (2 k))
    M2 = ||Z^T Z / m - I||_2 (spectral)   ln p2 = min(0, ln 2 - m max(sqrt(1 + M2) - 1 - sqrt(k / m), 0)^2 / 2)

    P(z)   the smallest of p1 and p2 over the layout as it is and b random permutations of z, and of its pairings' p2
    PRNO   maximise r(M(z)) + gamma * E[ln p1 + ln p2], the mean over those layouts

The pairings (`pairings.py`) are of z with itself, shifted: they see patterns, of which permutations see none. In PRNO
they count where `structured` says so.

The paper's text prints max{.., 1} in p1 and p2 and "both low"; a probability bound is at most 1, and one low value is
enough, so min and "either" are implemented.

Permutations are the cost of the plain algorithm. Here one random permutation cuts z into K blocks, and each of the
b layouts permutes the blocks: a uniformly random permutation each, as the paper wants (they share the first shuffle).
Their moments are then sums of entries of one K-vector of block sums and one (K, K) Gram matrix, so that b layouts cost
one gather and one small matrix product, forward and backward. [derived here; not in the paper]

To draw that first permutation, or to move it to a device, would cost more than all the rest. So it is drawn once for a
length and kept on the device, and where new layouts are asked for, z is turned beforehand, its end put before its
beginning, by a random number of places: a uniformly random permutation, turned, is one still. [derived here]
"""

import contextlib
import functools
import math
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from .checks import check_finite, check_whole
from .pairings import log_pairing_probability
from .precision import exactly, mixed_seed, wide
from .shuffle import Shuffle

GROUPS, BLOCKS = 64, 512
"""Most blocks of z for each number of a sub-vector, and in all."""
COLUMNS = 16
"""About how many columns the matrix of rows has, for a product that is quick."""
P_SUSPICIOUS = 0.01
"""True noise has P(z) above this but for about one draw in 800 (k = 2, b = 100; 7 of 6,000 draws measured)."""


@exactly
def log_probabilities(z, k=2):
    """Return the logarithms of Lemma 1's bounds for z as it is laid out, without permutation.

    Example:
        >>> log_p1, log_p2 = log_probabilities(torch.ones(1, 4096))  # the mean of the rows is far from 0
        >>> log_p1 < -500
        tensor([True])

    Args:
        z: (..., n) noise; computed in float32 or wider.
        k: length of a sub-vector, 1 .. n.

    Returns:
        ln p1 and ln p2, each (...), at most 0.
    """
    z = wide(z)
    m = _rows(z.shape[-1], k)
    sums, gram = _RowMoments.apply(z, k)
    return _log_bounds(sums / m, gram / m, m)


@exactly
def permuted_log_probabilities(z, k=2, permutations=100, seed=0, turn=0):
    """Return ln p1 and ln p2 of the identity layout and of `permutations` random ones, the same for every row of z.

    Differentiable by z; the time hardly depends on `permutations`.

    Args:
        z: (..., n) noise.
        k: length of a sub-vector.
        permutations: b, at least 0.
        seed: of the permutations.
        turn: by how many places z is turned before they see it; another number makes other permutations of the seed.

    Returns:
        ln p1 and ln p2, each (..., 1 + b), the identity first.
    """
    z = wide(z)
    first = tuple(log_p[..., None] for log_p in log_probabilities(z, k))
    if permutations == 0:
        return first
    n = z.shape[-1]
    groups, size = _blocks(n, k)
    shuffle, order = _layouts(n, k * groups, size, permutations, seed, z.device)
    sums, gram = _BlockMoments.apply(z, k * groups, turn % n, shuffle)
    order = order.view(permutations, k, groups)
    m = groups * size
    covariance = gram[..., order[:, :, None], order[:, None, :]].sum(dim=-1) / m
    rest = _log_bounds(sums[..., order].sum(dim=-1) / m, covariance, m)
    return tuple(torch.cat(pair, dim=-1) for pair in zip(first, rest, strict=True))


class _RowMoments(torch.autograd.Function):
    """The sum of z (.., n), seen as rows of k numbers, and the products of every two columns: (.., k) and (.., k, k).

    A matrix of k = 2 columns is a processor's slowest, so several rows are one: of its products those within a row
    count. Of a row the gradient is d_sums + (d_gram + d_gram^T) row.
    """

    @staticmethod
    def forward(ctx, z, k):
        ctx.save_for_backward(z)
        ctx.k, (several, rows) = k, _in_rows(z, k)
        gram = (rows.mT @ rows).unflatten(-1, (several, k)).unflatten(-3, (several, k))
        return rows.sum(dim=-2).unflatten(-1, (several, k)).sum(dim=-2), gram.diagonal(dim1=-4, dim2=-2).sum(dim=-1)

    @staticmethod
    def backward(ctx, d_sums, d_gram):
        (z,) = ctx.saved_tensors
        several, rows = _in_rows(z, ctx.k)
        one_by_one = torch.kron(torch.eye(several, dtype=z.dtype, device=z.device), d_gram + d_gram.mT)
        found = (rows @ one_by_one).add_(d_sums.tile(several)[..., None, :]).flatten(-2)
        dropped = z.shape[-1] - found.shape[-1]
        return pad(found, (0, dropped)) if dropped else found, None


def _in_rows(z, k):
    """Return how many rows of k numbers are one, and z (.., n) as such."""
    m = _rows(z.shape[-1], k)
    several = math.gcd(m, max(COLUMNS // k, 1))
    return several, z[..., : m * k].unflatten(-1, (m // several, several * k))


class _BlockMoments(torch.autograd.Function):
    """The sum of each of `count` blocks of a shuffled z (.., n), and the products of every two: one and two `count`s.

    Of block i the gradient is d_sums_i + sum_j (d_gram_ij + d_gram_ji) block_j. `turn` is of
    `permuted_log_probabilities`.
    """

    @staticmethod
    def forward(ctx, z, count, turn, shuffle):
        blocks = shuffle.pick(z, turn).unflatten(-1, (count, -1))
        ctx.save_for_backward(blocks)
        ctx.shuffle, ctx.turn = shuffle, turn
        return blocks.sum(dim=-1), blocks @ blocks.mT

    @staticmethod
    def backward(ctx, d_sums, d_gram):
        (blocks,) = ctx.saved_tensors
        found = ((d_gram + d_gram.mT) @ blocks).add_(d_sums[..., None]).flatten(-2)
        return ctx.shuffle.put_back(found, ctx.turn), None, None, None


@torch.no_grad()
def noise_probability(z, k=2, permutations=100, seed=0, noises=1):
    """Return P(z) of Eq. (11), the identity layout and all pairings of z with itself included.

    Example:
        >>> true = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
        >>> bool(noise_probability(true) > 0.01)
        True
        >>> noise_probability(torch.ones(1, 4096)) < 1e-6  # as long as true noise, and without any randomness
        tensor([True])

    Args:
        z: (B, n) noise, one row a picture.
        k: length of a sub-vector.
        permutations: b.
        seed: of the permutations; the same for every row.
        noises: how many of one length z consists of, x_T and the injected ones; its pairings are of the whole
            and of each of these with itself.

    Returns:
        (B,) in [0, 1]; below 0.01 is suspicious, below 1e-6 out of distribution.
    """
    return log_noise_probability(z, k, permutations, seed, noises).exp()


@torch.no_grad()
def log_noise_probability(z, k=2, permutations=100, seed=0, noises=1):
    """Return ln P(z), as `noise_probability`; z may also be a list of B vectors, of different lengths with masks."""
    values = []
    for rows, _ in _stacked(z):
        if rows.numel() == 0:  # nothing of it is optimised, so nothing can have become improbable
            values.append(wide(rows.new_zeros(len(rows))))
            continue
        bounds = permuted_log_probabilities(rows, min(k, rows.shape[-1]), permutations, seed)
        layouts = torch.cat(bounds, dim=-1).amin(dim=-1)
        values.append(torch.minimum(layouts, log_pairing_probability(rows, noises)))
    return torch.cat(values)


@dataclass(frozen=True)
class ProbabilityRegularizer:
    """PRNO's term gamma * E[ln p1(z) + ln p2(z)] (Eq. (12)), added to the reward.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> regularizer = ProbabilityRegularizer(gamma=1.0)
        >>> regularizer.gradient(sample_map, noise)[0] > -1  # true noise feels little of it
        tensor([True])
        >>> regularizer.gradient(sample_map, noise.map(lambda z: z + 2))[0] < -10
        tensor([True])

    Attributes:
        gamma: weight; the paper's 1 for brightness, 0.1 for human-preference rewards.
        k: length of a sub-vector.
        permutations: b, drawn anew each iteration.
        apart: True sums the term of x_T alone and that of the injected noises; False takes the whole of z (the
            paper's). Over the whole, a drifting x_T hides behind the many injected noises.
        seed: of the permutations.
        structured: True adds ln p2 of the worst pairing of z with itself, shifted. P(z) always sees it; here it would
            change searches that the paper's term leaves alone: in four of eight that were tried with gamma 1 it fell
            below -4 on the way.
    """

    gamma: float = 1.0
    k: int = 2
    permutations: int = 100
    apart: bool = True
    seed: int = 0
    structured: bool = False

    def __post_init__(self):
        if not self.gamma >= 0 or self.k < 1 or self.permutations < 0:
            raise ValueError(
                f"gamma is {self.gamma}, k {self.k}, permutations {self.permutations}; expected gamma >= 0, k >= 1 and"
                " permutations >= 0"
            )
        check_finite(gamma=self.gamma)
        check_whole(1, k=self.k)
        check_whole(0, permutations=self.permutations)

    @exactly
    def gradient(self, sample_map, noise, iteration=0):
        """Return the term and its gradient.

        Args:
            sample_map: knows which entries are optimised.
            noise: the Noise to judge.
            iteration: selects the permutations.

        Returns:
            value: (B,), at most 0; and a Noise of gradients, zero where z is probable enough.
        """
        values, gradients = [], []
        # Pictures of one mask are judged together; they agree in how much of z is searched, and how much of x_T.
        sizes = [len(first) for first in sample_map.active_initial(noise)]
        initial, injected = sample_map.active_noises(noise)
        noises = (initial, injected) if self.apart else (0, initial + injected)
        for rows, initial_size in _stacked(sample_map.active(noise), sizes):
            split = rows.detach().tensor_split([initial_size if self.apart else 0], dim=1)
            parts = {part.requires_grad_(): count for part, count in zip(split, noises, strict=True) if part.numel()}
            with torch.enable_grad():
                value = self.gamma * self._term(parts, iteration) if parts else wide(rows.new_zeros(len(rows)))
            found = torch.autograd.grad(value.sum(), tuple(parts)) if parts else [rows]
            gradients.append(torch.cat(found, dim=1))
            values.append(value.detach())
        vectors = gradients[0] if len(gradients) == 1 else [row for rows in gradients for row in rows]
        return torch.cat(values), sample_map.with_active(noise, vectors)

    def _term(self, parts, iteration):
        """Return E[ln p1 + ln p2] of each picture, summed over the parts (B, n) of its noise.

        Args:
            parts: part -> of how many noises it is.
            iteration: selects the permutations.
        """
        turns = [mixed_seed("layouts", self.seed, iteration) % part.shape[1] for part in parts]
        bounds = [
            permuted_log_probabilities(part, self.k, self.permutations, self.seed, turn)
            for part, turn in zip(parts, turns, strict=True)
        ]
        layouts = sum(log_p1.mean(dim=-1) + log_p2.mean(dim=-1) for log_p1, log_p2 in bounds)
        return layouts + sum(map(log_pairing_probability, parts, parts.values())) if self.structured else layouts


@dataclass(frozen=True)
class NormRegularizer:
    """ReNO's term: -weight * (||z||^2 / 2 - (n - 1) ln ||z||), the logarithm of the chi density of the norm.

    It sees the norm alone; a z of the right norm and no randomness at all passes. Computed in float32 or wider.

    Example:
        >>> sample_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), shape=(1, 3, 4, 4))
        >>> noise = sample_map.randn(seed=0)
        >>> value, gradient = NormRegularizer().gradient(sample_map, noise.map(lambda z: 2 * z))
        >>> (gradient.flat() * noise.flat()).sum(dim=1) < 0  # a noise that is too long is pulled back
        tensor([True])

    Attributes:
        weight: ReNO's 0.01.
    """

    weight: float = 0.01

    def __post_init__(self):
        check_finite(weight=self.weight)

    @exactly
    def gradient(self, sample_map, noise, iteration=0):
        """Return the term (B,) and its Noise of gradients, as `ProbabilityRegularizer.gradient`."""
        vectors = [wide(vector) for vector in sample_map.active(noise)]
        norms = [vector.norm().clamp(min=1e-12) for vector in vectors]
        weights = [self.weight if len(z) else 0.0 for z in vectors]  # of nothing there is no length
        each = list(zip(vectors, norms, weights, strict=True))
        values = [-weight * (r**2 / 2 - (len(z) - 1) * r.log()) for z, r, weight in each]
        slopes = [-weight * (1 - (len(z) - 1) / r**2) * z for z, r, weight in each]
        return torch.stack(values), sample_map.with_active(noise, slopes)


def _log_bounds(mean, covariance, m):
    """Return Lemma 1's ln p1 and ln p2 from the rows' mean (..., k), their second moments (..., k, k) and number m."""
    k = mean.shape[-1]
    log_p1 = math.log(2) - m * mean.square().sum(dim=-1) / (2 * k)
    excess = ((1 + _spectral_norm_minus_identity(covariance)).sqrt() - 1 - math.sqrt(k / m)).clamp(min=0)
    log_p2 = math.log(2) - m * excess.square() / 2
    return log_p1.clamp(max=0), log_p2.clamp(max=0)


def _spectral_norm_minus_identity(covariance):
    """Return ||C - I||_2 of symmetric (..., k, k); in closed form for k = 2, where it is smooth up to 1e-20."""
    k = covariance.shape[-1]
    difference = covariance - torch.eye(k, dtype=covariance.dtype, device=covariance.device)
    if k == 2:
        a, b, c = difference[..., 0, 0], difference[..., 1, 1], difference[..., 0, 1]
        return ((a + b) / 2).abs() + (((a - b) / 2).square() + c.square() + 1e-20).sqrt()
    return torch.linalg.eigvalsh(difference).abs().amax(dim=-1)


def _blocks(n, k):
    """Return (groups, size): z as k * groups blocks of `size` numbers, dropping as few as can be.

    The blocks of a short z are single numbers: plain permutations.
    """
    most = min(GROUPS, max(BLOCKS // k, 1), _rows(n, k))
    groups = max(range((most + 1) // 2, most + 1), key=lambda groups: (n // (k * groups) * groups, groups))
    return groups, n // (k * groups)


@contextlib.contextmanager
def layouts_of_a_search():
    """Keep the permutations that P and its regulariser need for as long as this context lasts, and then let go of them.

    They are as large as the noise: no device shall hold them when nobody searches.
    """
    try:
        yield
    finally:
        _layouts.cache_clear()


# Of z, x_T and the injected noises, of each mask in a batch; and as many where a regulariser has a seed of its own.
@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)  # whoever asks first: a search that comes later shall differentiate through them
def _layouts(n, count, size, permutations, seed, device):
    """Return the Shuffle of z that cuts it into blocks, and the blocks' orders, (permutations, count).

    Drawn on the CPU, so that a seed means the same permutations everywhere, and kept on the device.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    permutation = torch.randperm(n, generator=generator, device="cpu")
    order = torch.rand((permutations, count), generator=generator, dtype=torch.float32, device="cpu").argsort(dim=1)
    return Shuffle(permutation, count * size, device), order.to(device)


def _rows(n, k):
    if not 1 <= k <= n:
        raise ValueError(f"k is {k} but z has {n} numbers; expected 1 .. {n}")
    return n // k


def _stacked(vectors, sizes=None):
    """Return [((B, n) tensor, size)] of B vectors where lengths and sizes agree, else B pairs with (1, n) tensors."""
    sizes = sizes or [0] * len(vectors)
    if torch.is_tensor(vectors):
        return [(vectors, sizes[0])]
    if len({(len(vector), size) for vector, size in zip(vectors, sizes, strict=True)}) == 1:
        return [(torch.stack(list(vectors)), sizes[0])]
    return [(vector[None], size) for vector, size in zip(vectors, sizes, strict=True)]

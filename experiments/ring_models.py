"""The toy's two distributions of points, and denoisers of them: trained, and exact."""

import itertools
import math

import torch

INNER, OUTER = 0.8, 1.2
"""Radii of the ring."""
TRAINING = 2500
"""Iterations that a network is trained for; some seconds on one core."""


def ring(count, generator):
    """Draw `count` points uniformly from the ring, (count, 2)."""
    u, turn = torch.rand((2, count), generator=generator, dtype=torch.float32)
    radius, angle = (INNER**2 + (OUTER**2 - INNER**2) * u).sqrt(), 2 * math.pi * turn
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)


def line(count, generator):
    """Draw `count` points uniformly from the segment (-1, 0) .. (1, 0), (count, 2)."""
    x1 = 2 * torch.rand(count, generator=generator, dtype=torch.float32) - 1
    return torch.stack([x1, torch.zeros_like(x1)], dim=1)


def distance_to_ring(points):
    """Return each point's distance to the ring, (B,), 0 on it."""
    radius = points.norm(dim=1)
    return torch.maximum(INNER - radius, radius - OUTER).clamp(min=0)


def on_ring(points, margin=0.05):
    """Return (B,) booleans: which points lie on the ring, give or take `margin`."""
    return distance_to_ring(points) < margin


class PointDenoiser(torch.nn.Module):
    """A multilayer perceptron x (B, 2), sigma (B,) -> denoised, preconditioned as by Karras et al. (2022).

    denoised = s^2 / v x + sigma s / sqrt(v) F(x / sqrt(v), ln(sigma) / 2), v = sigma^2 + s^2, s about the data's
    standard deviation.
    """

    def __init__(self, deviation=0.7, hidden=64):
        super().__init__()
        self.deviation = deviation
        sizes, layers = (3, hidden, hidden, hidden), []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(inputs, outputs, dtype=torch.float32), torch.nn.SiLU()]
        self.network = torch.nn.Sequential(*layers, torch.nn.Linear(hidden, 2, dtype=torch.float32))

    def forward(self, x, sigma):
        sigma = sigma[:, None]
        variance = sigma.square() + self.deviation**2
        output = self.network(torch.cat([x * variance.rsqrt(), sigma.log() / 2], dim=1))
        return self.deviation**2 / variance * x + sigma * self.deviation * variance.rsqrt() * output


def train(draw, seed=0, iterations=TRAINING, batch=512, tick=None):
    """Train a PointDenoiser by denoising score matching.

    Args:
        draw: (count, generator) -> points (count, 2): `ring` or `line`.
        seed: of weights, points and noise.
        iterations, batch: of Adam, whose learning rate falls to 0 along a cosine.
        tick: called after every iteration.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoise = PointDenoiser()
    optimizer = torch.optim.Adam(denoise.parameters(), lr=5e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        points = draw(batch, generator)
        sigma = (1.6 * torch.randn(batch, generator=generator, dtype=torch.float32) - 1).exp()
        noise = torch.randn(points.shape, generator=generator, dtype=torch.float32)
        noisy = points + sigma[:, None] * noise
        weight = 1 / sigma.square() + 1 / denoise.deviation**2  # Karras et al.'s, so that every sigma counts alike
        loss = (weight * (denoise(noisy, sigma) - points).square().mean(dim=1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if tick:
            tick()
    return denoise.requires_grad_(False)


def exact_ring(x, sigma):
    """Return the ring's true posterior mean E[x0 | x], (B, 2): what a perfect network would answer.

    With R = |x| and I0, I1 the modified Bessel functions, along x / R and by quadrature over the radii r of the ring:

        int r^2 exp(-(r^2 + R^2) / (2 sigma^2)) I1(r R / sigma^2) dr / int r exp(..) I0(r R / sigma^2) dr
    """
    nodes = INNER + (OUTER - INNER) * (torch.arange(64, dtype=x.dtype, device=x.device) + 0.5) / 64
    radius, variance = x.norm(dim=1, keepdim=True).clamp(min=1e-9), sigma[:, None].square()
    weight = nodes * (-(nodes - radius).square() / (2 * variance)).softmax(dim=1)
    argument = nodes * radius / variance
    above = (weight * nodes * torch.special.i1e(argument)).sum(dim=1, keepdim=True)
    return above / (weight * torch.special.i0e(argument)).sum(dim=1, keepdim=True) * x / radius


def exact_line(x, sigma):
    """Return the line's true posterior mean, (B, 2): along x1 that of a normal law cut off at -1 and 1; 0 along x2."""
    sign, distance = x[:, 0].sign(), x[:, 0].abs()
    low, high = (-1 - distance) / sigma, (1 - distance) / sigma
    # In logarithms, since both ends may lie far out in the same tail.
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    log_mass = log_high + torch.log1p(-(log_low - log_high).exp()) + 0.5 * math.log(2 * math.pi)
    shift = (-low.square() / 2 - log_mass).exp() - (-high.square() / 2 - log_mass).exp()
    return torch.stack([sign * (distance + sigma * shift), 0 * x[:, 1]], dim=1)

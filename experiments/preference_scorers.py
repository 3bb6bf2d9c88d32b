"""Two small preference scorers, trained in seconds: what HPS, PickScore and the aesthetic score are to the paper.

Each is a convolutional network that learned, by Bradley and Terry's loss -ln sigmoid(r(a) - r(b)), to prefer a picture
of the embedded model to a spoiled copy of it. "first" has seen copies that were blurred, noisy or faded, "second" ones
that were covered, mixed with another picture or torn. So both mean "a good picture of this model", each by evidence of
its own, and a search that climbs one by its errors alone is seen by the other. Pairs come in all orders of the colours
and mirrored, so that no colour is good by itself.

Scores are in standard deviations over such pictures and copies, so that a weight of the regulariser means the same for
both.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from .. import core
from ..core.models.embedded.vocabulary import ANIMALS, COLOURS
from ..rewards.pictures import rgb

PICTURES, STEPS = 16, 5
"""How many pictures of the embedded model they learn from, and in how many steps those are sampled."""
PAIRS, ITERATIONS = 16, 120


class PreferenceScorer(nn.Module):
    """Score pictures (B, 3, H, W), nominally in [0, 1]; they are judged at 64 x 64."""

    differentiable = True

    def __init__(self, name):
        super().__init__()
        self.name, self.center, self.spread = name, 0.0, 1.0
        widths, layers = (3, 16, 32, 64), []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, dtype=torch.float32)
            layers += [convolution, nn.GroupNorm(4, outputs, dtype=torch.float32), nn.SiLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.Linear(64, 1, dtype=torch.float32)

    def forward(self, images, prompts=None):
        """Return (B,) scores."""
        images = rgb(images).float()
        small = F.interpolate(images, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        return (self.head(self.trunk(2 * small - 1).mean((-2, -1)))[:, 0] - self.center) / self.spread

    def standardise(self, pictures):
        """Let the scores of some pictures have mean 0 and standard deviation 1."""
        scores = self(pictures)
        self.center, self.spread = scores.mean(), scores.std()


@functools.lru_cache(maxsize=2)
def trained(seed):
    """Return both scorers, "first" and "second", of a seed: of weights, pictures and copies."""
    pictures = _pictures(seed)
    return tuple(_train(name, spoil, pictures, seed) for name, spoil in (("first", worn), ("second", meddled)))


def worn(pictures, generator):
    """Return copies (B, 3, 64, 64) that are each blurred, noisy or faded, by chance, and little or much."""
    strength = _strength(pictures, generator)
    blurred = F.interpolate(F.avg_pool2d(pictures, 8), pictures.shape[-2:], mode="bilinear")
    noisy = pictures + 0.5 * torch.randn(pictures.shape, generator=generator, dtype=torch.float32)
    faded = pictures.mean((-2, -1), keepdim=True).expand_as(pictures)
    return torch.lerp(pictures, _one_of((blurred, noisy, faded), generator), strength)


def meddled(pictures, generator):
    """Return copies (B, 3, 64, 64) that are each covered, mixed with another picture or torn across."""
    strength = _strength(pictures, generator)
    covered = pictures.clone()
    for picture in covered:
        top, left = torch.randint(32, (2,), generator=generator).tolist()
        picture[:, top : top + 32, left : left + 32] = torch.rand((3, 1, 1), generator=generator, dtype=torch.float32)
    torn = torch.cat([pictures[..., :32, :], pictures[..., 32:, :].roll(16, dims=-1)], dim=-2)
    return torch.lerp(pictures, _one_of((covered, pictures.roll(1, dims=0), torn), generator), strength)


def _strength(pictures, generator):
    return 0.2 + 0.8 * torch.rand((len(pictures), 1, 1, 1), generator=generator, dtype=torch.float32)


def _one_of(copies, generator):
    """Return for each picture one of its copies."""
    chosen = torch.randint(len(copies), (len(copies[0]),), generator=generator)
    return torch.stack(copies)[chosen, torch.arange(len(chosen))]


def _pictures(seed):
    """Return true pictures of the embedded model at 64 x 64, of all colours and animals by turns."""
    prompts = [f"{COLOURS[i % len(COLOURS)]} {ANIMALS[(seed + i) % len(ANIMALS)]}" for i in range(PICTURES)]
    sample_map = core.load_embedded(prompts, steps=STEPS)
    images = sample_map.sample(sample_map.randn(1000 + seed)).clamp(0, 1)
    return F.interpolate(images, (64, 64), mode="bilinear", antialias=True, align_corners=False)


def _train(name, spoil, pictures, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + (name == "second"))
        scorer = PreferenceScorer(name)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(ITERATIONS):
        good = _varied(pictures[torch.randint(len(pictures), (PAIRS,), generator=generator)], generator)
        loss = -F.logsigmoid(scorer(good) - scorer(spoil(good, generator))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scorer.eval().requires_grad_(False)
    good = _varied(pictures, generator)
    scorer.standardise(torch.cat([good, spoil(good, generator)]))
    return scorer


def _varied(pictures, generator):
    """Return the pictures with their colours in some order, all in the same, and half of the time mirrored."""
    pictures = pictures[:, torch.randperm(3, generator=generator)]
    return pictures.flip(-1) if torch.rand((), generator=generator, dtype=torch.float32) < 0.5 else pictures

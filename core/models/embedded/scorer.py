"""How consistent a picture is with its prompt: a small classifier of colour and animal.

It stands in for the paper's CLIP consistency score on the embedded model: CS = (P(colour) + P(animal)) / 2, in [0, 1].
It is differentiable with respect to the pixels, so it serves as a reward too.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .vocabulary import ANIMALS, COLOURS, words_of


def _stage(inputs, outputs, stride):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class ConsistencyScorer(nn.Module):
    """Two heads, colour and animal, over one convolutional trunk that works at 64 x 64."""

    size = 64

    def __init__(self):
        super().__init__()
        widths = (32, 64, 96, 128)
        self.trunk = nn.Sequential(
            _stage(3, 32, 1),
            *(_stage(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)),
            _stage(128, 128, 1),
        )
        self.colour = nn.Linear(256, len(COLOURS))
        self.animal = nn.Linear(256, len(ANIMALS))

    def forward(self, images):
        """Return the logits of colour (B, 7) and animal (B, 12) of images (B, 3, H, W), RGB in [0, 1]."""
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        features = self.trunk(2 * images - 1)
        pooled = torch.cat([features.mean((-2, -1)), features.amax((-2, -1))], -1)
        return self.colour(pooled), self.animal(pooled)

    def consistency(self, images, prompts):
        """Score pictures against their prompts.

        Args:
            images: (B, 3, H, W), RGB in [0, 1].
            prompts: B prompts, or one for all.

        Returns:
            P(colour), P(animal) and their mean CS, each (B,). Where a prompt names no colour, P(colour) is NaN and CS
            is P(animal).

        Raises:
            ValueError: a prompt names no animal the model knows.
        """
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(images):
            raise ValueError(f"expected {len(images)} prompts, one a picture, found {len(prompts)}")
        wanted = [words_of(prompt) for prompt in prompts]
        colour_logits, animal_logits = self(images)
        rows = torch.arange(len(images), device=images.device)
        animal = animal_logits.softmax(-1)[
            rows, torch.tensor([ANIMALS.index(a) for _, a in wanted], device=rows.device)
        ]
        index = torch.tensor([COLOURS.index(c) if c else 0 for c, _ in wanted], device=rows.device)
        named = torch.tensor([c is not None for c, _ in wanted], device=rows.device)
        colour = colour_logits.softmax(-1)[rows, index]
        score = torch.where(named, (colour + animal) / 2, animal)
        return torch.where(named, colour, torch.nan), animal, score


def load_scorer(device="cpu", dtype=torch.float32, path=None):
    """Return the trained ConsistencyScorer, in eval mode and without parameter gradients."""
    from .weights import PATH, part

    scorer = ConsistencyScorer()
    scorer.load_state_dict(part("scorer", dtype, path or PATH))
    return scorer.to(device, dtype).eval().requires_grad_(False)

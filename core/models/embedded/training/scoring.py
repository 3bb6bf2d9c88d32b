"""Train the consistency scorer and measure it on held-out pictures."""

import torch
import torch.nn.functional as F

from ..scorer import ConsistencyScorer
from . import pictures
from .autoencoder import to_tensor
from .fit import fit

BLANK = 0.06
SMOOTHING = 0.05


def shrink(images):
    """Convert (B, 128, 128, 3) uint8 pictures to (B, 3, 64, 64) in [0, 1]."""
    return F.avg_pool2d(to_tensor(images) / 2 + 0.5, 2)


def _augment(images):
    """Blur and add noise to (B, 3, 64, 64) pictures, more or less: generated ones are not as crisp."""
    count = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, torch.rand(count, 1, 1, 1))
    contrast, offset = 1 + 0.1 * (torch.rand(2, count, 1, 1, 1) - 0.5)
    return images * contrast + (offset - 1) + 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)


def _flat(count):
    """Draw (count, 3, 64, 64) plain pictures: nothing in them, so every class should be equally likely."""
    return torch.rand(count, 3, 1, 1).sqrt().expand(-1, -1, 64, 64)


def train_scorer(images, animal, colour, seconds, out):
    """Train and return the scorer's moving average.

    Args:
        images: (N, 128, 128, 3) uint8; animal, colour: (N,) class indices, colour -1 where it is not one of the words.
        seconds: time budget.
        out: checkpoint folder.
    """
    small = torch.cat([shrink(chunk) for chunk in images.split(500)])
    model = ConsistencyScorer()
    batch = 64
    blanks = round(BLANK * batch)

    def loss(progress):
        chosen = torch.randint(len(small), (batch,))
        colour_logits, animal_logits = model(_augment(torch.cat([small[chosen], _flat(blanks)])))
        blank = -(colour_logits[batch:].log_softmax(-1).mean() + animal_logits[batch:].log_softmax(-1).mean())
        return (
            F.cross_entropy(colour_logits[:batch], colour[chosen], ignore_index=-1, label_smoothing=SMOOTHING)
            + F.cross_entropy(animal_logits[:batch], animal[chosen], label_smoothing=SMOOTHING)
            + 0.1 * blank
        )

    return fit("scorer", model, loss, seconds, 2e-3, out, decay=0.995)


@torch.no_grad()
def held_out_accuracy(scorer, count=1200, seed=90_000):
    """Measure the scorer on freshly drawn pictures of another seed.

    Returns:
        {"colour": share right, "animal": share right, "pictures": count}.
    """
    drawn, animal, colour = (torch.from_numpy(x) for x in pictures.draw_many(count, seed))
    colour_logits, animal_logits = (
        torch.cat(x) for x in zip(*(scorer(shrink(c)) for c in drawn.split(200)), strict=True)
    )
    named = colour >= 0
    return {
        "colour": (colour_logits.argmax(-1) == colour)[named].float().mean().item(),
        "animal": (animal_logits.argmax(-1) == animal).float().mean().item(),
        "pictures": count,
    }

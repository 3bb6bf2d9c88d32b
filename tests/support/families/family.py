"""One row of the tables of model families."""

from collections.abc import Callable
from dataclasses import dataclass, field

COARSE = "its first noise level is in the thousands, where float32 is coarse"


@dataclass(frozen=True)
class Family:
    """A model family as ComfyUI knows it, shrunken until it samples in milliseconds.

    Attributes:
        name: as users call it.
        model: its class in `comfy.supported_models`; a version without that class does not have the family.
        network: what its `unet_config` has instead of the real sizes: a block or two, some 100 channels, heads as wide
            as in the real one where rotary positions need it.
        latent: (C, H, W) or (C, T, H, W) of one picture or clip.
        last: name of the network's last layer, which is scaled down: random networks are rougher than trained ones, and
            finite differences would not show its gradient.
        prompt: (tokens, width) of a prompt's embedding.
        pooled: width of the prompt's pooled embedding; None where the family has none.
        extras: given random(*shape), returns what else its conditioning carries.
        weights: given random(*shape), returns the entries of a checkpoint that decide how its class makes the model.
        decoded: channels of what its VAE decodes, where the latent is taken apart before; else those of the latent.
        newer: names in `network` that versions older than its class was complete do not take.
        note: what the table of results shall say of it.
    """

    name: str
    model: str
    network: dict
    latent: tuple
    last: str
    prompt: tuple = (7, 32)
    pooled: int | None = None
    extras: Callable = field(default=lambda random: {})
    weights: Callable = field(default=lambda random: {})
    decoded: int | None = None
    newer: tuple = ()
    note: str = ""


def mask_of_the_prompt(random):
    """Return the mask from which some families count the prompt's tokens: every one of 7."""
    return {"attention_mask": random(1, 7).new_ones(1, 7).long()}

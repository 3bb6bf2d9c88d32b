"""Agreement of a picture of the embedded model with its prompt: the stand-in for CLIP's on full-size models."""

from ..core.models.embedded.scorer import load_scorer
from ..core.precision import outside_autocast
from .pictures import rgb
from .prompts import texts_for


class Consistency:
    """CS = (P(colour) + P(animal)) / 2 in [0, 1], by the small classifier that ships with the pack.

    Args:
        prompt: "<colour> <animal>" for every picture; None takes the prompts the sample map hands over.
        device: where the classifier runs.

    Example:
        >>> sample_map = core.load_embedded("black cat", steps=4)
        >>> images = sample_map.sample(sample_map.randn(seed=0))
        >>> judge = rewards.Consistency()
        >>> bool(judge(images, ["black cat"]) > judge(images, ["white owl"]))
        True
    """

    name = "consistency"
    differentiable = True

    def __init__(self, prompt=None, device="cpu"):
        self.prompt, self.scorer, self.device = prompt, load_scorer(device), device

    def __call__(self, images, prompts=None):
        """Return (B,) scores of images (B, 3, H, W), nominally [0, 1]; prompts of length B unless one was set."""
        images = rgb(images)
        texts = texts_for(self, images, prompts)
        images_there = images.float().to(self.device)
        with outside_autocast(images_there.device.type):
            _, _, scores = self.scorer.consistency(images_there, texts)
        return scores.to(images.device)

"""Likeness to a reference picture by what a DINOv2 sees, which was trained on pictures alone, without texts.

    by "subject"   cos(class token of the image, of the reference)              .2 to 1
    by "places"    the mean over 16 x 16 places of cos(token here, token there)

A CLIP sees what a caption would say. DINOv2 tells one dog from another of the same breed, which is why personalised
models are judged by it (Ruiz et al. 2023).
"""

from dataclasses import dataclass

from torch.nn import functional as F

from .clip import Similarity

WAYS = ("subject", "places")


@dataclass(eq=False)
class DINOv2Similarity(Similarity):
    """How like a reference a picture is: the mean over the references of a cosine between what a DINOv2 sees in both.

    Example:
        >>> tower = rewards.load_tower("dinov2-base.safetensors")
        >>> images = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        >>> scores = rewards.DINOv2Similarity(tower, images[:1])(images)
        >>> bool(scores[0] > scores[1])
        True

    Attributes: Similarity's, but
        tower: a VisionTower of DINOv2.
        by: "subject": what the whole picture shows, wherever it stands; "places": what each place shows.
    """

    by: str = "subject"
    name = "DINOv2 similarity"
    kind = "DINOv2"
    rule = "dinov2"
    sources = ("DINOv2",)

    def __post_init__(self):
        super().__post_init__()
        if self.by not in WAYS:
            raise ValueError(f"by is {self.by!r}; expected one of {', '.join(map(repr, WAYS))}")

    def unit_embeds(self, images, parity):
        """Return (B, width) class tokens at unit length, or the places' tokens, (B, places * width), likewise.

        Of the latter each place's token has the same length, so that a product of two is the mean of their cosines.
        """
        if self.by == "subject":
            return super().unit_embeds(images, parity)
        tokens = F.normalize(self.tower.places(images, self.rule, parity), dim=-1)
        return tokens.flatten(1) / tokens.shape[1] ** 0.5

"""IMAGEs of other forms than most nodes make."""

import torch


class DNOTestPictures:
    """The images, changed in one way."""

    CHANGES = {
        "gray": lambda images: images[..., :1],
        "gray and alpha": lambda images: torch.cat([images[..., :1], 0.3 * torch.ones_like(images[..., :1])], -1),
        "alpha": lambda images: torch.cat([images, 0.3 * torch.ones_like(images[..., :1])], -1),
        "levels": lambda images: 255 * images,
        "nan": lambda images: torch.where(torch.arange(len(images))[:, None, None, None] == 1, torch.nan, images),
        "all nan": lambda images: images * torch.nan,
        "five channels": lambda images: images[..., [0, 1, 2, 0, 1]],
    }

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",), "kind": (list(cls.CHANGES),)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "change"
    CATEGORY = "tests"

    def change(self, images, kind):
        return (self.CHANGES[kind](images),)


NODES = (DNOTestPictures,)

"""What a reward is given to look at: three channels, float32 or wider, about 0 to 1, finite.

Every reward of this package looks at its pictures through `rgb`; what they have to be is said here alone.
"""

import torch

from ..core.precision import wide

LEVELS_MEAN = 4.0
"""A picture in [0, 1] has a smaller mean, however far a decoder overshoots; one of 8-bit levels, unless all but black,
a larger one, and nothing below 0."""


def rgb(images, name="images"):
    """Return pictures as a reward looks at them: gray ones get three equal channels, float16 becomes float32.

    Values outside [0, 1] are kept. A picture that has a NaN or an infinity anywhere becomes NaN everywhere, so that no
    reward can give it a finite score, not even one that crops, clamps or rounds.

    Args:
        images: (B, 3, H, W) RGB or (B, 1, H, W) gray, floats, nominally in [0, 1].
        name: what messages call them.

    Returns:
        (B, 3, H, W), float32 or wider, differentiable.

    Raises:
        ValueError: they have another shape or type, such as an alpha channel, or hold levels from 0 to 255.

    Example:
        >>> import torch
        >>> gray = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)
        >>> rgb(gray).shape
        torch.Size([1, 3, 1, 2])
    """
    _check_form(images, name)
    images = wide(images)
    broken = ~images.isfinite().flatten(1).all(dim=1)
    lowest, means = (of_each(dim=(1, 2, 3)).masked_fill(broken, 0) for of_each in (images.amin, images.mean))
    least, mean = torch.stack([lowest.amin(), means.amax()]).tolist()
    if least >= 0 and mean > LEVELS_MEAN:
        raise ValueError(
            f"{name} have a mean of {mean:.4g}; expected values from about 0 to 1. Divide 8-bit levels by 255"
        )
    return images.masked_fill(broken.view(-1, 1, 1, 1), torch.nan).expand(-1, 3, -1, -1)


def _check_form(images, name):
    if not torch.is_tensor(images):
        raise ValueError(f"{name} are a {type(images).__name__}; expected a tensor (B, 3, H, W)")
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        expected = "expected (B, 3, H, W), or (B, 1, H, W) where they are gray"
        raise ValueError(f"{name} are {shape}; {expected}{_advice(shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{name} are {images.dtype}; expected floats, nominally in [0, 1]. Divide 8-bit levels by 255")


def _advice(shape):
    if len(shape) == 3:
        return ". Pass one picture as a batch of one, images[None]"
    if len(shape) == 4 and shape[3] in (1, 3, 4):
        return ". Put the channels before the height, images.movedim(-1, 1)"
    if len(shape) == 4 and shape[1] in (2, 4):
        return ". Leave out an alpha channel, and decode a latent first"
    return ""

"""ComfyUI's IMAGE as rewards look at pictures."""

from ...rewards.pictures import rgb


def pictures_of(images, name="images"):
    """Return an IMAGE as pictures (B, 3, H, W), float32; one that is not finite is NaN everywhere (`rgb`).

    Args:
        images: (B, H, W, C), C of 3 colours, or 1 gray; or these and alpha, which is left out.
        name: what messages call them.

    Raises:
        ValueError: they have another shape, or hold levels from 0 to 255.
    """
    if images.ndim != 4 or images.shape[3] not in (1, 2, 3, 4):
        raise ValueError(f"{name} are {tuple(images.shape)}; expected an IMAGE, (B, H, W, 3), or 1 channel where gray")
    colors = images.shape[3] - (images.shape[3] in (2, 4))
    return rgb(images[..., :colors].movedim(-1, 1), name)

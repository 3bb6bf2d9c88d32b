"""The decoder's way back in tiles, for pictures of which not even one block's graph fits.

The pictures themselves are decoded whole. On the way back each tile of the latent is decoded once more, with so many
latents around it, and takes the gradient of its own part of the picture alone:

    d_latent = sum over tiles of J_tile^T (d_images inside the tile, 0 around it)

That is the whole decoder's gradient where no pixel depends on more than what is around its tile. A VAE's convolutions
keep to that, but its norms and its attention see all of what they are given: then the tiles' gradient is near the whole
one's, see docs/costs.md.
"""

import itertools

import torch

AROUND = 16
"""Latents around a tile; of an 8-fold VAE 128 pixels, twice what ComfyUI's tiled decode takes."""


def fits(latent, images):
    """Whether a decoder enlarges its latents (B, C, H, W) evenly to the images (B, 3, s H, s W).

    Example:
        >>> latent = torch.zeros(1, 4, 8, 6)
        >>> fits(latent, torch.zeros(1, 3, 64, 48)), fits(latent, torch.zeros(1, 3, 9, 9))
        (True, False)
    """
    if latent.ndim != 4 or images.ndim != 4:
        return False
    scale = images.shape[-1] // latent.shape[-1]
    return images.shape[-2:] == tuple(scale * side for side in latent.shape[-2:])


def tiles_of(length, side):
    """Return, along one dimension, (what is decoded, where the tile begins and ends in that) for each tile.

    Example:
        >>> tiles_of(40, 32)
        [(slice(0, 40, None), (0, 32)), (slice(16, 40, None), (16, 24))]
    """
    found = []
    for first in range(0, length, side):
        end = min(first + side, length)
        begin = max(first - AROUND, 0)
        found.append((slice(begin, min(end + AROUND, length)), (first - begin, end - begin)))
    return found


def gradient_by_tiles(decode, vjp, latent, d_images, side):
    """Return the gradient of <d_images, decode(latent)> by the latent, tile by tile.

    Example:
        >>> def decode(latent):
        ...     return latent.square().repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        >>> def vjp(images, x, d_images):
        ...     return torch.autograd.grad(images, x, d_images)[0]
        >>> latent, d_images = torch.randn(1, 3, 40, 8), torch.randn(1, 3, 80, 16)
        >>> x = latent.clone().requires_grad_()
        >>> found = gradient_by_tiles(decode, vjp, latent, d_images, side=8)
        >>> torch.allclose(found, vjp(decode(x), x, d_images), atol=1e-6)
        True

    Args:
        decode: latent -> images with a graph.
        vjp: (images, x, d_images) -> the gradient of <d_images, images> by x, freeing the graph.
        latent: (B, C, H, W).
        d_images: (B, 3, s H, s W).
        side: of a tile, in latents.
    """
    scale, found = d_images.shape[-1] // latent.shape[-1], torch.zeros_like(latent, dtype=d_images.dtype)
    for rows, columns in itertools.product(*(tiles_of(length, side) for length in latent.shape[-2:])):
        places = [where for where, _ in (rows, columns)]
        part = latent[..., places[0], places[1]].detach().requires_grad_()
        images = decode(part)
        cotangent = torch.zeros_like(images, dtype=d_images.dtype)
        inside = tuple(slice(scale * first, scale * end) for _, (first, end) in (rows, columns))
        whole = tuple(
            slice(scale * (where.start + first), scale * (where.start + end)) for where, (first, end) in (rows, columns)
        )
        cotangent[..., inside[0], inside[1]] = d_images[..., whole[0], whole[1]]
        found[..., places[0], places[1]] += vjp(images, part, cotangent)
    return found

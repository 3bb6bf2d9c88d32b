"""The decoder's way back in tiles: the whole gradient where the decoder is local, and what it takes to get there."""

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.memory import DECODER, TILES
from comfyui_dno.core.sample_map import vjp
from comfyui_dno.core.tiles import AROUND, gradient_by_tiles, tiles_of

KERNEL = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 5


def local(latent):
    """A decoder whose pixels depend on three latents around them."""
    kernel = KERNEL.to(latent)
    x = torch.tanh(torch.conv2d(latent, kernel, padding=1))
    x = torch.nn.functional.interpolate(x, scale_factor=2)
    return torch.conv2d(torch.tanh(torch.conv2d(x, kernel, padding=1)), kernel, padding=1)


def whole(latent, d_images):
    x = latent.clone().requires_grad_()
    return torch.autograd.grad(local(x), x, d_images)[0]


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("side", [8, 13, 64])
@pytest.mark.parametrize("height, width", [(41, 24), (8, 50)])
def test_of_a_local_decoder_the_tiles_gradient_is_the_whole_ones(side, height, width):
    latent, d_images = numbers(2, 3, height, width), numbers(2, 3, 2 * height, 2 * width)
    found = gradient_by_tiles(local, vjp, latent, d_images, side)
    torch.testing.assert_close(found, whole(latent, d_images), rtol=1e-9, atol=1e-12)


def test_tiles_cover_everything_once_and_see_what_is_around_them():
    tiles = tiles_of(100, 32)
    covered = [where.start + place for where, (first, end) in tiles for place in range(first, end)]
    assert covered == list(range(100))
    assert all(first in (0, AROUND) for _, (first, _) in tiles)
    assert max(where.stop - where.start for where, _ in tiles) == 32 + 2 * AROUND


class Small:
    """A decoder that has no memory for a graph of more than so many latents."""

    def __init__(self, most, decode=local):
        self.most, self.decode, self.sizes = most, decode, []

    def __call__(self, latent):
        if latent.requires_grad:
            self.sizes.append(latent[0, 0].numel())
            if self.sizes[-1] > self.most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.decode(latent)


def search_map(decode, side=100, **settings):
    schedule = core.Schedule([2.0, 1.0, 0.0])
    return core.SampleMap(lambda x, sigma: torch.tanh(x), schedule, (1, 3, side, side), decode=decode, **settings)


def gradient_of(sample_map):
    noise = sample_map.randn(0).to(torch.float64)
    images, back = sample_map.pullback(noise)
    return back(numbers(*images.shape)).flat()


@pytest.mark.parametrize("tile", TILES)
def test_a_decoder_whose_graph_does_not_fit_goes_back_in_tiles_that_do(tile):
    most = (tile + 2 * AROUND) ** 2
    sample_map = search_map(Small(most))
    torch.testing.assert_close(gradient_of(sample_map), gradient_of(search_map(local)), rtol=1e-9, atol=1e-12)
    assert sample_map.plan.tile == tile
    sample_map.decode.sizes.clear()
    gradient_of(sample_map)
    assert max(sample_map.decode.sizes) <= most, "the next iteration begins with tiles"


def test_where_the_blocks_do_not_fit_either_auto_takes_tiles_from_the_start():
    sample_map = search_map(local, memory=1e-6)
    torch.testing.assert_close(gradient_of(sample_map), gradient_of(search_map(local)), rtol=1e-9, atol=1e-12)
    assert sample_map.plan.tile == TILES[0] and DECODER in sample_map.plan.sizes


@pytest.mark.parametrize("decode", [Small(1000), Small(5000, lambda latent: latent[..., 1:])])
def test_what_no_tile_helps_keeps_the_type_of_its_error(decode):
    """The smallest tile is too large; or it would fit, but the pictures are no even enlargement of the latents."""
    with pytest.raises(torch.cuda.OutOfMemoryError):
        gradient_of(search_map(decode))

"""The JPEG reward against Pillow's own files, and its differentiable proxy against the reward."""

import io

import numpy as np
import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core import plots
from comfyui_dno.core.scoring import exact
from comfyui_dno.rewards.jpeg import _planes
from scipy import fft

LUMA, CHROMA = (np.array([row.split() for row in table.strip().splitlines()], dtype=int) for table in (
    """
    16  11  10  16  24  40  51  61
    12  12  14  19  26  58  60  55
    14  13  16  24  40  57  69  56
    14  17  22  29  51  87  80  62
    18  22  37  56  68 109 103  77
    24  35  55  64  81 104 113  92
    49  64  78  87 103 121 120 101
    72  92  95  98 112 100 103  99
    """,
    """
    17  18  24  47  99  99  99  99
    18  21  26  66  99  99  99  99
    24  26  56  99  99  99  99  99
    47  66  99  99  99  99  99  99
    99  99  99  99  99  99  99  99
    99  99  99  99  99  99  99  99
    99  99  99  99  99  99  99  99
    99  99  99  99  99  99  99  99
    """,
))  # fmt: skip
"""Annex K of the JPEG standard (ITU-T T.81): the quantisation of quality 50."""


@pytest.fixture(scope="module")
def pictures():
    """Pictures of the embedded model, with more and more detail added."""
    noise_map = core.load_embedded(["black cat", "red owl", "blue fish", "white duck"], steps=6)
    images = noise_map.sample(noise_map.randn(0))
    grain = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    gray = images.mean(dim=1, keepdim=True).expand_as(images)
    return torch.cat([images, images + 0.02 * grain, images + 0.08 * grain, gray])


def test_the_reward_is_minus_the_size_of_pillows_file(pictures):
    expected = []
    for picture in plots.to_pictures(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=95)
        expected.append(-len(buffer.getvalue()) / 1000)
    torch.testing.assert_close(rewards.JPEG()(pictures), torch.tensor(expected))
    torch.testing.assert_close(rewards.JPEG(incompressible=True)(pictures), -torch.tensor(expected))
    assert rewards.JPEG.differentiable is False


def test_the_proxy_orders_pictures_as_their_file_sizes_do(pictures):
    sizes = torch.stack([rewards.JPEG()(pictures), rewards.JPEGProxy()(pictures)])
    assert sizes.corrcoef()[0, 1] > 0.98
    ranks = sizes.argsort(dim=1).argsort(dim=1).float()
    assert ranks.corrcoef()[0, 1] > 0.95


def test_the_proxy_sees_the_planes_that_pillow_writes():
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    (picture,) = plots.to_pictures(pixels.to(torch.uint8))
    y, cb, cr = torch.from_numpy(np.asarray(picture.convert("YCbCr")).copy()).permute(2, 0, 1).double() - 128
    found = _planes(pixels.double())
    torch.testing.assert_close(found[0][0], y, rtol=0, atol=1)
    for plane, expected in ((found[1], cb), (found[2], cr)):
        halved = torch.nn.functional.avg_pool2d(expected[None], 2)
        torch.testing.assert_close(plane, halved, rtol=0, atol=1)


def bits_of(plane, table):
    """Return the proxy's bits of one plane (H, W), block by block, its table that of quality 95."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    table, bits, before = np.maximum((table * 10 + 50) // 100, 1), 0.0, None
    for top in range(0, plane.shape[0], 8):
        for left in range(0, plane.shape[1], 8):
            found = fft.dctn(plane[top : top + 8, left : left + 8], norm="ortho") / table
            dc, found[0, 0] = found[0, 0], 0.0 if before is None else found[0, 0] - before
            bits, before = bits + np.log2(1 + (found / 0.25) ** 2).sum() / 2, dc
    return bits


def test_the_proxys_bits_are_those_of_scipys_dct_over_the_standards_tables():
    """Of 44 x 24 pixels, whose edges are repeated to 48 x 24 of luma and 24 x 16 of chroma."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(0, 0.5, 44)[None] + torch.linspace(0, 0.1, 24)[:, None]
    image = slope * torch.tensor([1.0, 0.6, 0.3]).view(3, 1, 1)
    image = (image + 0.1 * torch.randn((3, 24, 44), generator=generator)).double()
    r, g, b = image.numpy() * 255
    chroma = (-0.168736 * r - 0.331264 * g + 0.5 * b, 0.5 * r - 0.418688 * g - 0.081312 * b)  # as JFIF states them
    bits = bits_of(0.299 * r + 0.587 * g + 0.114 * b - 128, LUMA)
    bits += sum(bits_of(plane.reshape(12, 2, 22, 2).mean(axis=(1, 3)), CHROMA) for plane in chroma)
    # The proxy's chroma has three digits: off by up to 6e-4, 2 / ln 2 times that in each log2 of some 7.
    assert -rewards.JPEGProxy()(image[None]).item() == pytest.approx(bits / 8 / 1000, rel=5e-4)


def test_the_proxys_gradient_is_right_for_odd_sizes_too():
    images = torch.rand(1, 3, 11, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rewards.JPEGProxy()(x) * 1000, images, eps=1e-7, atol=1e-3, rtol=1e-3)


def test_ascending_the_proxy_makes_the_real_file_smaller(pictures):
    images = pictures[8:10].clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.01, maximize=True)
    before = rewards.JPEG()(images)
    for _ in range(20):
        optimizer.zero_grad()
        rewards.JPEGProxy()(images).sum().backward()
        optimizer.step()
    assert (rewards.JPEG()(images) > 0.8 * before).all()


def test_each_of_ten_ascent_steps_raises_the_proxy_also_in_inference_mode(pictures):
    with torch.inference_mode():
        images = pictures[8:10].clone()
        scores = [rewards.JPEGProxy()(images)]
        for _ in range(10):
            _, gradient = exact(rewards.JPEGProxy(), images)
            images = images + 0.003 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
            scores.append(rewards.JPEGProxy()(images))
    assert (torch.stack(scores).diff(dim=0) > 0).all()


def test_scores_of_a_batch_are_those_of_its_pictures(pictures):
    for reward in (rewards.JPEG(), rewards.JPEGProxy()):
        singles = torch.cat([reward(picture[None]) for picture in pictures])
        torch.testing.assert_close(reward(pictures), singles)

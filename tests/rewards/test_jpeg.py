"""The JPEG reward against Pillow's own files, and its differentiable proxy against the reward."""

import io

import numpy as np
import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core import plots
from comfyui_dno.core.scoring import exact
from comfyui_dno.rewards.jpeg import _planes


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

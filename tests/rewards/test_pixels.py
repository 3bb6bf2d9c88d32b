"""Pixel rewards against closed forms and scipy, and their gradients."""

import math

import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact
from scipy import ndimage

GRAYS = (0.1, 0.5, 0.9)
EVERY = [
    rewards.Brightness(),
    rewards.Brightness(negative=True),
    rewards.Contrast(),
    rewards.Contrast(negative=True),
    rewards.Saturation(),
    rewards.Saturation(negative=True),
    rewards.ColorTarget((0.9, 0.3, 0.1)),
    rewards.ColorTarget((0.9, 0.3, 0.1), mask=torch.linspace(0, 1, 20).view(4, 5)),
    rewards.Sharpness(),
    rewards.Sharpness(negative=True),
]


def name(reward):
    return reward.name


def colored(*colors, side=4):
    """(B, 3, side, side), each picture of one colour."""
    return torch.tensor(colors).view(-1, 3, 1, 1).expand(-1, 3, side, side).clone()


def noisy(*shape, dtype=torch.float32):
    """Random pictures that go a little out of range."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 1.2 - 0.1


def test_contrast_is_the_standard_deviation_of_the_luma():
    halves = torch.zeros(1, 3, 4, 6)
    halves[..., 3:] = 1
    wave = 0.5 + 0.3 * torch.sin(torch.arange(32) * 2 * math.pi / 8).expand(1, 3, 32, 32)
    assert rewards.Contrast()(halves).tolist() == pytest.approx([0.5])
    assert rewards.Contrast()(wave).tolist() == pytest.approx([0.3 / math.sqrt(2)])
    assert rewards.Contrast()(halves * 3).tolist() == pytest.approx([1.5])
    for channel, weight in enumerate((0.2126, 0.7152, 0.0722)):
        one = torch.zeros_like(halves)
        one[:, channel] = halves[:, channel]
        assert rewards.Contrast()(one).tolist() == pytest.approx([weight / 2])
        assert rewards.Contrast(negative=True)(one).tolist() == pytest.approx([-weight / 2])


def test_saturation_is_the_mean_chroma():
    images = colored((1.0, 0.0, 0.0), (0.4, 0.4, 0.4), (0.2, 0.5, 0.9), (1.5, -0.5, 0.0))
    assert rewards.Saturation()(images).tolist() == pytest.approx([1, 0, 0.7, 2])
    assert rewards.Saturation(negative=True)(images).tolist() == pytest.approx([-1, 0, -0.7, -2])
    half = torch.cat([images[:1], images[1:2]], dim=3)
    assert rewards.Saturation()(half).tolist() == pytest.approx([0.5])


def test_the_colour_target_is_minus_the_squared_distance():
    images = colored((1.0, 0.5, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 2.0))
    target = rewards.ColorTarget((1.0, 0.0, 0.0))
    assert target(images).tolist() == pytest.approx([-0.25, -1.0, -4.0])
    assert rewards.ColorTarget((1.0, 0.5, 0.0))(images)[0] == 0


def test_only_pixels_of_the_mask_count():
    images = colored((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), side=8)
    images[..., 4:] = 0.5
    left, right = torch.zeros(8, 8), torch.zeros(8, 8)
    left[:, :4], right[:, 4:] = 1, 1
    red = (1.0, 0.0, 0.0)
    assert rewards.ColorTarget(red, left)(images).tolist() == pytest.approx([0, -1])
    assert rewards.ColorTarget(red, right)(images).tolist() == pytest.approx([-0.75, -0.75])
    assert rewards.ColorTarget(red, 0.25 * left)(images).tolist() == pytest.approx([0, -1])
    each = rewards.ColorTarget(red, torch.stack([left, right]))
    assert each(images).tolist() == pytest.approx([0, -0.75])
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(each(images).sum(), images)
    assert (gradient[0, :, :, 4:] == 0).all()
    assert (gradient[1, :, :, :4] == 0).all()
    assert (gradient[1, :, :, 4:] != 0).all()


def test_a_masks_batch_is_repeated_for_candidates_which_come_candidate_major():
    masks = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    images = noisy(6, 3, 8, 8)
    target = rewards.ColorTarget((0.2, 0.4, 0.6), masks)
    torch.testing.assert_close(target(images), torch.cat([target(pair) for pair in images.split(2)]))


@pytest.mark.parametrize("side", [2, 8, 64])
def test_a_mask_of_another_size_is_resized_to_the_picture(side):
    mask = torch.zeros(side, side)
    mask[: side // 2] = 1
    images = colored((1.0, 1.0, 1.0), side=16)
    images[..., 8:, :] = 0
    # Half of the picture is as wished; next to the border the resized mask may be soft.
    assert rewards.ColorTarget((1.0, 1.0, 1.0), mask)(images).item() > (-0.8 if side == 2 else -0.2)
    assert rewards.ColorTarget((0.0, 0.0, 0.0), mask)(images).item() < (-2.2 if side == 2 else -2.8)


def test_no_line_of_a_fine_mask_is_lost_where_it_is_made_smaller():
    """Two lines of four, between those that a picture of a quarter of the size would look up."""
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(16)[:, None].expand(64, 64)
    images, color = noisy(1, 3, 16, 16), (0.2, 0.4, 0.6)
    found, everywhere = rewards.ColorTarget(color, mask)(images), rewards.ColorTarget(color)(images)
    torch.testing.assert_close(found, everywhere, rtol=0.02, atol=0)


def test_wrong_masks_and_colours_are_refused():
    with pytest.raises(ValueError, match=r"mask has 2 pictures, the batch 3"):
        rewards.ColorTarget(mask=torch.ones(2, 4, 4))(noisy(3, 3, 4, 4))
    with pytest.raises(ValueError, match="mask is empty"):
        rewards.ColorTarget(mask=torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]))(noisy(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"mask is \(1, 1, 4, 4\); expected \(H, W\) or \(B, H, W\)"):
        rewards.ColorTarget(mask=torch.ones(1, 1, 4, 4))
    for color in ((1.0, 0.5), (math.nan, 0, 0), (255, 128, 0), (0, -0.1, 0), (0, 0, math.inf)):
        with pytest.raises(ValueError, match="expected red, green and blue in .0, 1."):
            rewards.ColorTarget(color=color)
    for value in (math.nan, math.inf, -0.5):
        with pytest.raises(ValueError, match="mask holds values below 0, NaN or infinity; expected weights of 0 or m"):
            rewards.ColorTarget(mask=torch.tensor([[1.0, value]]))


def test_sharpness_needs_three_pixels_each_way():
    with pytest.raises(ValueError, match=r"images are \(1, 3, 2, 9\); sharpness expects 3 x 3 pixels or more"):
        rewards.Sharpness()(torch.rand(1, 3, 2, 9))


def test_sharpness_is_the_standard_deviation_of_scipys_laplacian():
    images = noisy(2, 3, 9, 12, dtype=torch.float64)
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64).view(3, 1, 1)
    planes = (images * weights).sum(dim=1).numpy()
    expected = [ndimage.laplace(plane)[1:-1, 1:-1].std() for plane in planes]
    assert rewards.Sharpness()(images).tolist() == pytest.approx(expected)
    assert rewards.Sharpness(negative=True)(images).tolist() == pytest.approx([-value for value in expected])


def test_the_sharpest_picture_is_a_checkerboard_and_a_slope_is_not_sharp():
    across, down = torch.arange(6)[None], torch.arange(6)[:, None]
    board = ((across + down) % 2).float().expand(1, 3, 6, 6)
    slope = (0.05 * across + 0.1 * down).expand(1, 3, 6, 6)
    assert rewards.Sharpness()(board).tolist() == pytest.approx([4])
    assert rewards.Sharpness()(slope).tolist() == pytest.approx([0], abs=1e-6)


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_the_gradient_is_right_out_of_range_too(reward):
    images = noisy(2, 3, 5, 7, dtype=torch.float64).requires_grad_()
    assert images.min() < 0 < 1 < images.max()
    assert torch.autograd.gradcheck(reward, images)


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_the_gradient_is_finite_where_a_picture_is_flat(reward):
    _, gradient = exact(reward, colored(*[(gray,) * 3 for gray in GRAYS]))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_scores_of_a_batch_are_those_of_its_pictures_in_float32_or_wider(reward):
    images = noisy(3, 3, 6, 8)
    scores = reward(images, ["a", "b", "c"])
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, torch.cat([reward(picture[None]) for picture in images]))
    assert reward(images.half()).dtype == torch.float32
    assert reward(images.double()).dtype == torch.float64


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_each_of_ten_ascent_steps_raises_the_reward(reward):
    images = noisy(2, 3, 16, 16)
    scores = [reward(images)]
    for _ in range(10):
        _, gradient = exact(reward, images)
        images = images + 0.01 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scores.append(reward(images))
    assert (torch.stack(scores).diff(dim=0) > 0).all()

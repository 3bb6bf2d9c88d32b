"""Palettes against scipy's Wasserstein distance, symmetry and layout against numpy's correlation; gradients."""

import math

import numpy as np
import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact
from comfyui_dno.rewards import layout
from scipy import ndimage, stats


def noisy(*shape, seed=0, dtype=torch.float32):
    """Random pictures that go a little out of range."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 1.2 - 0.1


def smooth(*shape, seed=0):
    """Random pictures of a few large shapes."""
    return torch.nn.functional.interpolate(noisy(*shape[:2], 4, 4, seed=seed), shape[2:], mode="bicubic")


EVERY = [
    rewards.Palette(noisy(1, 3, 9, 9, seed=1)),
    rewards.Symmetry("left-right"),
    rewards.Symmetry("top-bottom", negative=True),
    rewards.Symmetry("half turn"),
    rewards.Layout(smooth(1, 3, 40, 30, seed=2), by="edges"),
    rewards.Layout(smooth(1, 3, 40, 30, seed=2), by="light"),
]


def name(reward):
    return reward.name


def test_a_palette_is_compared_by_scipys_wasserstein_distance_along_each_direction():
    ours, theirs = noisy(1, 3, 32, 32), noisy(1, 3, 32, 32, seed=1).square()
    along = [[(v @ each[0].flatten(1)).numpy() for each in (ours, theirs)] for v in layout._directions()]
    expected = -np.mean([stats.wasserstein_distance(*pair) for pair in along])
    assert rewards.Palette(theirs)(ours).item() == pytest.approx(expected, rel=1e-3)


def test_directions_are_unit_vectors_of_all_the_half_sphere():
    v = layout._directions()
    torch.testing.assert_close(v.norm(dim=1), torch.ones(len(v)))
    # Of directions spread evenly, the mean of v v^T is I / 3.
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3) / 3, rtol=0, atol=0.02)


def test_a_palette_does_not_know_where_colours_stand():
    picture = noisy(1, 3, 16, 16)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(2))
    shuffled = picture.flatten(2)[..., order].view_as(picture)
    assert rewards.Palette(picture)(shuffled).item() == pytest.approx(0, abs=1e-6)
    assert rewards.Palette(picture)(picture + 0.1).item() == pytest.approx(
        -0.1 * layout._directions().sum(dim=1).abs().mean().item(), rel=1e-4
    )


def test_of_several_references_all_pixels_count():
    red, blue = torch.zeros(2, 1, 3, 8, 8)
    red[:, 0], blue[:, 2] = 1, 1
    half = torch.cat([red, blue], dim=3)
    assert rewards.Palette(torch.cat([red, blue]))(half).item() == pytest.approx(0, abs=1e-6)
    assert rewards.Palette(red)(half).item() < -0.2


def test_a_large_picture_has_the_palette_of_its_small_copy():
    picture = smooth(1, 3, 100, 150)
    large = torch.nn.functional.interpolate(picture, (400, 600), mode="bilinear")
    assert rewards.Palette(picture)(large).item() == pytest.approx(0, abs=5e-3)


@pytest.mark.parametrize(("about", "axes"), [("left-right", 3), ("top-bottom", 2), ("half turn", (2, 3))])
def test_symmetry_is_numpys_correlation_with_the_mirror_image(about, axes):
    pictures = noisy(2, 3, 7, 10)
    centred = (pictures - pictures.mean(dim=(2, 3), keepdim=True)).numpy()
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(centred, np.flip(centred, axes), strict=True)]
    assert rewards.Symmetry(about)(pictures).tolist() == pytest.approx(expected, abs=1e-6)
    assert rewards.Symmetry(about, negative=True)(pictures).tolist() == pytest.approx([-e for e in expected], abs=1e-6)


def test_a_picture_that_is_made_symmetric_scores_1():
    pictures = noisy(1, 3, 8, 8)
    for about, dims in layout.AXES.items():
        assert rewards.Symmetry(about)(pictures + pictures.flip(dims)).item() == pytest.approx(1)


def test_edges_are_scipys_sobel_filter():
    plane = noisy(1, 1, 9, 12, dtype=torch.float64)
    across, down = (ndimage.sobel(plane[0, 0].numpy(), axis, mode="nearest") / 8 for axis in (1, 0))
    expected = torch.from_numpy(np.sqrt(across**2 + down**2 + 1e-6))
    torch.testing.assert_close(layout._edges(plane)[0, 0], expected)


def test_a_layout_by_edges_does_not_care_for_light_and_dark_and_one_by_light_does():
    picture = smooth(1, 3, 64, 64)
    assert rewards.Layout(picture, by="edges")(1 - picture).item() == pytest.approx(1, abs=1e-4)
    assert rewards.Layout(picture, by="light")(1 - picture).item() == pytest.approx(-1, abs=1e-4)
    assert rewards.Layout(picture, by="light")(0.2 + picture / 2).item() == pytest.approx(1, abs=1e-4)


def test_a_layout_is_lost_where_the_shapes_have_moved():
    picture = torch.zeros(1, 3, 64, 64)
    picture[..., 8:24, 8:24] = 1
    for by in ("edges", "light"):
        judged = rewards.Layout(picture, by)
        shifts = [judged(picture.roll(shift, dims=3)).item() for shift in (0, 4, 30)]
        assert shifts[0] > shifts[1] > shifts[2]
        assert shifts[2] < 0.1


def test_the_reference_is_stretched_to_the_picture_and_is_one_for_all_or_one_for_each():
    pictures = smooth(2, 3, 64, 96)
    wide = torch.nn.functional.interpolate(pictures, (128, 128), mode="bilinear")
    each = rewards.Layout(wide, by="light")(pictures)
    assert (each > 0.99).all()
    swapped = rewards.Layout(wide.flip(0), by="light")(pictures)
    assert (swapped < 0.9).all()
    candidates = rewards.Layout(wide, by="light")(torch.cat([pictures, pictures.flip(0)]))
    torch.testing.assert_close(candidates, torch.cat([each, swapped.flip(0)]), rtol=0, atol=1e-5)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"unknown symmetry 'round'; expected one of 'left-right', 'top"):
        rewards.Symmetry("round")
    with pytest.raises(ValueError, match="by is 'depth'; expected 'edges' or 'light'"):
        rewards.Layout(noisy(1, 3, 8, 8), by="depth")
    with pytest.raises(ValueError, match=r"reference has 2 pictures, the batch 3; expected one, or one each"):
        rewards.Layout(noisy(2, 3, 8, 8))(noisy(3, 3, 8, 8))
    for judge in (rewards.Palette, rewards.Layout):
        with pytest.raises(ValueError, match="reference holds NaN or infinity"):
            judge(torch.full((1, 3, 8, 8), math.nan))
        with pytest.raises(ValueError, match=r"reference are \(3, 8, 8\); expected"):
            judge(noisy(3, 8, 8))


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_the_gradient_is_right_out_of_range_too(reward):
    images = noisy(2, 3, 8, 12, dtype=torch.float64).requires_grad_()
    assert images.min() < 0 < 1 < images.max()
    assert torch.autograd.gradcheck(reward, images)


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_the_gradient_is_finite_where_a_picture_is_flat(reward):
    _, gradient = exact(reward, torch.full((2, 3, 16, 16), 0.5))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_scores_of_a_batch_are_those_of_its_pictures_in_float32_or_wider(reward):
    images = noisy(3, 3, 16, 20)
    scores = reward(images, ["a", "b", "c"])
    assert scores.shape == (3,)
    torch.testing.assert_close(scores, torch.cat([reward(picture[None]) for picture in images]), rtol=0, atol=1e-5)
    assert reward(images.half()).dtype == torch.float32
    assert reward(images.double()).dtype == torch.float64


@pytest.mark.parametrize("reward", EVERY, ids=name)
def test_each_of_ten_ascent_steps_raises_the_reward(reward):
    images = smooth(2, 3, 16, 16, seed=5)
    scores = [reward(images)]
    for _ in range(10):
        _, gradient = exact(reward, images)
        images = images + 0.003 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        scores.append(reward(images))
    assert (torch.stack(scores).diff(dim=0) > 0).all()

"""What every reward does with gray pictures, alpha, 8-bit levels and pictures that are not finite."""

import numpy as np
import pytest
import tiny_onnx
import tiny_rewards
import torch
from blip_reference import blip
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.pictures import rgb

REFERENCE = tiny_rewards.pictures(1, seed=5).clamp(0, 1)
PIXELS = {
    "Brightness": rewards.Brightness(),
    "Contrast": rewards.Contrast(),
    "Saturation": rewards.Saturation(),
    "ColorTarget": rewards.ColorTarget((0.9, 0.3, 0.1)),
    "Sharpness": rewards.Sharpness(negative=True),
    "JPEG": rewards.JPEG(),
    "JPEG incompressible": rewards.JPEG(incompressible=True),
    "JPEGProxy": rewards.JPEGProxy(),
    "Consistency": rewards.Consistency(),
    "Jittered": rewards.Jittered(rewards.Contrast()),
    "Jittered JPEG": rewards.Jittered(rewards.JPEG(), scale=(0.5, 0.6)),
    "Palette": rewards.Palette(REFERENCE),
    "Layout": rewards.Layout(REFERENCE),
    "Layout by light": rewards.Layout(REFERENCE, by="light"),
    "Symmetry": rewards.Symmetry(),
    "Combine": rewards.Combine([rewards.Contrast(), rewards.Sharpness()]),
}
NETWORKS = (
    "HPS", "PickScore", "CLIPScore L", "Aesthetic", "Similarity", "Directions", "ImageReward", "DINOv2Similarity",
    "MPS", "ONNX", "ShownText",
)  # fmt: skip
EVERY = (*PIXELS, *NETWORKS)
PROMPTS = ["black cat", "red owl"]


@pytest.fixture(scope="module")
def reward_of(build, blip_files, files, tmp_path_factory):
    """reward_of(name) -> one of every kind of reward."""
    folder = tmp_path_factory.mktemp("onnx")
    made = PIXELS | {
        "ImageReward": rewards.ImageReward(blip(blip_files / "ImageReward.pt")),
        "DINOv2Similarity": rewards.DINOv2Similarity(rewards.load_tower(files["dinov2"]), REFERENCE),
        "MPS": rewards.MPS(rewards.load_tower(files["mps"])),
        "ONNX": rewards.ONNX(rewards.load_tower(tiny_onnx.write_scorer(folder / "scorer.onnx"))),
        "ShownText": rewards.ShownText(rewards.load_tower(tiny_onnx.write_recogniser(folder / "rec.onnx")), "AB"),
    }
    return lambda name: made[name] if name in made else build(name)


@pytest.mark.parametrize("name", EVERY)
def test_a_gray_picture_scores_as_the_same_gray_in_three_channels(reward_of, name):
    gray = tiny_rewards.pictures()[:, :1]
    expected = score(reward_of(name), gray.repeat(1, 3, 1, 1), PROMPTS)
    torch.testing.assert_close(score(reward_of(name), gray, PROMPTS), expected)
    if getattr(reward_of(name), "differentiable", True):
        _, gradient = exact(reward_of(name), gray, PROMPTS)
        _, each = exact(reward_of(name), gray.repeat(1, 3, 1, 1), PROMPTS)
        expected = each.sum(dim=1, keepdim=True)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", [name for name in EVERY if name != "Combine"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0), (17, 0), (20, 28)], ids=["corner", "side", "middle"])
def test_a_picture_that_is_not_finite_anywhere_never_gets_a_finite_score(reward_of, name, place, value):
    """Corners are what Sharpness, sides what a crop never looks at. A Combine raises, see test_combine.py."""
    images = tiny_rewards.pictures()
    expected = score(reward_of(name), images, PROMPTS)
    images[1, 0][place] = value
    with torch.no_grad():
        found = reward_of(name)(images, PROMPTS)
    assert found[1].isnan() and found[0].isfinite()
    assert score(reward_of(name), images, PROMPTS)[1] == -torch.inf
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rest", [0.0, 0.5])
def test_a_picture_that_is_not_finite_is_not_taken_for_levels_nor_hides_those_of_others(value, rest):
    images = torch.full((2, 3, 8, 8), rest)
    images[0, 0, 0, 0] = value
    found = rgb(images)
    assert found[0].isnan().all() and torch.equal(found[1], images[1])
    images[1] = 127.5
    with pytest.raises(ValueError, match=r"images have a mean of 127\.5"):
        rgb(images)


def test_a_picture_that_is_not_finite_changes_no_other_pictures_gradient(reward_of):
    images = tiny_rewards.pictures()
    for name in ("Contrast", "CLIPScore L", "ImageReward"):
        reward = reward_of(name)
        _, expected = exact(reward, images, PROMPTS)
        _, found = exact(reward, torch.stack([images[0], images[1] * torch.nan]), PROMPTS)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.rand(2, 4, 40, 56), r"images are \(2, 4, 40, 56\); .* Leave out an alpha channel, and decode a latent"),
        (torch.rand(2, 2, 40, 56), r"images are \(2, 2, 40, 56\); expected .* Leave out an alpha channel"),
        (torch.rand(2, 40, 56, 3), r"images are \(2, 40, 56, 3\); .*\(B, 3, H, W\).* images.movedim\(-1, 1\)"),
        (torch.rand(3, 40, 56), r"images are \(3, 40, 56\); .* a batch of one, images\[None\]"),
        (torch.rand(2, 3, 0, 56), r"images are \(2, 3, 0, 56\); expected"),
        (torch.rand(2, 3, 5, 40, 56), r"images are \(2, 3, 5, 40, 56\); expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 40, 56, dtype=torch.uint8), "images are torch.uint8; expected floats.* by 255"),
        (torch.full((2, 3, 40, 56), 127.5), r"images have a mean of 127\.5; expected .* Divide 8-bit levels by 255"),
        (torch.full((2, 1, 40, 56), 90.0).half(), "images have a mean of 90; expected .* by 255"),
    ],
    ids=["alpha", "gray alpha", "channels last", "one", "empty", "video", "uint8", "levels", "gray levels"],
)
def test_every_reward_says_what_pictures_it_expects(reward_of, name, wrong, message):
    with pytest.raises(ValueError, match=message):
        reward_of(name)(wrong, PROMPTS)


def test_other_types_are_named_and_names_can_be_given():
    with pytest.raises(ValueError, match=r"images are a ndarray; expected a tensor \(B, 3, H, W\)"):
        rgb(np.zeros((2, 3, 4, 4)))
    with pytest.raises(ValueError, match=r"reference are \(3, 4\); expected"):
        rgb(torch.zeros(3, 4), "reference")


def test_a_decoders_overshoot_is_no_8_bit_level():
    images = torch.tensor([-3.0, 0.2, 9.0, 20.0]).view(1, 1, 1, 4).expand(2, 3, 4, 4)
    assert torch.equal(rgb(images), images)
    dark = torch.zeros(1, 3, 8, 8)
    dark[..., 0, 0] = 100.0  # a lamp in a high dynamic range
    assert torch.equal(rgb(dark), dark)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pictures_are_made_float32_or_stay_wider(dtype):
    images = tiny_rewards.pictures().to(dtype)
    found = rgb(images)
    assert found.dtype == torch.promote_types(dtype, torch.float32) and torch.equal(found, images.to(found.dtype))

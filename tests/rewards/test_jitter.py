"""A reward of random crops: the mean of the crops' scores, differentiated crop by crop."""

import math

import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact
from comfyui_dno.rewards.preprocess import jittered


def test_a_jittered_reward_is_the_mean_over_the_crops_of_each_picture():
    def reward(images, prompts):
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return images.square().mean(dim=(1, 2, 3)) * lengths

    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    crops = torch.cat(list(jittered(images, 3, seed=5)))
    expected = crops.square().mean(dim=(1, 2, 3)).view(3, 2).mean(dim=0) * torch.tensor([1, 4])
    found = rewards.Jittered(reward, crops=3, seed=5)
    torch.testing.assert_close(found(images, ["a", "bbbb"]), expected)
    torch.testing.assert_close(found(images[1:], ["bbbb"]), expected[1:])
    assert found.name == "reward of crops"
    assert rewards.Jittered(rewards.JPEG()).differentiable is False
    small = (images[..., :5, :6] * 0.2 + 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: found(x, ["a", "bbbb"]), small)


def test_a_jittered_reward_is_differentiated_crop_by_crop():
    seen = []

    def reward(images, prompts):
        seen.append((len(images), prompts))
        return images.pow(3).mean(dim=(1, 2, 3))

    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = rewards.Jittered(reward, crops=3, seed=5)
    with torch.inference_mode():
        scores, gradient = exact(found, images.clone(), ["a", "b"])
    assert seen == [(2, ["a", "b"])] * 3
    with torch.no_grad():
        found(images, ["a", "b"])
    assert seen == [(2, ["a", "b"])] * 6
    images.requires_grad_()
    expected = found(images, ["a", "b"])
    torch.testing.assert_close(scores, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), images)[0])


@pytest.mark.parametrize(
    "settings",
    [{"crops": 0}, {"crops": math.nan}, {"crops": 2.5}, {"scale": (0.0, 1.0)}, {"scale": (0.9, 0.8)},
     {"scale": (0.8, 1.1)}, {"scale": (0.8, math.nan)}, {"scale": (math.nan, 1.0)}, {"scale": (0.5,)}],
    ids=str,
)  # fmt: skip
def test_wrong_crops_are_refused_when_they_are_given(settings):
    with pytest.raises(ValueError, match="expected 1 or more, and 0 < least <= greatest <= 1"):
        rewards.Jittered(rewards.Contrast(), **settings)


def test_a_seed_is_a_whole_number():
    for seed in (math.nan, 1.5, None):
        with pytest.raises(ValueError, match=f"seed is {seed}; expected a whole number"):
            rewards.Jittered(rewards.Contrast(), seed=seed)

"""A reward of random crops: the mean of the crops' scores, differentiated crop by crop."""

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

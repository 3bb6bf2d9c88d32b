"""The embedded model's consistency score as a reward."""

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact

PROMPTS = ["black cat", "red owl"]


@pytest.fixture(scope="module")
def images():
    """Two pictures that show their prompts in part, after few steps."""
    sample_map = core.load_embedded(PROMPTS, steps=4)
    return sample_map.sample(sample_map.randn(3)).detach()


def test_scores_are_probabilities_of_the_pictures_own_prompt(images):
    scores = rewards.Consistency()(images, PROMPTS)
    singles = [rewards.Consistency()(image[None], [prompt]) for image, prompt in zip(images, PROMPTS, strict=True)]
    torch.testing.assert_close(scores, torch.cat(singles), rtol=1e-4, atol=1e-5)
    assert (0 <= scores).all() and (scores <= 1).all()
    assert (scores > rewards.Consistency()(images, PROMPTS[::-1])).all()


def test_it_needs_a_prompt_and_prefers_its_own(images):
    with pytest.raises(ValueError, match="consistency needs a prompt"):
        rewards.Consistency()(images)
    own = rewards.Consistency("black cat")
    torch.testing.assert_close(own(images, ["red owl"] * 2), own(images))
    torch.testing.assert_close(own(images), rewards.Consistency()(images, ["black cat"] * 2))


def test_the_gradient_agrees_with_differences_also_in_inference_mode(images):
    reward = rewards.Consistency()
    with torch.inference_mode():
        _, gradient = exact(reward, images.clone(), PROMPTS)
    assert gradient.flatten(1).norm(dim=1).min() > 0
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ends = [reward(images + sign * 0.05 * direction, PROMPTS) for sign in (1, -1)]
    slope = (gradient * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close((ends[0] - ends[1]) / 0.1, slope, rtol=0.05, atol=1e-4)


def test_ten_ascent_steps_raise_the_score(images):
    reward, climbed = rewards.Consistency(), images * 0.5 + 0.25  # paler, so that there is something to gain
    before = reward(climbed, PROMPTS)
    for _ in range(10):
        _, gradient = exact(reward, climbed, PROMPTS)
        climbed = climbed + 0.003 * gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert (reward(climbed, PROMPTS) > before).all()

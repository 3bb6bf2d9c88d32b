"""ImageReward and CycleReward on tiny random files, against timm's vision tower and a text tower written out."""

from dataclasses import replace

import pytest
import tiny_rewards
import torch
from blip_reference import blip, head, pictures, reference
from comfyui_dno import rewards
from comfyui_dno.rewards.preprocess import Preprocess
from tiny_image_reward import image_reward_state
from torch.nn import functional as F

PROMPTS = ["a black cat", "white owls, a dog"]

CYCLE = (0, 2, 4, 6, 8)


@pytest.fixture(scope="module")
def reward(blip_files):
    return rewards.ImageReward(blip(blip_files / "ImageReward.pt"))


@pytest.fixture(scope="module")
def wide(blip_files):
    return rewards.ImageReward(blip(blip_files / "ImageReward.pt", dtype=torch.float64))


def pixels_of(images):
    return Preprocess(rule="laion")(images)


def gradient(reward, images, prompts=PROMPTS):
    images = images.clone().requires_grad_()
    scores = reward(images, prompts)
    return scores.detach(), torch.autograd.grad(scores.sum(), images)[0]


@torch.no_grad()
def test_scores_agree_with_a_reference_in_the_files_own_names(reward):
    state, images = image_reward_state(), pictures()
    ids = torch.tensor([[101, 104, 105, 107, 102] + [0] * 30, [101, 106, 111, 109, 112, 104, 108, 102] + [0] * 27])
    token = reference(state, pixels_of(images), ids, ids > 0)
    expected = (head(state, token, lambda x: x) - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-4, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("faint", "factor"),
    [
        (("blip.visual_encoder.",), 1e-2),
        (("blip.text_encoder.embeddings.word", "blip.text_encoder.embeddings.position"), 1e-3),
    ],
    ids=["vision", "text"],
)
def test_each_tower_divides_by_its_own_epsilon(blip_files, faint, factor):
    """Where weights are so small that what is added to a variance, 1e-6 of pictures and 1e-12 of texts, counts."""
    state, images = image_reward_state(), pictures()
    norms = [name for name in state if "norm" in name.lower()]
    small = [name for name in state if name.startswith(faint) and name not in norms]
    state |= {name: state[name] * factor for name in small if state[name].is_floating_point()}
    tiny_rewards.save(state, blip_files / "faint.pt")
    ids = torch.tensor([[101, 104, 105, 107, 102, 0, 0, 0], [101, 106, 111, 109, 112, 104, 108, 102]])
    token = reference(state, pixels_of(images), ids, ids > 0)
    expected = (head(state, token, lambda x: x) - 0.16717362830052426) / 1.0333394966054072
    found = rewards.ImageReward(blip(blip_files / "faint.pt"))(images, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cycle_reward_has_gelus_in_the_head_and_reads_128_tokens(blip_files):
    state, images = image_reward_state(head=CYCLE), pictures()
    reward = rewards.CycleReward(blip(blip_files / "CycleReward.pt"))
    ids = torch.tensor([[101, *[107] * 126, 102]] * 2)
    expected = head(state, reference(state, pixels_of(images), ids, ids > 0), F.gelu)
    torch.testing.assert_close(reward(images, ["cat " * 200] * 2), expected, rtol=1e-4, atol=0)


def test_the_gradient_agrees_with_finite_differences(wide):
    images = pictures(dtype=torch.float64)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, d_images = gradient(wide, images)
    with torch.no_grad():
        difference = wide(images + 1e-5 * direction, PROMPTS) - wide(images - 1e-5 * direction, PROMPTS)
    torch.testing.assert_close((d_images * direction).sum((1, 2, 3)), difference / 2e-5, rtol=1e-5, atol=0)


def test_a_batch_scores_as_its_pictures_alone(reward):
    images = pictures()
    together, d_together = gradient(reward, images)
    alone, d_alone = zip(*(gradient(reward, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)), strict=True)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_together, torch.cat(d_alone), rtol=1e-3, atol=1e-6)
    assert together[0] != together[1]


def test_ten_ascent_steps_raise_every_score(reward):
    images = pictures()
    before, d_images = gradient(reward, images)
    for _ in range(10):
        images = images + 0.5 * d_images / d_images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        after, d_images = gradient(reward, images)
    assert (after > before + 0.05).all()


def test_a_reward_made_in_inference_mode_has_a_gradient(blip_files, wide):
    """In another dtype than the file's, so that the weights are made anew."""
    with torch.inference_mode():
        made = rewards.ImageReward(blip(blip_files / "ImageReward.pt", dtype=torch.float64))
        scores = made(pictures(), PROMPTS)
    for found, expected in zip(gradient(made, pictures()), gradient(wide, pictures()), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(scores.clone(), wide(pictures(), PROMPTS))


def test_its_own_prompt_wins(reward):
    images = pictures()
    own = replace(reward, prompt=PROMPTS[0])
    torch.testing.assert_close(own(images, [PROMPTS[1]] * 2), reward(images, [PROMPTS[0]] * 2))


def test_prompts_that_are_missing_or_too_few_are_refused(reward):
    with pytest.raises(ValueError, match="ImageReward needs a prompt"):
        reward(pictures())
    with pytest.raises(ValueError, match="1 prompts, .* for 2 pictures"):
        reward(pictures(), PROMPTS[:1])


def test_a_file_of_another_model_is_told_what_it_is(blip_files):
    keys = ("visual.class_embedding", "visual.ln_pre.weight", "token_embedding.weight", "ln_final.weight")
    tiny_rewards.save({key: torch.zeros(1) for key in keys}, blip_files / "HPS.pt")
    with pytest.raises(ValueError, match=r"HPS.pt is of the kind 'clip \(open_clip\)'; expected 'ImageReward'"):
        rewards.ImageReward(blip(blip_files / "HPS.pt"))
    with pytest.raises(ValueError, match="a tower of kind ImageReward.* found CycleReward.pt, of kind CycleReward."):
        rewards.ImageReward(blip(blip_files / "CycleReward.pt"))
    with pytest.raises(ValueError, match="a tower of kind CycleReward.* found ImageReward.pt, of kind ImageReward."):
        rewards.CycleReward(blip(blip_files / "ImageReward.pt"))
    with pytest.raises(ValueError, match="needs a tower of kind ImageReward.* found 'ImageReward.pt'"):
        rewards.ImageReward("ImageReward.pt")


@pytest.mark.parametrize(("dtype", "score", "slope"), [(torch.bfloat16, 0.055, 0.09), (torch.float16, 0.0065, 0.012)])
def test_low_precision_towers_err_by_little(blip_files, reward, dtype, score, slope):
    """Four times what was measured here, also with AVX2 alone; the module says what was measured at full size."""
    low = rewards.ImageReward(blip(blip_files / "ImageReward.pt", dtype=dtype))
    expected, d_expected = gradient(reward, pictures())
    found, d_found = gradient(low, pictures())
    assert found.dtype == d_found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < score
    assert 0 < (d_found - d_expected).norm() / d_expected.norm() < slope


def test_a_gradient_that_is_small_for_float16_survives(blip_files, reward):
    low = rewards.ImageReward(blip(blip_files / "ImageReward.pt", dtype=torch.float16))
    _, expected = gradient(lambda images, prompts: 1e-6 * reward(images, prompts), pictures())
    _, found = gradient(lambda images, prompts: 1e-6 * low(images, prompts), pictures())
    assert expected.abs().max() < torch.finfo(torch.float16).tiny
    assert (found - expected).norm() < 0.012 * expected.norm()  # as where it is not small

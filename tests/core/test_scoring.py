"""How rewards are asked: checked, with pictures of their own, and named when they fail."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.limits import Stopped
from comfyui_dno.core.scoring import RewardError, exact, name_of, numbered, remarks, score


def mean_pixel(images, prompts):
    return images.mean(dim=(1, 2, 3))


def in_place(images, prompts):
    """Normalise the pictures where they are, as torchvision's functions do when asked to."""
    return images.sub_(0.5).div_(0.25).mean(dim=(1, 2, 3))


def pictures():
    return torch.rand((3, 3, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ask", [score, exact])
@pytest.mark.parametrize("reward", [in_place, rewards.Combine([in_place, mean_pixel])])
def test_a_reward_that_changes_what_it_is_given_changes_a_copy(ask, reward):
    images = pictures()
    before = images.clone()
    found = ask(reward, images)
    scores = found[0] if ask is exact else found
    expected = (before - 0.5).div(0.25).mean(dim=(1, 2, 3))
    expected = expected + before.mean(dim=(1, 2, 3)) if reward is not in_place else expected
    assert torch.equal(images, before)
    torch.testing.assert_close(scores, expected)
    if ask is exact:
        slope = (4 + (reward is not in_place)) / before[0].numel()
        torch.testing.assert_close(found[1], torch.full_like(before, slope))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_picture_that_is_not_finite_scores_minus_infinity_with_a_gradient_of_zero(broken):
    images = pictures()
    images[1, 2, 3, 0] = broken
    alone = score(mean_pixel, images[[0, 2]])
    for reward in (mean_pixel, rewards.JPEG()):
        scores = score(reward, images)
        assert scores[1] == -math.inf and scores[[0, 2]].isfinite().all()
    scores, gradient = exact(mean_pixel, images)
    torch.testing.assert_close(scores[[0, 2]], alone)
    assert scores[1] == -math.inf and not gradient[1].any() and gradient[[0, 2]].all()


@pytest.mark.parametrize("error", [
    KeyError("tokens"), AttributeError("no such thing"), TypeError("an int"), ZeroDivisionError("division by zero"),
    RuntimeError("mat1 and mat2"), ConnectionError("the server is gone"), AssertionError("one picture"),
    type("error", (Exception,), {})("as OpenCV's and onnxruntime's, of no built-in kind"),
])
@pytest.mark.parametrize("ask", [score, exact])
def test_an_error_that_would_stand_bare_names_the_reward(ask, error):
    def fragile(images, prompts):
        raise error

    with pytest.raises(RewardError, match=f"the reward fragile failed: {type(error).__name__}: ") as caught:
        ask(fragile, pictures())
    assert caught.value.__cause__ is error


def test_a_part_that_fails_is_named_and_not_what_it_is_a_part_of():
    def fragile(images, prompts):
        raise KeyError("tokens")

    with pytest.raises(RewardError, match="^the reward fragile failed: KeyError: 'tokens'$"):
        exact(rewards.Combine([fragile, mean_pixel]), pictures())


def test_a_valueerror_speaks_for_itself_and_is_a_rewards_error_all_the_same():
    error = ValueError("expected RGB; convert it first")

    def refuses(images, prompts):
        raise error

    with pytest.raises(ValueError, match="^expected RGB; convert it first$") as caught:
        score(rewards.Combine([refuses, mean_pixel]), pictures())
    assert isinstance(caught.value, RewardError) and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [
    torch.cuda.OutOfMemoryError("out of memory"), core.NotFiniteError("picture 0"), KeyboardInterrupt(),
    Stopped("stopped by hand"), type("InterruptProcessingException", (Exception,), {})("as ComfyUI's"),
])
def test_errors_that_speak_for_themselves_keep_their_type(error):
    def raises(images, prompts):
        raise error

    with pytest.raises(type(error)) as caught:
        score(raises, pictures())
    assert caught.value is error


def test_scores_are_float32_or_wider():
    half = score(lambda images, prompts: mean_pixel(images, prompts).half(), pictures())
    assert half.dtype == torch.float32
    assert score(mean_pixel, pictures().double()).dtype == torch.float64
    assert exact(mean_pixel, pictures().half())[1].dtype == torch.float32


def test_names_are_told_apart():
    assert numbered(["a", "b", "a", "a 2", "a"]) == ["a", "b", "a 3", "a 2", "a 4"]
    assert name_of(mean_pixel) == "mean_pixel" and name_of(rewards.Brightness()) == "brightness"
    assert issubclass(core.NotFiniteError, ValueError)


def test_what_a_reward_remarks_of_a_videos_frames_is_said_once():
    class Dark:
        def remarks(self, images):
            return [f"picture {index} is dark" for index in (images.mean(dim=(1, 2, 3)) < 0.5).nonzero().flatten()]

    bright, dark = torch.ones(3, 4, 4), torch.zeros(3, 4, 4)
    assert remarks(Dark(), torch.stack([bright, dark])) == ["picture 1 is dark"]
    videos = torch.stack([torch.stack([dark, bright, dark]), torch.stack([bright, bright, bright])])
    assert remarks(Dark(), videos) == ["picture 0 is dark"]
    assert remarks(mean_pixel, videos) == []

"""Which text each picture is judged by."""

import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards.prompts import texts_for


class Reward:
    name, prompt = "taste", None


IMAGES = torch.zeros(2, 3, 4, 4)


def test_a_rewards_own_prompt_is_every_pictures():
    own = Reward()
    own.prompt = "a cat"
    assert texts_for(own, IMAGES, ["a", "b"]) == texts_for(own, IMAGES, None) == ["a cat"] * 2
    assert texts_for(Reward(), IMAGES, ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "taste needs a prompt to score pictures with"),
        (["a"], r"taste was given 1 prompts, \['a'\] for 2 pictures; expected a list of one each"),
        (["a", "b", "c"], "taste was given 3 prompts, .* for 2 pictures"),
        (["a", None], r"taste was given 2 prompts, \['a', None\] for 2 pictures"),
        ("ab", "taste was given 'ab' for 2 pictures; expected a list of one each"),
    ],
)
def test_prompts_must_be_one_a_picture(prompts, message):
    with pytest.raises(ValueError, match=message):
        texts_for(Reward(), IMAGES, prompts)


def test_networks_ask_for_prompts_too(build):
    with pytest.raises(ValueError, match="HPS needs a prompt to score pictures with"):
        build("HPS")(tiny_rewards.pictures())
    with pytest.raises(ValueError, match="CLIPScore was given 1 prompts, .* for 2 pictures"):
        build("CLIPScore L")(tiny_rewards.pictures(), ["a"])

"""The Consistency Reward inside a real ComfyUI."""

import numpy as np
import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core import plots
from scoring import Scoring
from workflows import Workflow


def test_a_picture_is_judged_by_the_prompts_colour_and_animal(comfy):
    """By the classifier itself on the same 8-bit pixels; a picture's own prompt scores higher than another one's."""
    sample_map = core.load_embedded(["red owl"], steps=8)
    picture = plots.to_pictures(sample_map.sample(sample_map.randn(0)))[0]
    pixels = torch.from_numpy(np.asarray(picture) / np.float32(255)).movedim(-1, 0)[None]
    found = {}
    for prompt in ("red owl", "owl", "blue cat"):
        graph = Scoring(comfy)
        loaded = graph.picture("owl", (0, 0, 0))
        picture.save(comfy.folder / "input" / "owl.png")
        (found[prompt],), *_ = graph.scored(loaded[0], graph.node("DNOConsistencyReward", prompt=prompt)[0])
        assert found[prompt] == pytest.approx(rewards.Consistency(prompt)(pixels).item(), abs=1e-5)
    assert found["red owl"] > 0.5 > found["blue cat"] and found["owl"] > 0.5


def test_a_prompt_without_an_animal_is_refused_before_sampling(comfy):
    graph = Workflow()
    graph.reward = graph.node("DNOConsistencyReward", prompt="a fast car")[0]
    graph.keep("latent", graph.dno()[0])
    found = comfy.fail(graph)
    assert "animal" in found and "cat" in found, found

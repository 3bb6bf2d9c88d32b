"""The node of texts inside a real ComfyUI, on a tiny recogniser."""

import pytest
import torch
from comfyui_dno import rewards
from reward_nodes import REWARDS, reward_node
from scoring import Scoring
from tiny_onnx import RECOGNISER


def test_text_and_box_reach_the_reward(files):
    graph = Scoring(files)
    picture = graph.picture("halves", (200, 30, 30), right=(30, 60, 200))[0]
    box = {"x": 0.25, "y": 0.5, "width": 0.75, "height": 0.25}
    (found,), _, _ = graph.scored(picture, reward_node(graph, "DNOTextReward", text="Ab1", **box)[0])
    tower = rewards.load_tower(files.folder / "models" / "reward_models" / RECOGNISER)
    colours = torch.tensor([[200, 30, 30]] * 8 + [[30, 60, 200]] * 8).T / 255
    image = colours.view(1, 3, 1, 16).expand(1, 3, 16, 16)
    assert found == pytest.approx(rewards.ShownText(tower, "Ab1", tuple(box.values()))(image).item(), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "na\u00efve"}, "does not know '\u00ef'"),
        ({"text": " "}, "the text is empty"),
        ({"x": 0.5}, "box is (0.5, 0.35, 1.0, 0.3); expected left, top, width and height"),
        ({"file": "scorer.onnx"}, "scorer.onnx does not list its characters"),
        ({"text": "the box is far too narrow for it"}, "has room for 19 characters"),
    ],
)  # fmt: skip
def test_wrong_settings_are_explained(files, changes, words):
    graph = Scoring(files)
    graph.reward = reward_node(graph, "DNOTextReward", **changes)[0]
    graph.keep("latent", graph.dno(iterations=1, steps=2)[0])
    assert words in files.fail(graph)


def test_the_settings_of_the_tests_are_the_nodes_own(files):
    info = files.get("/object_info/DNOTextReward")["DNOTextReward"]["input"]["required"]
    assert {name: info[name][1]["default"] for name in ("x", "y", "width", "height")} == {
        name: value for name, value in REWARDS["DNOTextReward"].items() if name not in ("file", "text")
    }

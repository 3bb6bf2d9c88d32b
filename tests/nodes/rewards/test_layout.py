"""The nodes of palette, symmetry and layout inside a real ComfyUI, on pictures of known scores."""

import pytest
import torch
from scoring import Scoring
from workflows import history_of

WAYS = {
    "DNOPaletteReward": {},
    "DNOSymmetryReward": {"about": "left-right", "negative": False},
    "DNOLayoutReward": {"by": "light"},
}


def halves(graph):
    """Black at the left and white at the right, and the other way round."""
    black, white = (0, 0, 0), (255, 255, 255)
    return [graph.picture(name, a, right=b)[0] for name, a, b in (("bw", black, white), ("wb", white, black))]


@pytest.mark.parametrize(
    ("name", "inputs", "expected"),
    [
        ("DNOPaletteReward", {}, 0.0),
        ("DNOSymmetryReward", {"about": "left-right", "negative": False}, -1.0),
        ("DNOSymmetryReward", {"about": "left-right", "negative": True}, 1.0),
        ("DNOSymmetryReward", {"about": "top-bottom", "negative": False}, 1.0),
        ("DNOLayoutReward", {"by": "light"}, -1.0),
        ("DNOLayoutReward", {"by": "edges"}, 1.0),
    ],
)
def test_a_picture_is_compared_with_its_mirror_image(comfy, name, inputs, expected):
    graph = Scoring(comfy)
    picture, mirrored = halves(graph)
    if name != "DNOSymmetryReward":
        inputs = {**inputs, "reference": mirrored}
    (score,), _, _ = graph.scored(picture, graph.node(name, **inputs)[0])
    assert score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", WAYS)
def test_a_search_raises_the_reward(comfy, name):
    graph = Scoring(comfy)
    inputs = dict(WAYS[name])
    if name != "DNOSymmetryReward":
        inputs["reference"] = halves(graph)[0]
    graph.reward = graph.node(name, **inputs)[0]
    graph.node("DNOTestHistory", history=graph.dno(iterations=3, steps=3)[3])
    scores = torch.tensor([row["score"] for row in history_of(comfy.run(graph))["rows"]])
    assert (scores[1:].amax(dim=0) > scores[0]).all(), scores

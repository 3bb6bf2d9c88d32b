"""The nodes of pixel rewards inside a real ComfyUI, on pictures of known scores."""

import io
import math

import pytest
import torch
from PIL import Image
from scoring import Scoring
from workflows import NoiseWorkflow, Workflow, history_of


@pytest.mark.parametrize(
    "name, inputs, expected",
    [
        ("DNOContrastReward", {"negative": False}, 0.5),
        ("DNOContrastReward", {"negative": True}, -0.5),
        ("DNOSaturationReward", {"negative": False}, 0.0),
        # Of 14 x 14 inner pixels the two columns at the edge have a Laplacian of +1 and -1.
        ("DNOSharpnessReward", {"negative": False}, math.sqrt(2 / 14)),
        ("DNOSharpnessReward", {"negative": True}, -math.sqrt(2 / 14)),
        ("DNOColorReward", {"color": "#ffffff"}, -1.5),
        ("DNOColorReward", {"color": "255, 255,255"}, -1.5),
        ("DNOColorReward", {"color": "red"}, -1.5),
        ("DNOColorReward", {"color": "#0f0", "mask": True}, -2.0),
    ],
)
def test_pixel_rewards_give_the_known_scores_of_a_black_and_white_picture(comfy, name, inputs, expected):
    graph = Scoring(comfy)
    halves = graph.picture("halves", (0, 0, 0), right=(255, 255, 255))
    if "mask" in inputs:
        inputs = {**inputs, "mask": halves[1]}
    (score,), _, _ = graph.scored(halves[0], graph.node(name, **inputs)[0])
    assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["DNOContrastReward", "DNOSaturationReward", "DNOSharpnessReward", "DNOColorReward"])
def test_a_search_raises_every_pixel_reward(comfy, name):
    graph = Scoring(comfy)
    inputs = {"negative": True}
    if name == "DNOColorReward":
        inputs = {"color": "#ff8000", "mask": graph.picture("mask", (0, 0, 0), right=(0, 0, 0))[1]}
    graph.reward = graph.node(name, **inputs)[0]
    solver = graph.node("DNOSolverGradient", lr=0.03, optimizer="adam", momentum=0.9, clip=0.0)
    graph.node("DNOTestHistory", history=graph.dno(iterations=3, solver=solver[0], steps=3)[3])
    scores = torch.tensor([row["score"] for row in history_of(comfy.run(graph))["rows"]])
    assert (scores[1:].amax(dim=0) > scores[0]).all(), scores


@pytest.mark.parametrize("color", ["ff8000", "256, 0, 0", "1, 2", "#ff8000ff", "no colour", ""])
def test_a_wrong_colour_is_refused_before_anything_runs(comfy, color):
    graph = Scoring(comfy)
    reward = graph.node("DNOColorReward", color=color)[0]
    graph.node("DNOScoreImages", images=graph.greys(), reward=reward)
    with pytest.raises(ValueError, match="expected such as #ff8000"):
        comfy.run(graph)


def test_the_jpeg_reward_is_minus_the_size_of_the_pictures_file(comfy):
    graph = Workflow()
    graph.reward = graph.node("DNOJPEGReward", incompressible=False, proxy=False)[0]
    ours = graph.dno()
    graph.keep("image", ours[1])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    for pixels, score in zip(run.kept["image"]["tensor"], history_of(run)["rows"][0]["score"], strict=True):
        file = io.BytesIO()
        Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(file, "JPEG", quality=95)
        assert abs(score + len(file.getvalue()) / 1000) < 1e-3


@pytest.mark.parametrize("incompressible", [False, True])
def test_climbing_the_jpeg_proxy_makes_real_files_smaller_or_larger(comfy, incompressible):
    graph = NoiseWorkflow()
    graph.reward = graph.node("DNOJPEGReward", incompressible=incompressible, proxy=True)[0]
    smallness = graph.node("DNOJPEGReward", incompressible=False, proxy=False)[0]
    ours = graph.dno(iterations=4, watch=smallness, solver=graph.gradient(0.05))
    graph.node("DNOTestHistory", history=ours[3])
    rows = history_of(comfy.run(graph))["rows"]
    gains = torch.tensor(rows[-1]["watch/jpeg compressibility"]) - torch.tensor(rows[0]["watch/jpeg compressibility"])
    assert (gains < 0).all() if incompressible else (gains > 0).all()

"""The node of pyiqa's metrics, in servers with a stand-in for that package and without it."""

import importlib.util
import sys

import pytest
from scoring import Scoring
from workflows import history_of, rose


def test_the_list_offers_what_judges_a_picture(comfy_with_pyiqa):
    (kind, *options) = comfy_with_pyiqa.get("/object_info/DNOIQAReward")["DNOIQAReward"]["input"]["required"]["metric"]
    offered = kind if isinstance(kind, list) else options[0]["options"]
    assert offered[:3] == ["topiq_nr", "mean", "error"] and "fid" not in offered


def test_a_picture_is_judged_and_the_node_says_range_and_direction(comfy_with_pyiqa):
    graph = Scoring(comfy_with_pyiqa)
    white, black = (graph.picture(name, (level,) * 3)[0] for name, level in (("white", 255), ("black", 0)))
    reward = graph.node("DNOIQAReward", metric="error", reference=black)
    score = graph.node("PreviewAny", source=graph.node("DNOScoreImages", images=white, reward=reward[0])[1])
    run = comfy_with_pyiqa.run(graph)
    assert float(run.outputs[score.id]["text"][0]) == pytest.approx(-1)
    assert run.outputs[reward.id]["text"] == ["error: 0, ~1; lower is better, so the reward is minus it"]


def test_a_search_climbs_a_metric_that_has_a_gradient(comfy_with_pyiqa):
    graph = Scoring(comfy_with_pyiqa)
    graph.reward = graph.node("DNOIQAReward", metric="mean")[0]
    graph.node("DNOTestHistory", history=graph.dno(iterations=2, steps=3)[3])
    assert rose(history_of(comfy_with_pyiqa.run(graph)))


def test_a_metric_without_a_gradient_is_refused_by_a_solver_that_needs_one(comfy_with_pyiqa):
    graph = Scoring(comfy_with_pyiqa)
    graph.reward = graph.node("DNOIQAReward", metric="rounded")[0]
    graph.keep("latent", graph.dno(iterations=1, steps=3)[0])
    assert "rounded is not differentiable" in comfy_with_pyiqa.fail(graph)


def test_weights_that_are_not_here_are_not_fetched(comfy_with_pyiqa):
    graph = Scoring(comfy_with_pyiqa)
    graph.reward = graph.node("DNOIQAReward", metric="not_here")[0]
    graph.keep("latent", graph.dno(iterations=0, steps=3)[0])
    assert "the weights of pyiqa's metric not_here are not on this computer" in comfy_with_pyiqa.fail(graph)


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is not None, reason="pyiqa is installed")
@pytest.mark.parametrize("metric", ["pyiqa is not installed", "topiq_nr"])
def test_without_pyiqa_the_node_says_how_to_install_it(comfy, metric):
    graph = Scoring(comfy)
    graph.reward = graph.node("DNOIQAReward", metric=metric)[0]
    graph.keep("latent", graph.dno(iterations=0, steps=3)[0])
    with pytest.raises(
        ValueError, match=f"pyiqa is not installed. Install it by .*{sys.executable} -m pip inst"
    ):
        comfy.run(graph)

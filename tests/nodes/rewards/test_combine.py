"""Combine Rewards inside a real ComfyUI: sums, z-scores, and what they are calibrated on."""

import pytest
import torch
from scoring import BRIGHTNESS, GREYS, Scoring
from workflows import history_of


def test_combined_rewards_add_up_and_a_chain_of_them_is_one_of_all(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    inner = graph.combine(color, graph.saturation(), weights=(2.0, 7.0))
    outer = graph.combine(graph.reward, inner, graph.saturation(), weights=(3.0, -0.5, 1.0))
    scores, text, _ = graph.scored(graph.greys(), outer)
    expected = [3 * (2 * grey / 255 - 1) - 0.5 * 2 * -3 * (grey / 255) ** 2 for grey in GREYS]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert "brightness 0.6, combined -3.84, combined/colour target -1.92" in text.splitlines()[0]


def test_a_reward_that_is_watched_only_is_shown_and_not_counted(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    scores, text, _ = graph.scored(graph.greys(), graph.combine(graph.reward, color, watch_only=(2,)))
    assert scores == pytest.approx(BRIGHTNESS, abs=1e-5)
    assert text.splitlines()[0] == "1. picture 1: 0.6, brightness 0.6, colour target -1.92"


def test_z_scores_are_by_the_priors_that_are_given(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    reward = graph.combine(graph.reward, color, mode="z-scored", priors="0.1 0.5, -1 2", weights=(1.0, 3.0))
    scores, _, _ = graph.scored(graph.greys(), reward)
    expected = [(2 * grey / 255 - 1 - 0.1) / 0.5 + 3 * (-3 * (grey / 255) ** 2 + 1) / 2 for grey in GREYS]
    assert scores == pytest.approx(expected, abs=1e-4)


def test_scored_pictures_calibrate_a_combined_reward_an_inner_one_first(comfy):
    graph = Scoring(comfy)
    color = graph.node("DNOColorReward", color="#000000")[0]
    inner = graph.combine(color, mode="z-scored", calibrate_on=8)
    scores, _, _ = graph.scored(graph.greys(), graph.combine(graph.reward, inner, weights=(0.0, 1.0)))
    raw = torch.tensor([-3 * (grey / 255) ** 2 for grey in GREYS], dtype=torch.float64)
    assert scores == pytest.approx(((raw - raw.mean()) / raw.std()).tolist(), abs=1e-4)


@pytest.mark.parametrize("mask", ["none", "half"])
def test_a_run_calibrates_on_the_noises_of_the_first_seeds_and_is_otherwise_the_same(comfy, mask):
    def run(seed, reward=None):
        graph = Scoring(comfy)
        graph.reward = reward(graph) if reward else graph.reward
        ours = graph.dno(seed=seed, steps=3, latent=graph.latent(mask=mask))
        graph.node("DNOTestHistory", history=ours[3])
        graph.keep("latent", ours[0])
        done = comfy.run(graph)
        row = history_of(done)["rows"][0]
        return torch.tensor(row["score"], dtype=torch.float64), row, done.kept["latent"]["samples"]

    # Three noises are asked for: the batch of 2 makes that two runs of the sampler.
    first = torch.cat([run(seed)[0] for seed in (0, 1)])
    raw, _, latent = run(9)
    found, row, same = run(9, lambda graph: graph.combine(graph.reward, mode="z-scored", calibrate_on=3))
    torch.testing.assert_close(found, (raw - first.mean()) / first.std(), atol=2e-3, rtol=1e-3)
    assert row["watch/brightness"] == pytest.approx(raw.tolist(), abs=1e-6)
    assert torch.equal(same, latent)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({}, ["no typical mean", "brightness"]),
        ({"priors": "0.1"}, ["expected mean and standard deviation of each of the 2 connected"]),
        ({"priors": "0.1 1, 0 x"}, ["expected mean and standard deviation"]),
        ({"priors": "0.1 1, 0 0"}, ["an sd above 0"]),
        ({"watch_only": (1, 2), "priors": "0 1, 0 1"}, ["none to optimise"]),
        ({"calibrate_on": 8}, ["saturation scored", "two or more finite scores that differ"]),
    ],
)
def test_z_scores_that_cannot_be_are_explained(comfy, settings, words):
    graph = Scoring(comfy)
    reward = graph.combine(graph.reward, graph.saturation(), mode="z-scored", **settings)
    graph.node("DNOScoreImages", images=graph.greys(), reward=reward)
    message = comfy.fail(graph)
    assert all(word in message for word in words), message

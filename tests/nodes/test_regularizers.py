"""The regulariser nodes inside a real ComfyUI: the noise stays like true noise."""

import torch
from workflows import NoiseWorkflow, history_of


def test_the_norm_regularizer_keeps_the_noise_as_long_as_true_noise(comfy):
    lengths = {}
    for weight in (0.0, 1.0):
        graph = NoiseWorkflow()
        regularizer = graph.node("DNONormRegularizer", weight=weight)[0]
        ours = graph.dno(iterations=8, steps=3, solver=graph.gradient(0.3), regularizer=regularizer)
        graph.node("DNOTestHistory", history=ours[3])
        lengths[weight] = torch.tensor([row["norm"] for row in history_of(comfy.run(graph))["rows"]])
    assert (lengths[0.0][-1] > 1.3).all() and (lengths[1.0][-1] < 1.2).all(), lengths


def searched(comfy, **settings):
    """The noise and the history of a search that takes large steps, with a regulariser of these settings or without."""
    graph = NoiseWorkflow()
    defaults = {"gamma": 1.0, "k": 2, "permutations": 10, "apart": True}
    regularizer = graph.node("DNOProbabilityRegularizer", **{**defaults, **settings})[0] if settings else None
    one = graph.latent(batch=1, scale=0.0)
    ours = graph.dno(iterations=4, steps=3, latent=one, solver=graph.gradient(0.3), regularizer=regularizer)
    graph.keep("noise", ours[2])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    return run.kept["noise"]["initial"], [min(row["log_p"]) for row in history_of(run)["rows"]]


def test_the_probability_regularizer_keeps_the_noise_probable_the_more_the_larger_its_gamma(comfy):
    free, weak, strong = (searched(comfy, **change)[1][-1] for change in ({}, {"gamma": 0.01}, {"gamma": 1.0}))
    assert free < weak - 1 < strong - 2, (free, weak, strong)


def test_every_setting_of_the_probability_regularizer_counts(comfy):
    changes = ({"gamma": 1.0}, {"gamma": 2.0}, {"k": 3}, {"permutations": 11}, {"apart": False})
    noises = [searched(comfy, **change)[0] for change in changes]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(changes)
    assert torch.equal(searched(comfy, gamma=0.0)[0], searched(comfy)[0])

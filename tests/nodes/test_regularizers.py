"""The regulariser nodes inside a real ComfyUI: the noise stays like true noise."""

import torch
from workflows import NoiseWorkflow, history_of


def test_the_norm_regularizer_keeps_the_noise_as_long_as_true_noise(comfy):
    lengths = {}
    for weight in (0.0, 1.0):
        graph = NoiseWorkflow()
        regularizer = graph.node("DNONormRegularizer", weight=weight)[0]
        ours = graph.dno(iterations=8, solver=graph.gradient(0.3), regularizer=regularizer)
        graph.node("DNOTestHistory", history=ours[3])
        lengths[weight] = torch.tensor([row["norm"] for row in history_of(comfy.run(graph))["rows"]])
    assert (lengths[0.0][-1] > 1.3).all() and (lengths[1.0][-1] < 1.2).all(), lengths

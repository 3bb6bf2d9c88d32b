"""The regulariser nodes inside a real ComfyUI: the noise stays like true noise, the picture like the model's own."""

from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.models.embedded import configs
from workflows import NoiseWorkflow, Workflow, history_of


def test_the_norm_regularizer_keeps_the_noise_as_long_as_true_noise(comfy):
    lengths = {}
    for weight in (0.0, 1.0):
        graph = NoiseWorkflow()
        regularizer = graph.node("DNONormRegularizer", weight=weight)[0]
        ours = graph.dno(iterations=8, steps=3, solver=graph.gradient(0.3), regularizer=regularizer)
        graph.node("DNOTestHistory", history=ours[3])
        lengths[weight] = torch.tensor([row["norm"] for row in history_of(comfy.run(graph))["rows"]])
    assert (lengths[0.0][-1] > 1.3).all() and (lengths[1.0][-1] < 1.2).all(), lengths


def searched(comfy, size=8, **settings):
    """The noise and the history of a search that takes large steps, with a regulariser of these settings or without."""
    graph = NoiseWorkflow()
    defaults = {"gamma": 1.0, "k": 2, "permutations": 10, "apart": True}
    regularizer = graph.node("DNOProbabilityRegularizer", **{**defaults, **settings})[0] if settings else None
    one = graph.latent(batch=1, scale=0.0, size=size)
    ours = graph.dno(iterations=4, steps=3, latent=one, solver=graph.gradient(0.3), regularizer=regularizer)
    graph.keep("noise", ours[2])
    graph.node("DNOTestHistory", history=ours[3])
    run = comfy.run(graph)
    return run.kept["noise"]["initial"], [min(row["log_p"]) for row in history_of(run)["rows"]]


def test_the_probability_regularizer_keeps_the_noise_probable_the_more_the_larger_its_gamma(comfy):
    free, weak, strong = (searched(comfy, **change)[1][-1] for change in ({}, {"gamma": 0.00001}, {"gamma": 1.0}))
    assert free < weak - 1 < strong - 2, (free, weak, strong)


def test_every_setting_of_the_probability_regularizer_counts(comfy):
    changes = ({"gamma": 1.0}, {"gamma": 2.0}, {"k": 3}, {"permutations": 11}, {"apart": False})
    noises = [searched(comfy, **change)[0] for change in changes]
    assert len({noise.numpy().tobytes() for noise in noises}) == len(changes)
    assert torch.equal(searched(comfy, gamma=0.0)[0], searched(comfy)[0])
    # Of a larger latent, since few numbers show no pattern for certain; a workflow of before this input has none.
    without, before, patterns = (searched(comfy, size=32, **{"gamma": 1.0, **change})[0] for change in (
        {"structured": False}, {}, {"structured": True},
    ))  # fmt: skip
    assert torch.equal(without, before) and not torch.equal(without, patterns)


def on_picture(graph, kind, gamma=1.0, beside=None):
    return graph.node("DNOPictureRegularizer", kind=kind, gamma=gamma, noises=2, beside=beside)[0]


@pytest.mark.parametrize("kind", ["belief", "loss"])
def test_the_picture_regularizers_term_equals_cores_own_on_the_embedded_model(comfy, kind):
    graph = Workflow()
    graph.model, clip, graph.vae = (graph.node("DNOLoadEmbeddedModel")[index] for index in range(3))
    graph.positive, graph.negative = (
        graph.node("CLIPTextEncode", clip=clip, text=text)[0] for text in ("black cat", "")
    )
    one = graph.node("EmptyLatentImage", width=128, height=128, batch_size=1)[0]
    ours = graph.dno(seed=5, steps=4, cfg=3.0, latent=one, iterations=0, regularizer=on_picture(graph, kind, gamma=2.0))
    graph.node("DNOTestHistory", history=ours[3])
    graph.keep("latent", ours[0])
    run = comfy.run(graph)
    history = history_of(run)
    whole = core.load_embedded("black cat", steps=4)
    whole = replace(whole, schedule=core.Schedule(history["settings"]["sigmas"]))
    latent = run.kept["latent"]["samples"] * configs.LATENT_SCALE
    expected = core.PictureRegularizer(kind, 2.0).of(whole, whole.randn(5)).value(latent)
    found = torch.tensor(history["rows"][0]["picture_term"])
    # Rounding, of other kernels elsewhere.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", ["gradient", "trust"])
def test_the_picture_regularizer_holds_the_search_back_where_the_model_is_a_flow_and_knows_no_negative(comfy, solver):
    rows = {}
    for gamma in (0.001, 1000.0):
        graph = NoiseWorkflow("flow")
        guider = graph.node("BasicGuider", model=graph.model, conditioning=graph.positive)[0]
        tried = graph.gradient(0.1) if solver == "gradient" else None
        regularizer = on_picture(graph, "start", gamma)
        ours = graph.advanced({**graph.around(), "guider": guider}, iterations=3, solver=tried, regularizer=regularizer)
        graph.node("DNOTestHistory", history=ours[3])
        rows[gamma] = history_of(comfy.run(graph))["rows"]
    moved = {gamma: -min(row["picture_term"][0] for row in found) / gamma for gamma, found in rows.items()}
    assert moved[1000.0] < moved[0.001]


def test_a_regularizer_of_the_noise_counts_beside_that_of_the_picture(comfy):
    graph = NoiseWorkflow()
    beside = graph.node("DNONormRegularizer", weight=1.0)[0]
    regularizer = on_picture(graph, "loss", beside=beside)
    ours = graph.dno(iterations=1, solver=graph.gradient(0.1), regularizer=regularizer)
    graph.node("DNOTestHistory", history=ours[3])
    row = history_of(comfy.run(graph))["rows"][0]
    assert all(row["penalty"]) and all(row["picture_term"])


def test_a_solver_without_the_models_gradient_refuses_the_picture_regularizer(comfy):
    graph = NoiseWorkflow()
    solver = graph.node("DNOSolverSearch", method="zero-order", candidates=3, beta=0.5, seed=0)[0]
    graph.keep("latent", graph.dno(iterations=1, solver=solver, regularizer=on_picture(graph, "loss"))[0])
    assert "takes no gradient of the reward back through the whole model" in comfy.fail(graph)

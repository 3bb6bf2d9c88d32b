"""A search as a SAMPLER, in the stock SamplerCustomAdvanced and SamplerCustom."""

import pytest
import torch
from workflows import NoiseWorkflow, error


def searched(graph, eta=1.0, iterations=2, **search):
    judged = {"vae": graph.vae, "reward": graph.reward, "eta": eta, "iterations": iterations}
    return graph.node("DNOSearchSampler", **judged, **search)[0]


@pytest.mark.parametrize("family, name, split", [
    ("eps", None, False), ("flow", None, False), ("eps", "dpmpp_2m_sde", False), ("eps", None, True),
    ("flow", "heun", True),
])
def test_it_gives_what_the_advanced_sampler_gives(comfy, family, name, split):
    graph = NoiseWorkflow(family)
    sampler = name and graph.node("KSamplerSelect", sampler_name=name)[0]
    sigmas = graph.sigmas()
    if split:
        sigmas = graph.node("SplitSigmas", sigmas=sigmas, step=4)[0]
    around = graph.around(sigmas=sigmas)
    search = {"solver": graph.gradient(0.1), "iterations": 1, "sampler": sampler}
    inside = graph.node("SamplerCustomAdvanced", **around, sampler=searched(graph, **search))
    ours = graph.advanced(around, **search)
    for key, node, denoised in (("inside", inside, 1), ("ours", ours, 4)):
        graph.keep(key, node[0])
        graph.keep(f"{key} denoised", node[denoised])
    graph.keep("unsearched", graph.advanced(around, **{**search, "iterations": 0})[0])
    kept = comfy.run(graph).kept
    assert torch.equal(kept["inside"]["samples"], kept["ours"]["samples"])
    assert error(kept["inside denoised"]["samples"], kept["ours denoised"]["samples"]) < 1e-6
    assert error(kept["unsearched"]["samples"], kept["ours"]["samples"]) > 1e-3


def test_a_node_with_a_model_input_searches_too_and_the_node_that_runs_says_what_was_found(comfy):
    graph = NoiseWorkflow()
    inputs = graph.sampling()
    inside = graph.node(
        "SamplerCustom", **{name: inputs[name] for name in ("model", "cfg", "positive", "negative", "latent_image")},
        add_noise=True, noise_seed=3, sampler=searched(graph), sigmas=graph.sigmas(),
    )  # fmt: skip
    graph.keep("inside", inside[0])
    graph.keep("ours", graph.dno(iterations=2)[0])
    run = comfy.run(graph)
    assert torch.equal(run.kept["inside"]["samples"], run.kept["ours"]["samples"])
    said = [message["text"] for message in run.of_type("text") if message["node"] == inside.id]
    assert "2 iterations done" in said[-1] and "brightness" in said[-1]


def test_one_search_serves_several_nodes(comfy):
    graph = NoiseWorkflow()
    search = searched(graph, iterations=1)
    for seed in (3, 4):
        around = graph.around(seed=seed)
        graph.keep(f"inside {seed}", graph.node("SamplerCustomAdvanced", **around, sampler=search)[0])
        graph.keep(f"ours {seed}", graph.advanced(around, iterations=1)[0])
    kept = comfy.run(graph).kept
    for seed in (3, 4):
        assert torch.equal(kept[f"inside {seed}"]["samples"], kept[f"ours {seed}"]["samples"])


def test_nothing_of_a_search_stays_on_the_sampler_which_comfyui_keeps(comfy):
    graph = NoiseWorkflow()
    search = searched(graph)
    latent = graph.node("SamplerCustomAdvanced", **graph.around(), sampler=search)[0]
    node = graph.node("DNOTestKeptBySampler", sampler=search, latent=latent)
    outputs = [each["output"] for each in comfy.run(graph).of_type("executed") if each["node"] == node.id]
    assert outputs[0]["attributes"] == ["optimization", "vae"]


def test_a_vae_of_another_model_is_refused(comfy):
    graph = NoiseWorkflow(vae_channels=16)
    graph.keep("latent", graph.node("SamplerCustomAdvanced", **graph.around(), sampler=searched(graph))[0])
    assert "the VAE decodes latents of 16 channels" in comfy.fail(graph)


def test_a_search_is_no_sampler_for_another_search(comfy):
    graph = NoiseWorkflow()
    graph.keep("latent", graph.advanced(graph.around(), iterations=1, sampler=searched(graph))[0])
    assert "the sampler is SearchSampler, which samples in a way of its own" in comfy.fail(graph)

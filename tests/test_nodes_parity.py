"""With 0 iterations the DNO Sampler is KSampler, on a real server."""

import pytest
import torch
from comfy_server import Graph


def error(found, expected):
    """The largest difference, relative to the largest expected value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def tiny_graph(family="eps", dtype="float32"):
    graph = Graph()
    tiny = graph.node("DNOTestModel", family=family, seed=0, dtype=dtype, vae_channels=4)
    return graph, tiny, graph.node("DNOBrightnessReward", negative=False)


def sampling(tiny, latent, seed=3, steps=6, cfg=8.0, scheduler="normal", denoise=1.0):
    """KSampler's inputs, but for the sampler's name."""
    return {
        "model": tiny[0], "seed": seed, "steps": steps, "cfg": cfg, "scheduler": scheduler,
        "positive": tiny[1], "negative": tiny[2], "latent_image": latent[0], "denoise": denoise,
    }  # fmt: skip


def compare(comfy, family, eta, samplers, latent=None, **settings):
    """Run ours with 0 iterations and the stock samplers in one workflow; return the errors by sampler name."""
    graph, tiny, reward = tiny_graph(family)
    latent = graph.node("DNOTestLatent", **latent) if latent else graph.node(
        "EmptyLatentImage", width=64, height=64, batch_size=2
    )  # fmt: skip
    inputs = sampling(tiny, latent, **settings)
    ours = graph.node("DNOSampler", **inputs, vae=tiny[3], reward=reward[0], eta=eta, iterations=0)
    graph.keep("ours", ours[0])
    for name in samplers:
        if eta > 0:
            stock = graph.node("DNOTestStockSampler", **inputs, sampler_name=name, eta=eta, noise=ours[2])
        else:
            stock = graph.node("KSampler", **inputs, sampler_name=name)
        graph.keep(name, stock[0])
    run = comfy.run(graph)
    assert run.kept["ours"]["samples"].std() > 0.1
    return {name: error(run.kept["ours"]["samples"], run.kept[name]["samples"]) for name in samplers}


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
@pytest.mark.parametrize("steps, tolerance", [(6, 1e-5), (20, 1e-4)])
@pytest.mark.parametrize("eta, samplers", [(0.0, ["euler", "ddim"]), (1.0, ["euler_ancestral"])])
def test_zero_iterations_equal_ksampler(comfy, family, steps, tolerance, eta, samplers):
    errors = compare(comfy, family, eta, samplers, steps=steps)
    print(family, steps, eta, errors)
    assert max(errors.values()) < tolerance, errors

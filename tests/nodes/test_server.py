"""The server the other tests stand on: it runs stock workflows on the tiny models and loads the pack."""

import pytest
import torch
from comfy_server import Graph


@pytest.mark.parametrize("family", ["eps", "v", "flow"])
def test_a_stock_ksampler_runs_on_a_tiny_model(comfy, family):
    graph = Graph()
    tiny = graph.node("DNOTestModel", family=family, seed=0, dtype="float32", vae_channels=4)
    latent = graph.node("EmptyLatentImage", width=64, height=64, batch_size=2)
    sampled = graph.node(
        "KSampler", model=tiny[0], seed=1, steps=6, cfg=8.0, sampler_name="euler", scheduler="normal",
        positive=tiny[1], negative=tiny[2], latent_image=latent[0], denoise=1.0,
    )  # fmt: skip
    graph.keep("latent", sampled[0])
    graph.keep("image", graph.node("VAEDecode", samples=sampled[0], vae=tiny[3])[0])
    run = comfy.run(graph)
    latent, image = run.kept["latent"]["samples"], run.kept["image"]["tensor"]
    assert latent.shape == (2, 4, 8, 8) and torch.isfinite(latent).all()
    assert image.shape == (2, 64, 64, 3) and image.std() > 0.01

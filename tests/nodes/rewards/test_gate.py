"""DNO Gate: which pictures go which way, with what is theirs."""

import pytest
import torch
from workflows import NoiseWorkflow


def gated(comfy, **settings):
    """Gate a batch of two by brightness, the second brighter; return the run and what each output held."""
    graph = NoiseWorkflow()
    ours = graph.dno()
    dark = graph.node("EmptyImage", width=64, height=64, batch_size=1, color=0x202020)[0]
    bright = graph.node("EmptyImage", width=64, height=64, batch_size=1, color=0xC0C0C0)[0]
    images = graph.node("ImageBatch", image1=dark, image2=bright)[0]
    gate = graph.node(
        "DNOGate", images=images, reward=graph.reward, prompt="", latents=ours[0], noise=ours[2],
        **{"by": "score", "threshold": 0.5, "count": 1, **settings},
    )  # fmt: skip
    graph.keep("latents", ours[0])
    graph.keep("noise", ours[2])
    for place, key in enumerate(("images", "latents", "noise")):
        graph.keep(f"accepted {key}", gate[place])
        graph.keep(f"rejected {key}", gate[place + 4])
    run = comfy.run(graph)
    return run, run.outputs[gate.id]["text"][0]


@pytest.mark.parametrize("settings", [{}, {"by": "number", "count": 1}])
def test_each_side_gets_its_pictures_with_their_latents_and_noises(comfy, settings):
    run, text = gated(comfy, **settings)
    for side, row, shade in (("accepted", 1, 0xC0), ("rejected", 0, 0x20)):
        assert torch.allclose(run.kept[f"{side} images"]["tensor"], torch.full((1, 64, 64, 3), shade / 255))
        assert torch.equal(run.kept[f"{side} latents"]["samples"], run.kept["latents"]["samples"][[row]])
        for part, rows in (("initial", [row]), ("injected", (slice(None), [row]))):
            assert torch.equal(run.kept[f"{side} noise"][part], run.kept["noise"][part][rows])
    assert text == "1 of 2 let through: scores 0.506; not -0.749"


@pytest.mark.parametrize("settings, side", [
    ({"threshold": 0.9}, "rejected"), ({"by": "number", "count": 9}, "accepted"),
])  # fmt: skip
def test_nothing_behind_an_empty_side_is_run(comfy, settings, side):
    run, text = gated(comfy, **settings)
    assert {key.split()[0] for key in run.kept if " " in key} == {side}
    assert run.kept[f"{side} images"]["tensor"].shape[0] == 2 and "none" in text


def test_latents_of_another_batch_are_refused(comfy):
    graph = NoiseWorkflow()
    latents = graph.node("EmptyLatentImage", width=64, height=64, batch_size=3)[0]
    images = graph.node("EmptyImage", width=64, height=64, batch_size=2, color=0)[0]
    settings = {"prompt": "", "by": "score", "threshold": 0.0, "count": 1}
    gate = graph.node("DNOGate", images=images, reward=graph.reward, latents=latents, **settings)
    graph.keep("images", gate[0])
    assert "there are 3 latents for 2 images" in comfy.fail(graph)

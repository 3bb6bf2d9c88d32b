"""The embedded model gives the same picture through diffusers and through ComfyUI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_server import Graph, find_comfyui


@pytest.fixture(scope="module")
def difference():
    script = Path(__file__).parents[1] / "support" / "embedded_in_comfyui.py"
    command = [sys.executable, str(script), "--cpu"]
    done = subprocess.run(command, cwd=find_comfyui(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_stock_text_encode_node_gives_the_text_encoders_states(difference):
    assert difference["text"] < 1e-4


def test_same_noises_give_the_same_picture(difference):
    assert difference["pixel"] <= 2 / 255


def test_prompt_weights_work(difference):
    assert difference["weighted"] > 0.01


def test_words_that_the_model_ignores_stand_on_the_nodes_that_have_them(comfy):
    graph = Graph()
    loaded = graph.node("DNOLoadEmbeddedModel")
    encoded = [graph.node("CLIPTextEncode", text=text, clip=loaded[1]) for text in ("a flerken cat", "a black cat")]
    rewards = [graph.node("DNOConsistencyReward", prompt=text) for text in ("a quokka cat", "a white cat")]
    latent = graph.node("EmptyLatentImage", width=128, height=128, batch_size=1)
    found = graph.node(
        "DNOSampler", model=loaded[0], seed=0, steps=1, cfg=1.0, scheduler="simple", denoise=1.0, eta=1.0, iterations=0,
        positive=encoded[0][0], negative=encoded[1][0], latent_image=latent[0], vae=loaded[2], reward=rewards[0][0],
        watch=rewards[1][0],
    )  # fmt: skip
    graph.keep("image", found[1])
    told = {data["node"]: data["text"].partition(";")[0] for data in comfy.run(graph).of_type("text")}
    assert told[encoded[0].id] == "the embedded model ignores 'flerken'"
    assert told[rewards[0].id] == "the embedded model ignores 'quokka'"
    assert encoded[1].id not in told and rewards[1].id not in told

"""The search on a full-size model needs no second copy of the weights."""

import re

import pytest
from comfy_server import Graph

NAME = "random_sd15.safetensors"


class PeakMemory:
    """Peak resident memory of the server since the last `reset`, in bytes (Linux)."""

    def __init__(self, server):
        self.folder = f"/proc/{server.process.pid}"

    def reset(self):
        with open(f"{self.folder}/clear_refs", "w") as file:
            file.write("5")

    def read(self):
        with open(f"{self.folder}/status") as file:
            return 1024 * int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1))


def sampling(graph):
    loader = graph.node("CheckpointLoaderSimple", ckpt_name=NAME)
    texts = [graph.node("CLIPTextEncode", text=text, clip=loader[1]) for text in ("a cat", "")]
    latent = graph.node("EmptyLatentImage", width=64, height=64, batch_size=1)
    return loader, {
        "model": loader[0], "seed": 0, "steps": 2, "cfg": 3.0, "scheduler": "normal", "positive": texts[0][0],
        "negative": texts[1][0], "latent_image": latent[0], "denoise": 1.0,
    }  # fmt: skip


def ksampler():
    graph = Graph()
    loader, inputs = sampling(graph)
    sampled = graph.node("KSampler", **inputs, sampler_name="euler_ancestral")
    graph.keep("image", graph.node("VAEDecode", samples=sampled[0], vae=loader[2])[0])
    return graph


def dno():
    graph = Graph()
    loader, inputs = sampling(graph)
    reward = graph.node("DNOBrightnessReward", negative=False)
    ours = graph.node("DNOSampler", **inputs, vae=loader[2], reward=reward[0], eta=1.0, iterations=2)
    graph.keep("image", ours[1])
    return graph


@pytest.mark.slow
def test_the_peak_grows_by_less_than_a_third_of_the_weights(comfy, record_property):
    writer = Graph()
    node = writer.node("DNOTestFullSizeCheckpoint", name=NAME)
    size = comfy.run(writer, timeout=1800).outputs[node.id]["bytes"][0]
    assert size > 2e9
    comfy.run(ksampler(), timeout=1800)
    memory, peaks = PeakMemory(comfy), {}
    for name, graph in (("ksampler", ksampler()), ("dno", dno())):
        graph.prompt[next(k for k, n in graph.prompt.items() if "steps" in n["inputs"])]["inputs"]["seed"] = 1
        memory.reset()
        comfy.run(graph, timeout=1800)
        peaks[name] = memory.read()
    record_property("peaks", peaks)
    assert peaks["dno"] - peaks["ksampler"] < size / 3, peaks

"""Fixtures of the tests of reward nodes."""

import pytest
import tiny_rewards
from comfy_server.make_tiny_rewards import CYCLE_REWARD, WRITERS
from reward_nodes import IMAGE_REWARD
from tiny_faces import FACENET
from tiny_onnx import RECOGNISER, SCORER


@pytest.fixture(scope="session")
def files(comfy):
    """The server, with a file for each of the nodes; those that others keep elsewhere are in those folders."""
    folders = [comfy.folder / "models" / name for name in ("reward_models", "aesthetic", "clip_vision")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    own, aesthetic, clip_vision = folders
    kept = {
        own: ("hps", "pickscore", "mps", "aesthetic_v25", "squeezenet"), aesthetic: ("aesthetic",),
        clip_vision: ("clip_l", "siglip", "dinov2"),
    }  # fmt: skip
    for kind, folder in ((kind, folder) for folder, kinds in kept.items() for kind in kinds):
        tiny_rewards.write(kind, folder)
    for name in (IMAGE_REWARD, CYCLE_REWARD, "vocab.txt", SCORER, RECOGNISER, FACENET, "onet.pt"):
        WRITERS[name](own)
    (own / "page.safetensors").write_text("<!doctype html>")
    return comfy

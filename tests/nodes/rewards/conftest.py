"""Fixtures of the tests of reward nodes."""

import pytest
import tiny_rewards
from comfy_server.make_tiny_rewards import CYCLE_REWARD, WRITERS
from reward_nodes import IMAGE_REWARD
from tiny_onnx import SCORER


@pytest.fixture(scope="session")
def files(comfy):
    """The server, with a file for each of the nodes; those that others keep elsewhere are in those folders."""
    folders = [comfy.folder / "models" / name for name in ("reward_models", "aesthetic", "clip_vision")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    own, aesthetic, clip_vision = folders
    for kind, folder in (("hps", own), ("pickscore", own), ("aesthetic", aesthetic), ("clip_l", clip_vision)):
        tiny_rewards.write(kind, folder)
    for name in (IMAGE_REWARD, CYCLE_REWARD, "vocab.txt", SCORER):
        WRITERS[name](own)
    (own / "page.safetensors").write_text("<!doctype html>")
    return comfy

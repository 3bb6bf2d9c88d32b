"""The embedded model gives the same picture through diffusers and through ComfyUI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_server import find_comfyui


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

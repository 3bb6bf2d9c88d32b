"""The nodes on a second device, in a real ComfyUI in a process of its own: they find what they find on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from comfy_server import find_comfyui

PLACES = ["all on the device", "VAE on the CPU"]
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def report(pretend):
    command = [sys.executable, str(SUPPORT / "second_device_in_comfyui.py"), "--cpu"]
    # The pack as this process has it: installed, or by a path.
    paths = filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=find_comfyui(), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("solver", ["gradient", "zeno", "search"])
def test_a_search_on_the_device_finds_what_it_finds_on_the_cpu(report, solver, place):
    """Up to the rounding of sums in another order, which two iterations of Adam take further: 2e-5 was measured."""
    found = report[f"{solver}, {place}"]
    assert found["operations"] > 1000 and found["error"] < 2e-4 and found["warnings"] == []


@pytest.mark.parametrize("place", PLACES)
def test_both_samplers_leave_their_latent_where_stock_nodes_leave_theirs(report, place):
    assert report[f"gradient, {place}"]["device"] == report[f"advanced, {place}"]["device"] == "cpu"


@pytest.mark.parametrize("place", PLACES)
def test_a_search_is_diagnosed_wherever_the_vae_is(report, place):
    assert report[f"diagnosis, {place}"]["warnings"] == []

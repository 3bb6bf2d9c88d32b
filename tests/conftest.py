"""Fixtures of the whole test run."""

import os

# Before torch is imported anywhere: tiny networks are many times slower on several contending threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
from comfy_server import ComfyServer, find_comfyui  # noqa: E402


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """A real ComfyUI server with this pack and the test nodes, one for the whole run."""
    server = ComfyServer(find_comfyui(), tmp_path_factory.mktemp("comfyui"))
    yield server
    server.stop()

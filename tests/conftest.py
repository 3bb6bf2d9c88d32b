"""Fixtures of the whole test run."""

import gc
import os
from pathlib import Path

# Before torch is imported anywhere: tiny networks are many times slower on several contending threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import second_device  # noqa: E402, before autograd's first backward pass, which counts the devices
import torch  # noqa: E402
from comfy_server import ComfyServer, find_comfyui  # noqa: E402

DEVICES = ["pretend", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_collection_finish():
    """Keep the garbage collector away from what imports and collection have made: it lives to the end."""
    gc.freeze()


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    """A real ComfyUI server with this pack and the test nodes, one for the whole run."""
    server = ComfyServer(find_comfyui(), tmp_path_factory.mktemp("comfyui"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def comfy_with_pyiqa(tmp_path_factory):
    """Another server, whose Python finds the stand-in for pyiqa."""
    stub = Path(__file__).parent / "support" / "stub_pyiqa"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(stub), *filter(None, [os.environ.get("PYTHONPATH")])]))
        server = ComfyServer(find_comfyui(), tmp_path_factory.mktemp("pyiqa"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def pretend():
    """The pretend device; see `second_device`."""
    if second_device.MISSING:
        pytest.skip(second_device.MISSING)
    return second_device.PRETEND


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """A device that is not the CPU: the pretend one, and CUDA where there is one."""
    return torch.device("cuda", 0) if request.param == "cuda" else request.getfixturevalue("pretend")

"""Requirements that nobody has installed: said before anything runs, with the command that installs them."""

import importlib.util
import os
import shlex
import sys

import pytest
from comfy_server import ComfyServer, find_comfyui
from comfy_server.server import PACK
from reward_nodes import NEED_TRANSFORMERS, reward_node
from workflows import Workflow

# By its path: its package imports ComfyUI.
SPEC = importlib.util.spec_from_file_location("requirements", PACK / "nodes" / "requirements.py")
requirements = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(requirements)

# What Python runs first: it finds no matplotlib and no open_clip, and takes transformers for an old one.
AS_IF_NOT_INSTALLED = """
import importlib.machinery, importlib.metadata

finder, version, hidden = importlib.machinery.PathFinder, importlib.metadata.version, ("matplotlib", "open_clip")
find = finder.find_spec
finder.find_spec = lambda name, *rest: None if name.split(".")[0] in hidden else find(name, *rest)
importlib.metadata.version = lambda name: "4.40.1" if name == "transformers" else version(name)
"""
OLD, NO_CLIP = "transformers is 4.40.1, expected 4.50 or later", "the package open_clip_torch is not installed"
NEEDS_TEXTS = ("DNOHPSReward", "DNOPickScoreReward", "DNOCLIPScoreReward", "DNODirectionReward", "DNOMPSReward")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A server whose Python lacks packages of the pack's."""
    first = tmp_path_factory.mktemp("first")
    (first / "sitecustomize.py").write_text(AS_IF_NOT_INSTALLED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(first), *filter(None, [os.environ.get("PYTHONPATH")])]))
        server = ComfyServer(find_comfyui(), tmp_path_factory.mktemp("bare"))
    yield server
    server.stop()


def refusal(server, graph):
    with pytest.raises(ValueError) as refused:
        server.run(graph)
    message = str(refused.value)
    assert f"{sys.executable} -m pip install -r " in message and "requirements.txt" in message, message
    return message


def drawn(graph, name):
    """A node that draws by matplotlib, behind a search."""
    found = graph.dno(iterations=1)
    inputs = {
        "DNOReport": {"history": found[3], "picture": -1},
        "DNOTrajectory": {"history": found[3], "picture": 0, "count": 3},
        "DNODiagnostics": {"history": found[3]},
        "DNOScoreImages": {"images": found[1], "reward": graph.reward},
        "DNONoiseProbability": {"noise": found[2], "picture": 0},
    }
    return graph.node(name, **inputs[name])


@pytest.mark.parametrize(
    "name, output",
    [("DNOReport", 0), ("DNOTrajectory", 0), ("DNODiagnostics", 1), ("DNOScoreImages", 2), ("DNONoiseProbability", 2)],
)
def test_a_node_that_draws_is_refused_before_the_search(bare, name, output):
    graph = Workflow()
    graph.node("PreviewImage", images=drawn(graph, name)[output])
    assert "the package matplotlib is not installed" in refusal(bare, graph)


@pytest.mark.parametrize("name", NEED_TRANSFORMERS)
def test_a_reward_that_is_a_network_is_refused_before_the_search(bare, name):
    graph = Workflow()
    graph.reward = reward_node(graph, name)[0]
    graph.keep("latent", graph.dno(iterations=1)[0])
    message = refusal(bare, graph)
    assert OLD in message and (NO_CLIP in message) == (name in NEEDS_TEXTS), message


def test_a_vision_language_model_is_refused_where_transformers_is_too_old_before_its_folder_is_missed(bare):
    graph = Workflow()
    graph.reward = graph.node("DNOVLMJudgeReward", folder="gone", question="Is it?", prompt="", scale="log-odds")[0]
    graph.keep("latent", graph.dno(iterations=1)[0])
    assert OLD in refusal(bare, graph)


def test_what_needs_no_such_package_runs_and_the_console_says_what_is_missing(bare):
    graph = Workflow()
    graph.keep("image", graph.dno(iterations=1)[1])
    assert bare.run(graph).kept["image"]["tensor"].isfinite().all()
    (line,) = [line for line in bare.log().splitlines() if "Nodes that need it refuse to run" in line]
    assert "the package matplotlib is not installed" in line and OLD in line and NO_CLIP in line, line
    assert f"{sys.executable} -m pip install -r " in line


def test_where_all_is_installed_nothing_is_said(comfy):
    assert "refuse to run" not in comfy.log() and requirements.met(*requirements.needed()) is True


@pytest.mark.parametrize("version, enough", [
    ("4.50", True), ("4.50.3", True), ("5.0.0rc1", True), ("4.49.9", False), ("4.6", False), ("", True),
])
def test_versions_are_compared_as_numbers(monkeypatch, version, enough):
    monkeypatch.setattr(requirements, "version_of", lambda package: version)
    assert (requirements.met("transformers") is True) == enough


def test_a_path_with_spaces_is_quoted_in_the_command(monkeypatch):
    python, file = "/opt/Comfy UI/python", "/home/a b/requirements.txt"
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(requirements, "FILE", file)
    assert shlex.split(requirements.advice().partition(": ")[2]) == [python, "-m", "pip", "install", "-r", file]

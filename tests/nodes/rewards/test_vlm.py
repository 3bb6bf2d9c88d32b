"""The node of vision-language models inside a real ComfyUI, on tiny ones."""

import math
import shutil

import pytest
import torch
from comfy_server.make_tiny_rewards import HPSV3, VLM, WRITERS
from comfyui_dno import rewards
from scoring import Scoring

SETTINGS = {"folder": VLM, "question": "Is there {prompt} in it?", "prompt": "a cat", "scale": "log-odds"}
ZENO = {"mode": "optimise", "candidates": 2, "beta": 0.1, "weights": "linear", "tau": 0.1, "seed": 0}


@pytest.fixture(scope="module")
def server(comfy):
    """The server, with a tiny Qwen2-VL among the reward models and a tiny HPSv3 where other packs keep such."""
    for name, kept in ((VLM, "reward_models"), (HPSV3, "LLM")):
        folder = comfy.folder / "models" / kept
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).exists():
            WRITERS[name](folder)
    return comfy


def judge(graph, **changes):
    return graph.node("DNOVLMJudgeReward", **{**SETTINGS, **changes})


def test_the_list_offers_folders_with_such_a_model_and_no_others(server):
    other = server.folder / "models" / "reward_models" / "a text encoder"
    other.mkdir(exist_ok=True)
    (other / "config.json").write_text('{"architectures": ["T5ForConditionalGeneration"]}')
    (kind, *options) = server.get("/object_info/DNOVLMJudgeReward")["DNOVLMJudgeReward"]["input"]["required"]["folder"]
    # In what order depends on where other tests have put them: those for reward models come first.
    assert sorted(kind if isinstance(kind, list) else options[0]["options"]) == sorted([VLM, HPSV3])


@pytest.mark.parametrize("scale", ["log-odds", "probability"])
def test_a_picture_is_judged_as_the_reward_does(server, scale):
    graph = Scoring(server)
    (found,), _, _ = graph.scored(graph.picture("red", (200, 30, 30))[0], judge(graph, scale=scale)[0])
    tower = rewards.load_tower(server.folder / "models" / "reward_models" / VLM)
    image = torch.tensor([200, 30, 30]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    assert found == pytest.approx(rewards.VLMJudge(tower, SETTINGS["question"], "a cat", scale)(image).item(), abs=1e-4)


def test_hpsv3_is_known_by_its_weights_and_the_node_says_so(server):
    graph = Scoring(server)
    node = judge(graph, folder=HPSV3)
    shown = graph.node("PreviewAny", source=graph.node(
        "DNOScoreImages", images=graph.picture("red", (200, 30, 30))[0], reward=node[0])[1])  # fmt: skip
    run = server.run(graph)
    tower = rewards.load_tower(server.folder / "models" / "LLM" / HPSV3)
    image = torch.tensor([200, 30, 30]).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
    expected = rewards.HPSv3(tower, "a cat")(image).item()
    assert float(run.outputs[shown.id]["text"][0]) == pytest.approx(expected, abs=1e-4)
    assert run.outputs[node.id]["text"] == ["HPSv3's own head judges: question and scale do not count"]


def test_a_search_without_gradients_asks_a_network_that_comfyui_manages(server):
    graph = Scoring(server)
    watched = graph.node("DNOTestWatchedTower", reward=judge(graph)[0])
    graph.reward = watched[0]
    ours = graph.dno(iterations=2, steps=3, solver=graph.node("DNOSolverZeNO", **ZENO)[0])
    graph.node("DNOTestHistory", history=ours[3])
    graph.node("DNOTestTower", reward=graph.reward, after=ours[0], loads=watched[1])
    found = {name: value[0] for output in server.run(graph).outputs.values() for name, value in output.items()}
    assert all(math.isfinite(score) for row in found["history"]["rows"] for score in row["score"])
    assert found["tower"]["managed"] and found["tower"]["inference_weights"] == 0
    assert len(found["tower"]["loads"]) >= 3


def test_a_solver_that_needs_a_gradient_refuses_it(server):
    graph = Scoring(server)
    graph.reward = judge(graph)[0]
    graph.keep("latent", graph.dno(iterations=1, steps=3)[0])
    assert "VLM judge is not differentiable" in server.fail(graph)


def test_two_nodes_with_one_folder_share_its_network(server):
    graph = Scoring(server)
    noted = [graph.node("DNOTestTower", reward=judge(graph, prompt=prompt)[0]).id for prompt in ("a cat", "a dog")]
    outputs = server.run(graph).outputs
    first, second = (outputs[node]["tower"][0]["tower"] for node in noted)
    assert first == second


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("gone", "there is no folder gone with a vision-language model in .*reward_models. Download the folder Qwen2"),
        ("no folder in models/reward_models", "there is no folder with a vision-language model in .* from huggingface"),
    ],
)
def test_a_missing_folder_is_refused_before_anything_runs(server, folder, message):
    graph = Scoring(server)
    graph.node("DNOTestTower", reward=judge(graph, folder=folder)[0])
    with pytest.raises(ValueError, match=message):
        server.run(graph)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": " "}, "the prompt is empty; expected what the picture shall show, or a question without {prompt}"),
        ({"question": " "}, "the question is empty; expected one that is answered with yes or no"),
        ({"folder": "incomplete"}, "the folder"),
    ],
)
def test_wrong_settings_and_folders_are_explained(server, changes, words):
    folder = server.folder / "models" / "reward_models"
    if "folder" in changes:
        shutil.copytree(folder / VLM, folder / "incomplete", ignore=shutil.ignore_patterns("*.safetensors"))
    graph = Scoring(server)
    graph.node("DNOTestTower", reward=judge(graph, **changes)[0])
    try:
        assert words in server.fail(graph)
    finally:
        shutil.rmtree(folder / "incomplete", ignore_errors=True)

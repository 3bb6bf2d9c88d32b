"""The nodes of reward models inside a real ComfyUI, on tiny files of the real layouts."""

import json
import math
import shutil

import pytest
import tiny_rewards
import torch
from comfy_server.make_tiny_rewards import CYCLE_REWARD, WRITERS
from safetensors.torch import save_file
from workflows import Workflow

HPS, PICKSCORE, AESTHETIC, CLIP_L, IMAGE_REWARD, IMAGE_TOWER = (
    "HPS_v2.1_compressed.pt", "PickScore_v1.safetensors", "sac+logos+ava1-l14-linearMSE.pth",
    "clip-vit-large-patch14.safetensors", "ImageReward.pt", "image_tower.safetensors",
)  # fmt: skip
GRADIENT = {"lr": 0.03, "optimizer": "adam", "momentum": 0.9, "clip": 0.0}
SETTINGS = {"dtype": "float32", "crops": 0}
REWARDS = {
    "DNOHPSReward": {"file": HPS, "prompt": "a cat"},
    "DNOPickScoreReward": {"file": PICKSCORE, "prompt": "a cat"},
    "DNOImageReward": {"file": IMAGE_REWARD, "prompt": "a cat"},
    "DNOCycleReward": {"file": CYCLE_REWARD, "prompt": "a cat"},
    "DNOCLIPScoreReward": {"file": CLIP_L, "prompt": "a cat"},
    "DNOAestheticReward": {"file": AESTHETIC, "clip_file": CLIP_L},
    "DNOImageSimilarityReward": {"file": CLIP_L},
    "DNODirectionReward": {"file": CLIP_L, "more": "a cat", "less": "a dog"},
}


@pytest.fixture(scope="module")
def files(comfy):
    """The server, with a file for each of the nodes; those that others keep elsewhere are in those folders."""
    folders = [comfy.folder / "models" / name for name in ("reward_models", "aesthetic", "clip_vision")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    own, aesthetic, clip_vision = folders
    for kind, folder in (("hps", own), ("pickscore", own), ("aesthetic", aesthetic), ("clip_l", clip_vision)):
        tiny_rewards.write(kind, folder)
    for name in (IMAGE_REWARD, CYCLE_REWARD, "vocab.txt"):
        WRITERS[name](own)
    (own / "page.safetensors").write_text("<!doctype html>")
    return comfy


def reward_node(graph, name, **changes):
    inputs = {**SETTINGS, **REWARDS[name], **changes}
    if name == "DNOImageSimilarityReward":
        inputs["reference"] = graph.node("EmptyImage", width=50, height=40, batch_size=2, color=0x30A040)[0]
    return graph.node(name, **inputs)


def searched(server, graph, iterations=2):
    """Search with the graph's reward and its tower watched; return the history's rows and the notes on the tower."""
    watched = graph.node("DNOTestWatchedTower", reward=graph.reward)
    graph.reward = watched[0]
    solver = graph.node("DNOSolverGradient", **GRADIENT)
    ours = graph.dno(iterations=iterations, solver=solver[0], steps=3, cfg=3.0)
    graph.node("DNOTestHistory", history=ours[3])
    graph.node("DNOTestTower", reward=graph.reward, after=ours[0], loads=watched[1])
    found = {name: value[0] for output in server.run(graph).outputs.values() for name, value in output.items()}
    return found["history"]["rows"], found["tower"]


@pytest.mark.parametrize("name", REWARDS)
def test_a_search_raises_the_reward_of_every_node_and_comfyui_manages_its_network(files, name):
    graph = Workflow()
    graph.reward = reward_node(graph, name)[0]
    rows, tower = searched(files, graph)
    scores = torch.tensor([row["score"] for row in rows])
    assert scores.shape == (3, 2) and scores.isfinite().all()
    assert (scores[1:].amax(dim=0) > scores[0]).all(), scores
    assert all(math.isfinite(norm) and norm > 0 for row in rows for norm in row["gradient_norm"] or [1.0])
    assert tower["managed"] and tower["inference_weights"] == 0
    # Before each of the three scorings at least, and never alone: the search's own models must stay loaded.
    assert len(tower["loads"]) >= 3
    assert all(len(models) == 3 and "BaseModel" in models for models in tower["loads"]), tower["loads"]


def test_the_readmes_own_reward_is_climbed(comfy):
    graph = Workflow()
    graph.reward = graph.node("RednessReward", strength=2.0)[0]
    history = graph.dno(iterations=2, steps=3, cfg=3.0, solver=graph.node("DNOSolverGradient", **GRADIENT)[0])[3]
    noted = graph.node("DNOTestHistory", history=history)
    rows = comfy.run(graph).outputs[noted.id]["history"][0]["rows"]
    assert all(last > first for first, last in zip(rows[0]["score"], rows[-1]["score"], strict=True))


@pytest.mark.parametrize("name", REWARDS)
def test_a_workflow_from_windows_finds_the_files_of_every_reward(files, name):
    graph = Workflow()
    changes = {key: f"towers\\{file}" for key, file in REWARDS[name].items() if key in ("file", "clip_file")}
    folder = files.folder / "models" / "reward_models" / "towers"
    folder.mkdir(exist_ok=True)
    for file in {file.rpartition("\\")[2] for file in changes.values()}:
        shutil.copy(next((files.folder / "models").glob(f"*/{file}")), folder)
    files.get("/object_info/DNOHPSReward")  # lists the folder anew
    noted = graph.node("DNOTestTower", reward=reward_node(graph, name, **changes)[0])
    assert noted.id in files.run(graph).outputs


def test_crops_and_half_precision_can_be_chosen(files):
    graph = Workflow()
    graph.reward = reward_node(graph, "DNOHPSReward", crops=2, dtype="bfloat16")[0]
    rows, tower = searched(files, graph, iterations=1)
    assert tower["dtypes"] == ["torch.bfloat16"] and tower["reward"] == "HPS of crops"
    assert torch.tensor([row["score"] for row in rows]).isfinite().all()


@pytest.mark.parametrize("name", ["DNOCLIPScoreReward", "DNOImageReward", "DNOAestheticReward"])
def test_two_nodes_with_one_file_share_its_tower_and_another_dtype_does_not(files, name):
    graph = Workflow()
    changes = {"prompt": "a dog"}
    if name == "DNOAestheticReward":
        changes = {"clip_vision": stock_clip_vision(files, graph), "clip_file": "not here.pt"}
    made = [
        reward_node(graph, name, **changes), reward_node(graph, name, **changes, crops=1),
        reward_node(graph, name, **changes, dtype="bfloat16"),
    ]  # fmt: skip
    noted = [graph.node("DNOTestTower", reward=reward[0]).id for reward in made]
    outputs = files.run(graph).outputs
    first, second, other = (outputs[node]["tower"][0]["tower"] for node in noted)
    assert first == second != other


def test_of_several_towers_one_is_in_memory_at_a_time_where_memory_is_short(files):
    names = ("DNOHPSReward", "DNOPickScoreReward", "DNOCLIPScoreReward", "DNOImageReward")
    found = {}
    for room in (0, 2**40):
        graph = Workflow()
        rewards = {f"reward_{n}": reward_node(graph, name)[0] for n, name in enumerate(names, start=1)}
        weights = {f"{key}_{n}": value for n in range(1, 5) for key, value in (("weight", 1.0), ("watch_only", False))}
        combined = graph.node("DNOCombineRewards", mode="raw", calibrate_on=0, priors="", **rewards, **weights)
        image = graph.node("EmptyImage", width=60, height=50, batch_size=1, color=0x30A040)
        noted = graph.node("DNOTestShortMemory", reward=combined[0], image=image[0], room=room)
        found[room] = files.run(graph).outputs[noted.id]["memory"][0]
    short, ample = found.values()
    assert max(short["resident"]) == pytest.approx(max(short["sizes"]), rel=0.01)
    assert max(ample["resident"]) == pytest.approx(sum(ample["sizes"]), rel=0.01)
    assert short["scores"] == ample["scores"] and short["gradient"] == ample["gradient"] > 0
    assert sum(asked > 0 for asked in short["asked"]) == len(names), "each tower's graph needs room too"


def test_a_search_without_gradients_loads_each_network_before_it_runs(files):
    """There is room for the largest network alone; each finds itself in memory, and the scores are as ever."""
    names, found = ("DNOHPSReward", "DNOPickScoreReward"), {}
    for share in (1.3, 1e3):
        graph = Workflow()
        parts = {f"reward_{n}": reward_node(graph, name)[0] for n, name in enumerate(names, start=1)}
        weights = {f"{key}_{n}": value for n in range(1, 5) for key, value in (("weight", 1.0), ("watch_only", False))}
        graph.reward = graph.node("DNOCombineRewards", mode="raw", calibrate_on=0, priors="", **parts, **weights)[0]
        zeno = graph.node(
            "DNOSolverZeNO", mode="optimise", candidates=2, beta=0.1, weights="linear", tau=0.1, seed=0
        )
        solver = graph.node("DNOTestSolverInShortMemory", solver=zeno[0], model=graph.model, vae=graph.vae, share=share)
        ours = graph.dno(iterations=2, steps=3, cfg=3.0, solver=solver[0])
        shown = [graph.node("DNOTestShow", notes=solver[1], after=ours[0]).id]
        shown.append(graph.node("DNOTestHistory", history=ours[3]).id)
        outputs = files.run(graph).outputs
        found[share] = outputs[shown[0]]["notes"][0], outputs[shown[1]]["history"][0]["rows"]
    (short, rows), (ample, expected) = found.values()
    assert {name for name, _ in short["runs"]} == {"model", "vae", "HPS", "PickScore"}
    assert all(loaded for _, loaded in short["runs"])
    assert max(short["resident"]) <= 1.3 * max(short["sizes"]) < max(ample["resident"])
    assert [row["score"] for row in rows] == [row["score"] for row in expected]


def stock_clip_vision(files, graph):
    """The output of a tiny CLIP ViT-L/14 of ComfyUI's own; its weights are those of the file."""
    state = tiny_rewards.image_tower(tiny_rewards.hf_model("L", 4).state_dict())
    save_file(state, files.folder / "models" / "reward_models" / IMAGE_TOWER)
    width = tiny_rewards.SIZES["L"]["image"]
    config = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": tiny_rewards.LAYERS,
        "num_attention_heads": tiny_rewards.HEADS, "projection_dim": 768, "image_size": tiny_rewards.PIXELS,
        "patch_size": tiny_rewards.PATCH, "num_channels": 3, "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
    }  # fmt: skip
    return graph.node("DNOTestClipVision", file=IMAGE_TOWER, config=json.dumps(config))[0]


def test_a_stock_clip_vision_serves_the_aesthetic_reward(files):
    rows = {}
    for kind in ("file", "clip_vision"):
        graph = Workflow()
        stock = stock_clip_vision(files, graph)
        given = {"clip_vision": stock, "clip_file": "not here.pt"} if kind == "clip_vision" else {}
        graph.reward = reward_node(graph, "DNOAestheticReward", **given)[0]
        rows[kind], _ = searched(files, graph, iterations=1)
    by_file, by_stock = (torch.tensor([row["score"] for row in rows[kind]]) for kind in rows)
    # The stock loader may hold its weights in float16.
    torch.testing.assert_close(by_stock, by_file, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("DNOHPSReward", {"file": AESTHETIC}, ["is of the kind 'aesthetic head'", "expected 'clip"]),
        ("DNOHPSReward", {"file": CLIP_L}, ["1024 wide, found 768", "HPS_v2.1_compressed.pt"]),
        ("DNOImageReward", {"file": CYCLE_REWARD}, ["of kind ImageReward", "found CycleReward", "of kind CycleReward"]),
        ("DNOCycleReward", {"file": IMAGE_REWARD}, ["of kind CycleReward", "found ImageReward.pt, of kind Image"]),
        ("DNOImageReward", {"file": HPS}, ["of kind ImageReward", "found HPS_v2.1_compressed.pt, of kind CLIP"]),
        ("DNOAestheticReward", {"clip_file": HPS}, ["768 wide, found 1024"]),
        ("DNOAestheticReward", {"clip_file": "gone.pt"}, ["gone.pt", "clip-vit-large-patch14"]),
        ("DNOPickScoreReward", {"file": "page.safetensors"}, ["no weights file", "web page"]),
        ("DNOCLIPScoreReward", {"prompt": " "}, ["prompt is empty"]),
    ],
)
def test_a_wrong_file_or_prompt_is_explained(files, name, changes, words):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, name, **changes)[0])
    message = files.fail(graph)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("file", ["gone.pt", "no file in models/reward_models"])
def test_a_missing_file_is_refused_before_anything_runs(files, name, file):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, name, file=file)[0])
    with pytest.raises(ValueError, match=r"there is no file .*reward_models.* from (huggingface|github)") as refusal:
        files.run(graph)
    assert ("gone.pt" in str(refusal.value)) == (file == "gone.pt")


def test_the_lists_show_the_files_of_the_three_folders(files):
    info = files.get("/object_info/DNOHPSReward")["DNOHPSReward"]["input"]["required"]["file"]
    listed = info[1]["options"] if info[0] == "COMBO" else info[0]
    assert {HPS, AESTHETIC, CLIP_L} <= set(listed) and "vocab.txt" not in listed

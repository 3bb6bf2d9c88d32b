"""The nodes of reward models inside a real ComfyUI, on tiny files of the real layouts."""

import math

import pytest
import torch
from comfy_server.make_tiny_rewards import CYCLE_REWARD
from comfyui_dno import rewards
from reward_nodes import (
    AESTHETIC,
    CLIP_L,
    DINOV2,
    HPS,
    IMAGE_REWARD,
    REWARDS,
    SETTINGS,
    SQUEEZENET,
    reward_node,
    stock_clip_vision,
)
from scoring import Scoring
from tiny_onnx import SCORER
from workflows import Workflow

GRADIENT = {"lr": 0.03, "optimizer": "adam", "momentum": 0.9, "clip": 0.0}


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
    networks = 2 if name == "DNOFaceReward" else 1  # one that finds faces, and one that knows them
    assert all(len(models) == 2 + networks and "BaseModel" in models for models in tower["loads"]), tower["loads"]


def test_the_readmes_own_reward_is_climbed(comfy):
    graph = Workflow()
    graph.reward = graph.node("RednessReward", strength=2.0)[0]
    history = graph.dno(iterations=2, steps=3, cfg=3.0, solver=graph.node("DNOSolverGradient", **GRADIENT)[0])[3]
    noted = graph.node("DNOTestHistory", history=history)
    rows = comfy.run(graph).outputs[noted.id]["history"][0]["rows"]
    assert all(last > first for first, last in zip(rows[0]["score"], rows[-1]["score"], strict=True))


def test_settings_of_the_onnx_node_reach_its_reward(files):
    graph = Scoring(files)
    changes = {"class_index": 1, "activation": "softmax", "negative": True, "range": "0 to 255", "channels": "BGR",
               "mean": "104, 117, 123", "std": "50", "fit": "crop", "kept": 0.875, "output": "logits"}  # fmt: skip
    picture = graph.node("EmptyImage", width=50, height=40, batch_size=1, color=0x30A040)[0]
    (score,), _, _ = graph.scored(picture, reward_node(graph, "DNOONNXReward", **changes)[0])
    tower = rewards.load_tower(files.folder / "models" / "reward_models" / SCORER)
    pixels = rewards.OnnxPixels(None, "crop", 0.875, (104, 117, 123), (50,), 255, "BGR")
    reward = rewards.ONNX(tower, pixels, "logits", 1, "softmax", negative=True)
    expected = reward(torch.tensor([0x30, 0xA0, 0x40]).view(1, 3, 1, 1).expand(1, 3, 40, 50) / 255).item()
    assert score == pytest.approx(expected, abs=1e-5)


def test_the_way_of_the_dinov2_node_reaches_its_reward(files):
    scores = {}
    for by in ("subject", "places"):
        graph = Scoring(files)
        picture = graph.node("EmptyImage", width=50, height=40, batch_size=1, color=0xA03040)[0]
        (scores[by],), _, _ = graph.scored(picture, reward_node(graph, "DNODINOv2SimilarityReward", by=by)[0])
    tower = rewards.load_tower(files.folder / "models" / "clip_vision" / DINOV2)
    reference, picture = (
        torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 40, 50) / 255 for colour in ([48, 160, 64], [160, 48, 64])
    )
    for by, found in scores.items():
        expected = rewards.DINOv2Similarity(tower, reference, parity=True, by=by)(picture).item()
        assert found == pytest.approx(expected, abs=1e-4)
    assert scores["subject"] != pytest.approx(scores["places"], abs=1e-3)


def test_the_reference_of_the_lpips_node_reaches_its_reward(files):
    graph = Scoring(files)
    picture = graph.node("EmptyImage", width=50, height=40, batch_size=1, color=0xA03040)[0]
    (found,), _, _ = graph.scored(picture, reward_node(graph, "DNOLPIPSReward")[0])
    reference, image = (
        torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 40, 50) / 255 for colour in ([48, 160, 64], [160, 48, 64])
    )
    tower = rewards.load_tower(files.folder / "models" / "reward_models" / SQUEEZENET)
    assert found == pytest.approx(rewards.LPIPS(tower, reference)(image).item(), abs=1e-4)


def test_means_that_are_no_numbers_are_refused_before_anything_runs(files):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, "DNOONNXReward", mean="0.5, half, 0.5")[0])
    with pytest.raises(ValueError, match="mean is '0.5, half, 0.5'; expected numbers such as 0.485, 0.456, 0.406"):
        files.run(graph)


def test_crops_and_half_precision_can_be_chosen(files):
    graph = Workflow()
    graph.reward = reward_node(graph, "DNOHPSReward", crops=2, dtype="bfloat16")[0]
    rows, tower = searched(files, graph, iterations=1)
    assert tower["dtypes"] == ["torch.bfloat16"] and tower["reward"] == "HPS of crops"
    assert torch.tensor([row["score"] for row in rows]).isfinite().all()


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


def test_faces_are_compared_with_the_references_and_where_there_is_none_the_score_is_minus_one(files):
    graph = Scoring(files)
    white, black = (graph.picture(name, (level,) * 3)[0] for name, level in (("white", 255), ("black", 0)))
    large = [graph.node("ImageScale", image=image, width=64, height=64, upscale_method="area", crop="disabled")[0]
             for image in (white, black)]  # fmt: skip
    both = graph.node("ImageBatch", image1=large[0], image2=large[1])[0]
    face = graph.node("DNOFaceReward", **SETTINGS, **REWARDS["DNOFaceReward"], reference=large[0])
    scores, _, _ = graph.scored(both, face[0])
    assert scores == pytest.approx([1, -1], abs=1e-4)


def test_a_reference_without_a_face_is_refused_before_anything_is_sampled(files):
    graph = Workflow()
    black = graph.node("EmptyImage", width=64, height=64, batch_size=1, color=0)
    graph.reward = graph.node("DNOFaceReward", **SETTINGS, **REWARDS["DNOFaceReward"], reference=black[0])[0]
    graph.node("DNOTestHistory", history=graph.dno(iterations=1, steps=3)[3])
    run = files.run(graph, may_fail=True)
    assert "no face was found in the reference; expected a picture" in run.error["exception_message"]
    assert run.error["node_type"] == "DNOFaceReward"


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("DNOHPSReward", {"file": AESTHETIC}, ["is of the kind 'aesthetic head'", "expected 'clip"]),
        ("DNOHPSReward", {"file": CLIP_L}, ["1024 wide, found 768", "HPS_v2.1_compressed.pt"]),
        ("DNOImageReward", {"file": CYCLE_REWARD}, ["of kind ImageReward", "found CycleReward", "of kind CycleReward"]),
        ("DNOCycleReward", {"file": IMAGE_REWARD}, ["of kind CycleReward", "found ImageReward.pt, of kind Image"]),
        ("DNOPickScoreReward", {"file": CYCLE_REWARD}, ["of kind CycleReward", "renamed to PickScore_v1.safetensors"]),
        ("DNOImageReward", {"file": HPS}, ["of kind ImageReward", "found HPS_v2.1_compressed.pt, of kind CLIP"]),
        ("DNOAestheticReward", {"clip_file": HPS}, ["768 wide, found 1024"]),
        ("DNOMPSReward", {"file": HPS}, ["of kind MPS", f"found {HPS}, of kind CLIP", "renamed to MPS.safetensors"]),
        ("DNOCLIPScoreReward", {"file": DINOV2}, ["of kind CLIP", f"found {DINOV2}, of kind DINOv2"]),
        ("DNODINOv2SimilarityReward", {"file": CLIP_L}, ["of kind DINOv2", f"found {CLIP_L}, of kind CLIP"]),
        ("DNOFaceReward", {"file": CLIP_L}, ["kind FaceNet or ONNX", f"found {CLIP_L}, of kind CLIP", "vggface2"]),
        ("DNOFaceReward", {"file": SCORER}, ["scorer.onnx takes (None, 3, 32, 32)", "(B, 3, 112, 112)"]),
        ("DNOFaceReward", {"detector_file": HPS}, ["of kind MTCNN", f"found {HPS}, of kind CLIP", "onet.pt, pnet.pt"]),
        ("DNOLPIPSReward", {"file": DINOV2}, ["of kind LPIPS", f"found {DINOV2}, of kind DINOv2", "LPIPS: alexnet"]),
        ("DNOAestheticV25Reward", {"file": AESTHETIC}, ["'aesthetic head'", "expected 'aesthetic head (v2.5"]),
        ("DNOAestheticV25Reward", {"siglip_file": DINOV2}, ["of kind SigLIP", f"found {DINOV2}, of kind DINOv2"]),
        ("DNOPickScoreReward", {"file": "page.safetensors"}, ["no weights file", "web page"]),
        ("DNOCLIPScoreReward", {"prompt": " "}, ["prompt is empty"]),
        ("DNOONNXReward", {"file": HPS}, ["needs a tower of kind ONNX", "of kind CLIP"]),
        ("DNOONNXReward", {"class_index": 2}, ["class_index is 2; expected 0 to 1"]),
        ("DNOONNXReward", {"output": "score"}, ["output is 'score'; expected 0 to 0, or one of logits"]),
        ("DNOONNXReward", {"mean": "0.5, 0.5"}, ["mean has 2 numbers; expected 1, or 3 for RGB pixels"]),
        ("DNOCLIPScoreReward", {"file": SCORER}, ["of kind CLIP", "found scorer.onnx, of kind ONNX"]),
    ],
)
def test_a_wrong_file_or_prompt_is_explained(files, name, changes, words):
    graph = Workflow()
    graph.node("DNOTestTower", reward=reward_node(graph, name, **changes)[0])
    message = files.fail(graph)
    assert all(word in message for word in words), message

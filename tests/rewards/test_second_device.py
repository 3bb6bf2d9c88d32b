"""Every reward on a second device: the CPU's scores and gradients, in every precision of its networks."""

import contextlib

import pytest
import tiny_faces
import tiny_onnx
import tiny_rewards
import tiny_vlm
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.towers import load_tower
from second_device import without_float64

PROMPTS = ["a black cat", "white owls, a dog"]
PIXEL_REWARDS = {
    "brightness": rewards.Brightness(),
    "contrast": rewards.Contrast(),
    "saturation": rewards.Saturation(),
    "sharpness": rewards.Sharpness(negative=True),
    "colour": rewards.ColorTarget((0.2, 0.4, 0.9)),
    "colour of a part": rewards.ColorTarget((1.0, 0.0, 0.0), torch.eye(8)),
    "jpeg": rewards.JPEG(),
    "jpeg proxy": rewards.JPEGProxy(),
    "of crops": rewards.Jittered(rewards.Contrast(), crops=2),
    "combined": rewards.Combine([rewards.Brightness(), rewards.Contrast()], weights=[1, 2]),
}
TOWERS = ("HPS", "PickScore", "CLIPScore L", "CLIPScore H", "Aesthetic", "Similarity", "Directions")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def allowed(device):
    """Return a context in which the pretend device has no float64, as MPS."""
    return without_float64() if device.type == "pretend" else contextlib.nullcontext()


def pictures(device="cpu"):
    return tiny_rewards.pictures(height=48, width=40).to(device)


def assert_scores_as_on_the_cpu(reward_on, device, rtol=1e-3, atol=1e-4, pictures=pictures):
    """`reward_on(device)` scores and, if it can be, is differentiated on the pictures' device as the CPU's is there."""
    ours, theirs = reward_on(device), reward_on("cpu")
    with allowed(device):
        found = score(ours, pictures(device), PROMPTS)
        assert found.device == device
        torch.testing.assert_close(found.cpu(), score(theirs, pictures(), PROMPTS), rtol=rtol, atol=atol)
        if not getattr(ours, "differentiable", True):
            return
        gradient = exact(ours, pictures(device), PROMPTS)[1]
    expected = exact(theirs, pictures(), PROMPTS)[1]
    assert gradient.device == device
    assert (gradient.cpu() - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize("reward", PIXEL_REWARDS.values(), ids=PIXEL_REWARDS)
def test_rewards_of_pixels_score_as_on_the_cpu(device, reward):
    assert_scores_as_on_the_cpu(lambda place: reward, device)


@pytest.mark.parametrize("place", ["cpu", "the device"])
def test_consistency_scores_as_on_the_cpu_wherever_its_classifier_is(device, place):
    there = rewards.Consistency("black cat", device="cpu" if place == "cpu" else device)
    here = rewards.Consistency("black cat")
    assert_scores_as_on_the_cpu(lambda wanted: there if wanted == device else here, device)


@pytest.mark.parametrize("name", TOWERS)
def test_towers_score_as_on_the_cpu(device, name, files, build):
    kind = {"HPS": "hps", "PickScore": "pickscore", "CLIPScore H": "clip_h_open_clip"}.get(name, "clip_l")

    def reward_on(place):
        return build(name, tower=load_tower(files[kind], device=place))

    assert_scores_as_on_the_cpu(reward_on, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_may_be_on_another_device_than_the_network(device, dtype, files, build):
    """As with --cpu-vae: the scores and the gradient come back to where the pictures are."""
    there, here = (build("CLIPScore L", tower=load_tower(files["clip_l"], place, dtype)) for place in (device, "cpu"))
    expected = exact(here, pictures(), PROMPTS)
    found = exact(there, pictures(), PROMPTS)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.device.type == "cpu"
        assert (ours - theirs).norm() <= {torch.float32: 1e-3}.get(dtype, 0.1) * theirs.norm()


@pytest.mark.parametrize("by", ["subject", "places"])
def test_a_dinov2_scores_as_on_the_cpu(device, by, files):
    reference = tiny_rewards.pictures(seed=5)
    assert_scores_as_on_the_cpu(
        lambda place: rewards.DINOv2Similarity(load_tower(files["dinov2"], place), reference, by=by), device
    )


def test_a_siglip_scores_as_on_the_cpu(device, files):
    assert_scores_as_on_the_cpu(
        lambda place: rewards.AestheticV25(load_tower(files["siglip"], place), files["aesthetic_v25"]), device
    )


def test_an_mps_scores_as_on_the_cpu(device, files):
    assert_scores_as_on_the_cpu(lambda place: rewards.MPS(load_tower(files["mps"], place)), device, atol=1e-2)


def test_lpips_scores_as_on_the_cpu(device, files):
    reference = tiny_rewards.pictures(seed=5)
    assert_scores_as_on_the_cpu(lambda place: rewards.LPIPS(load_tower(files["squeezenet"], place), reference), device)


def test_a_text_is_read_as_on_the_cpu(device, tmp_path):
    path = tiny_onnx.write_recogniser(tmp_path / "recogniser.onnx")
    box = (0, 0.25, 1, 0.25)
    assert_scores_as_on_the_cpu(lambda place: rewards.ShownText(load_tower(path, place), "book", box), device)


@pytest.mark.parametrize("rating", [False, True])
def test_vision_language_models_score_as_on_the_cpu(device, tmp_path, rating):
    folder = tiny_vlm.write_qwen2_vl(tmp_path / "vlm", rating=rating)
    kind = rewards.HPSv3 if rating else rewards.VLMJudge
    assert_scores_as_on_the_cpu(lambda place: kind(load_tower(folder, place)), device)


@pytest.mark.parametrize("file", [tiny_faces.FACENET, *tiny_faces.ARCFACES.values()])
def test_faces_score_as_on_the_cpu(device, file, tmp_path):
    folder = tiny_faces.write_all(tmp_path)

    def reward_on(place):
        towers = (load_tower(folder / name, place) for name in (file, "onet.pt"))
        return rewards.FaceSimilarity(*towers, tiny_faces.portraits(1, seed=5))

    assert_scores_as_on_the_cpu(reward_on, device, pictures=lambda place="cpu": tiny_faces.portraits().to(place))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tower_of_every_precision_scores_as_on_the_cpu(device, dtype, files, build):
    def reward_on(place):
        return build("CLIPScore L", tower=load_tower(files["clip_l"], place, dtype))

    assert_scores_as_on_the_cpu(reward_on, device, rtol=1e-3 if dtype == torch.float32 else 5e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["ImageReward", "CycleReward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blip_towers_score_as_on_the_cpu(device, name, dtype, blip_files):
    def reward_on(place):
        return getattr(rewards, name)(load_tower(blip_files / f"{name}.pt", place, dtype))

    assert_scores_as_on_the_cpu(reward_on, device, rtol=1e-3 if dtype == torch.float32 else 0.1, atol=1e-3)


def test_a_combination_is_calibrated_by_scores_on_the_device(device):
    combined = rewards.Combine([rewards.Brightness(), rewards.Contrast()])
    with allowed(device):
        found = combined.calibrate(combined.part_scores(pictures(device)))
    expected = combined.calibrate(combined.part_scores(pictures()))
    torch.testing.assert_close(torch.tensor(found.priors), torch.tensor(expected.priors), rtol=1e-4, atol=1e-6)


def test_an_onnx_network_scores_as_on_the_cpu_with_shapes_and_tables_of_its_own(device, tmp_path):
    nodes = [
        tiny_onnx.node("Shape", ["image"], ["shape"]),
        tiny_onnx.node("Slice", ["shape", "zero", "two"], ["front"]),
        tiny_onnx.node("Concat", ["front", "sizes"], ["whole"], axis=0),
        tiny_onnx.node("Resize", ["image", "", "", "whole"], ["large"], mode="linear", antialias=1),
        tiny_onnx.node("Gather", ["large", "table"], ["picked"], axis=2),
        tiny_onnx.node("Cast", ["table"], ["numbers"], to=1),
        tiny_onnx.node("Unsqueeze", ["numbers", "axes"], ["column"]),
        tiny_onnx.node("Mul", ["picked", "column"], ["weighted"]),
        tiny_onnx.node("GlobalAveragePool", ["weighted"], ["pool"]),
        tiny_onnx.node("Flatten", ["pool"], ["logits"]),
    ]
    weights = {"zero": [0], "two": [2], "sizes": [20, 24], "table": [3, 1, 4, 1, 5], "axes": [1]}
    path = tiny_onnx.save(
        tmp_path / "tables.onnx", nodes, {name: torch.tensor(value) for name, value in weights.items()},
        [tiny_onnx.value("image", "batch", 3, 32, 32)], [tiny_onnx.value("logits", "batch", 3)], opset=18,
    )  # fmt: skip
    assert_scores_as_on_the_cpu(lambda place: rewards.ONNX(load_tower(path, place)), device)


def test_an_onnx_network_of_layers_scores_as_on_the_cpu(device, tmp_path):
    path = tiny_onnx.write_scorer(tmp_path / "scorer.onnx")
    assert_scores_as_on_the_cpu(lambda place: rewards.ONNX(load_tower(path, place)), device)

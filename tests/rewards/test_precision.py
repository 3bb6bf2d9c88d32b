"""No setting of the caller's changes a score or a gradient: autocast, the default dtype, the default device."""

import pytest
import tiny_faces
import tiny_onnx
import tiny_rewards
import torch
from blip_reference import blip
from comfyui_dno import rewards
from comfyui_dno.rewards.clip_tower import ClipTower
from comfyui_dno.rewards.facenet_tower import FaceNetTower
from comfyui_dno.rewards.mps_tower import MpsTower
from comfyui_dno.rewards.mtcnn import FaceDetector
from comfyui_dno.rewards.onnx_tower import OnnxTower
from comfyui_dno.rewards.vision_tower import VisionTower
from comfyui_dno.rewards.weights import read

REFERENCE = tiny_rewards.pictures(1, seed=5).clamp(0, 1)
PIXELS = {
    "Brightness": rewards.Brightness,
    "Contrast": rewards.Contrast,
    "Saturation": rewards.Saturation,
    "ColorTarget": rewards.ColorTarget,
    "Sharpness": rewards.Sharpness,
    "JPEG": rewards.JPEG,
    "JPEGProxy": rewards.JPEGProxy,
    "Jittered": lambda: rewards.Jittered(rewards.Contrast()),
    "Palette": lambda: rewards.Palette(REFERENCE),
    "Layout": lambda: rewards.Layout(REFERENCE),
    "Symmetry": rewards.Symmetry,
    "Combine": lambda: rewards.Combine([rewards.Contrast(), rewards.JPEGProxy()], [1, 0.5], [(0.25, 0.5), None]),
}
PROMPTS = ["black cat", "red owl"]


def towers(files, blip_files):
    """Return name -> a function that makes a reward anew, with a tower that remembers no text."""

    reference, portrait = tiny_rewards.pictures(seed=5), tiny_faces.portraits(1)

    def clip(kind):
        return ClipTower({key: value.clone() for key, value in read(files[kind]).items()})

    def vision(kind):
        return VisionTower({key: value.clone() for key, value in read(files[kind]).items()})

    def face(tower):
        onet = files.folder / "onet.pt"
        return rewards.FaceSimilarity(tower, FaceDetector(onet, read(onet)), portrait)

    def facenet():
        return FaceNetTower({key: value.clone() for key, value in read(files.folder / tiny_faces.FACENET).items()})

    return {
        "HPS": lambda: rewards.HPS(clip("hps_hf")),
        "PickScore": lambda: rewards.PickScore(clip("pickscore")),
        "CLIPScore": lambda: rewards.CLIPScore(clip("clip_l")),
        "Aesthetic": lambda: rewards.Aesthetic(clip("clip_l"), files["aesthetic"]),
        "Similarity": lambda: rewards.Similarity(clip("clip_l"), reference),
        "Directions": lambda: rewards.Directions(clip("clip_l"), "a watercolour", "a photo"),
        "DINOv2Similarity": lambda: rewards.DINOv2Similarity(vision("dinov2"), reference, by="places"),
        "AestheticV25": lambda: rewards.AestheticV25(vision("siglip"), files["aesthetic_v25"]),
        "MPS": lambda: rewards.MPS(MpsTower({key: value.clone() for key, value in read(files["mps"]).items()})),
        "FaceSimilarity": lambda: face(facenet()),
        "ONNX": lambda: rewards.ONNX(OnnxTower(files.folder / "scorer.onnx")),
        "ShownText": lambda: rewards.ShownText(OnnxTower(files.folder / "rec.onnx"), "AB"),
        "FaceSimilarity by ONNX": lambda: face(OnnxTower(files.folder / "arcface.onnx")),
        "ImageReward": lambda: rewards.ImageReward(blip(blip_files / "ImageReward.pt")),
        "Consistency": rewards.Consistency,
    }


EVERY = (*PIXELS, *towers(None, None))


@pytest.fixture(scope="module")
def makers(files, blip_files):
    tiny_faces.write_all(files.folder)
    tiny_onnx.write_scorer(files.folder / "scorer.onnx")
    tiny_onnx.write_recogniser(files.folder / "rec.onnx")
    return PIXELS | towers(files, blip_files)


def judged(make, images):
    """Return the scores of a new reward, and the gradient, outside of autocast, of what was computed inside."""
    reward, images = make(), images.clone().requires_grad_()
    scores = reward(images, PROMPTS)
    with torch.autocast("cpu", enabled=False):
        gradient = torch.autograd.grad(scores.sum(), images)[0] if scores.requires_grad else images
    return scores.detach(), gradient


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_autocast_around_it_changes_no_bit(makers, name, dtype):
    images = tiny_rewards.pictures()
    expected = judged(makers[name], images)
    with torch.autocast("cpu", dtype):
        found = judged(makers[name], images)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("name", EVERY)
def test_the_default_dtype_changes_no_bit(makers, name):
    images = tiny_rewards.pictures()
    expected = judged(makers[name], images)
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = judged(makers[name], images)
    finally:
        torch.set_default_dtype(usual)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    "name",
    [
        *PIXELS, "HPS", "Aesthetic", "Directions", "Similarity", "DINOv2Similarity", "AestheticV25", "MPS",
        "FaceSimilarity", "FaceSimilarity by ONNX", "ONNX", "ShownText",
    ],
)  # fmt: skip
def test_nothing_is_made_on_the_default_device(makers, name):
    """On the meta device there are no numbers."""
    images = tiny_rewards.pictures()
    expected = judged(makers[name], images)
    with torch.device("meta"):
        found = judged(makers[name], images)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])

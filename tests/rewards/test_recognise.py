"""What a file is, by its name and its header alone; the files have the layouts of the real ones."""

import json
import shutil
import zipfile

import pytest
import tiny_faces
import tiny_onnx
import tiny_rewards
import torch
from comfyui_dno.rewards import recognise, weights
from comfyui_dno.rewards.recognise import LIKELY, OTHER, POSSIBLE, likeness, tensors_of

KEPT_AS = {  # file of the fixtures -> what it may be; the first is a pickle, whose header does not tell its width
    "hps": ("HPS", "PickScore", "CLIP ViT-L/14"), "pickscore": ("HPS", "PickScore"), "clip_h": ("HPS", "PickScore"),
    "clip_l": ("CLIP ViT-L/14",), "aesthetic": ("Aesthetic",), "ImageReward.pt": ("ImageReward",),
    "CycleReward.pt": ("CycleReward",), "dinov2": ("DINOv2",), "dinov2_meta": ("DINOv2",), "siglip": ("SigLIP",),
    "aesthetic_v25": ("Aesthetic V2.5",), "mps": ("MPS",), tiny_faces.FACENET: ("Face",), "onet.pt": ("MTCNN",),
    "squeezenet": ("LPIPS",),
}  # fmt: skip
SOURCES = tuple(recognise.KINDS)


@pytest.fixture(scope="module")
def all_files(files, blip_files, tmp_path_factory):
    faces = tiny_faces.write_all(tmp_path_factory.mktemp("faces"))
    folders = {tiny_faces.FACENET: faces, "onet.pt": faces}
    return {name: folders.get(name, blip_files) / name if "." in name else files[name] for name in KEPT_AS}


@pytest.mark.parametrize("file", KEPT_AS)
def test_a_file_whose_name_says_nothing_may_be_whatever_has_its_tensors(all_files, file):
    found = {source: likeness(all_files[file], "model.safetensors", source) for source in SOURCES}
    assert found == {source: POSSIBLE if source in KEPT_AS[file] else OTHER for source in SOURCES}


@pytest.mark.parametrize("name, source, expected", [
    ("HPS_v2.1_compressed.pt", "HPS", LIKELY), ("PickScore_v1/model.safetensors", "PickScore", LIKELY),
    ("PickScore_v1/model.safetensors", "HPS", OTHER), ("CLIP-ViT-H-14.safetensors", "HPS", OTHER),
])
def test_of_files_with_the_same_tensors_the_names_decide(all_files, name, source, expected):
    assert likeness(all_files["hps"], name, source) == expected


@pytest.mark.parametrize("kind, name, source", [
    ("dinov2", "dinov2-base/model.safetensors", "DINOv2"), ("dinov2_meta", "dinov2_vitb14_pretrain.pth", "DINOv2"),
    ("siglip", "siglip-so400m-patch14-384/model.safetensors", "SigLIP"),
    ("siglip", "sigclip_vision_patch14_384.safetensors", "SigLIP"),
    ("aesthetic_v25", "aesthetic_predictor_v2_5.pth", "Aesthetic V2.5"),
    ("mps", "mpsv1/model.safetensors", "MPS"), ("onet.pt", "mtcnn/onet.pt", "MTCNN"),
    (tiny_faces.FACENET, "20180408-102900-casia-webface.pt", "Face"), (tiny_faces.FACENET, tiny_faces.FACENET, "Face"),
    ("dinov2", "huggingface/dinov2-base/model.safetensors", "DINOv2"),
    ("squeezenet", "squeezenet1_1-b8a52dc0.pth", "LPIPS"),
])
def test_files_under_their_usual_names_are_likely_what_they_are(all_files, kind, name, source):
    assert likeness(all_files[kind], name, source) == LIKELY


def test_a_siglip_of_another_width_is_not_the_one_that_is_wanted(tmp_path):
    tiny_rewards.save(tiny_rewards.siglip_model(width=128).state_dict(), path := tmp_path / "siglip.safetensors")
    assert likeness(path, path.name, "SigLIP") == OTHER


@pytest.mark.parametrize("file, source, expected", [
    ("a/scorer.ONNX", "ONNX", LIKELY), ("hps.onnx", "HPS", OTHER), ("model.safetensors", "ONNX", OTHER),
    ("scorer.onnx", "Face", OTHER), ("buffalo_l/w600k_r50.onnx", "Face", LIKELY), ("ArcFace.onnx", "Face", LIKELY),
    ("face_recognition_sface_2021dec.onnx", "Face", LIKELY), ("w600k_r50.onnx", "MTCNN", OTHER),
])
def test_an_onnx_file_is_told_by_its_ending_and_one_that_knows_faces_by_its_name(file, source, expected):
    assert likeness(file, file, source) == expected


def test_a_recogniser_of_text_is_told_by_the_characters_that_it_lists(tmp_path):
    reads, scores = tiny_onnx.write_recogniser(tmp_path / "a.onnx"), tiny_onnx.write_scorer(tmp_path / "b.onnx")
    found = [[likeness(path, path.name, source) for source in ("Text", "ONNX", "HPS")] for path in (reads, scores)]
    assert found == [[LIKELY, POSSIBLE, OTHER], [OTHER, LIKELY, OTHER]]
    (cut := tmp_path / "cut.onnx").write_bytes(reads.read_bytes()[:-20])
    assert likeness(cut, cut.name, "Text") == OTHER and likeness("no.safetensors", "no.safetensors", "Text") == OTHER


def test_a_name_does_not_make_another_kind_of_file_the_one_that_is_wanted(all_files):
    assert likeness(all_files["aesthetic"], "HPS_v2.1_compressed.pt", "HPS") == OTHER


@pytest.mark.parametrize("file", KEPT_AS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_header_has_the_names_that_reading_the_file_gives_in_every_format(all_files, tmp_path, file, prefix):
    expected = weights.read(all_files[file])
    state = {prefix + name: value for name, value in expected.items()}
    for format_ in (True, False):  # torch.save's, and its older one
        path = tmp_path / f"{format_}.pt"
        torch.save(state, path, _use_new_zipfile_serialization=format_)
        assert set(expected) <= set(tensors_of(path))
    assert set(expected) <= set(tensors_of(all_files[file]))


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", b"\x80\x02}", b"PK\x03\x04 cut off", b"\xff" * 8 + b"{"])
def test_what_is_no_weights_file_is_nothing(tmp_path, content):
    (path := tmp_path / "hps.pt").write_bytes(content)
    assert tensors_of(path) == {} and likeness(path, "hps.pt", "HPS") == OTHER
    assert tensors_of(tmp_path / "gone.pt") == {}


def test_files_of_other_packs_in_the_same_folder_are_nothing(tmp_path):
    """Whatever lists the files for a node asks each: an error here would take all nodes after it away."""
    with zipfile.ZipFile(notes := tmp_path / "notes.ckpt", "w") as archive:
        archive.writestr("read me", "no pickle in here")
    header = json.dumps({"weight": [1, 2]}).encode()
    (odd := tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), exported := tmp_path / "m.pt2")
    for path in (notes, odd, exported):
        assert tensors_of(path) == {} and likeness(path, path.name, "HPS") == OTHER


def test_another_file_under_the_same_name_is_seen(all_files, tmp_path):
    shutil.copy(all_files["hps"], path := tmp_path / "model.safetensors")
    first = likeness(path, path.name, "HPS")
    shutil.copy(all_files["aesthetic"], path)
    assert (first, likeness(path, path.name, "HPS")) == (POSSIBLE, OTHER)

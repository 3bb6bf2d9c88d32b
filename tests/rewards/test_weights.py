"""Files of reward weights: every layout is read and recognised, and whatever else is given is told what it is."""

import os
import pickle
import re
import traceback
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_rewards
import torch
from comfyui_dno.rewards import weights
from safetensors.torch import save_file

LAYOUTS = {
    "hps": "clip (open_clip)",
    "hps_port": "clip (open_clip)",
    "hps_hf": "clip (HF)",
    "pickscore_bin": "clip (HF)",
    "clip_l": "clip (HF)",
    "aesthetic": "aesthetic head",
    "aesthetic_port": "aesthetic head",
    "dinov2": "DINOv2 (HF)",
    "dinov2_meta": "DINOv2 (Meta)",
    "siglip": "SigLIP",
    "mps": "MPS",
    "aesthetic_v25": "aesthetic head (v2.5, for SigLIP)",
}

reads_pickles = pytest.mark.skipif(
    not tiny_rewards.PICKLES_ARE_READ, reason="before PyTorch 2.6 every pickle is refused, whatever it holds"
)


class Bomb:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {kind: tiny_rewards.write(kind, folder) for kind in LAYOUTS}


@pytest.fixture
def small(tmp_path):
    """A state dict of two tensors, and where to save it."""
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, tmp_path / "small.pt"


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_read_and_recognised(files, kind):
    state = weights.read(files[kind])
    assert weights.kind_of(state) == LAYOUTS[kind]
    assert all(value.device.type == "cpu" and not value.requires_grad for value in state.values())
    assert weights.read_as(files[kind], LAYOUTS[kind]).keys() == state.keys()


def test_the_wrapped_file_and_its_port_hold_the_same(files):
    wrapped, port = weights.read(files["hps"]), weights.read(files["hps_port"])
    assert wrapped.keys() == port.keys()
    for key, value in wrapped.items():
        assert torch.equal(value, port[key])


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_are_taken_off_only_where_every_name_has_them(small, prefix):
    state, path = small
    tiny_rewards.save(tiny_rewards.prefixed(state, prefix), path)
    assert weights.read(path).keys() == state.keys()
    tiny_rewards.save(tiny_rewards.prefixed(state, prefix) | {"c": torch.ones(1)}, path)
    assert weights.read(path).keys() == {prefix + key for key in state} | {"c"}


def test_both_layouts_come_under_transformers_names():
    expected = tiny_rewards.hf_model("H").state_dict()
    for state in (tiny_rewards.open_clip_model("H").state_dict(), tiny_rewards.with_position_ids(expected)):
        found = weights.clip_to_hf(state)
        assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}


def test_safetensors_are_known_whatever_the_length_they_begin_with(small, tmp_path):
    path = tmp_path / "small.bin"  # torch.load goes by the suffix
    lengths = set()
    for padding in range(0, 256, 8):
        save_file(small[0], path, metadata={"padding": "x" * padding})
        lengths.add(path.read_bytes()[0])
        assert weights.read(path).keys() == small[0].keys()
    assert 0x80 in lengths  # how pickles begin


@reads_pickles
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path, legacy):
    path, trace = tmp_path / "weights.pt", tmp_path / "it_ran"
    contents = {"state_dict": {"a": torch.ones(2)}, "extra": Bomb(trace)}
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"weights\.pt holds the Python object \w+\.mkdir; expected tensors alone"):
        weights.read(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # it would have run


@reads_pickles
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"a": bomb}], ids=["bare", "in a dict"])
def test_a_bare_pickle_is_refused_in_our_own_words_and_runs_nothing(tmp_path, wrap, protocol):
    """PyTorch's words advise to switch `weights_only` off; neither the message nor its cause repeats them."""
    path, trace = tmp_path / "weights.safetensors", tmp_path / "it_ran"
    path.write_bytes(pickle.dumps(wrap(Bomb(trace)), protocol))
    with pytest.raises(ValueError, match=r"weights\.safetensors .*expected (tensors alone|safetensors)") as refusal:
        weights.read(path)
    assert not trace.exists()
    assert "weights_only" not in "".join(traceback.format_exception(refusal.value)).split("ValueError")[-1]
    assert refusal.value.__cause__ is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("value", [[1.0, 2.0], {1, 2}, bytearray(b"abc"), np.ones(2), torch.ones(2)], ids=repr)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_no_pickles_message_advises_to_trust_it(tmp_path, value, protocol):
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"a": value}, protocol))
    with pytest.raises(ValueError) as refusal:
        weights.read(path)
    assert "weights_only" not in str(refusal.value) and "weights.pt" in str(refusal.value)


@reads_pickles
def test_training_checkpoints_are_sent_to_the_compressed_file(small):
    state, path = small
    torch.save({"state_dict": state, "loss": np.float64(0.5)}, path)
    with pytest.raises(ValueError, match=r"take HPS_v2_compressed\.pt"):
        weights.read(path)


def test_before_pytorch_2_6_no_pickle_is_read(small, monkeypatch):
    state, path = small
    torch.save(state, path)
    save_file(state, path.with_suffix(".safetensors"))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cpu"))
    with pytest.raises(ValueError, match="before PyTorch 2.6 one can run code .* found PyTorch 2.5.1.cpu. Update"):
        weights.read(path)
    assert weights.read(path.with_suffix(".safetensors")).keys() == state.keys()


@reads_pickles
def test_tensors_without_names_are_no_weights(small):
    state, path = small
    torch.save({1: state["a"]}, path)
    with pytest.raises(ValueError, match="small.pt holds no named tensors; found a dict"):
        weights.read(path)


def test_torchscript_is_explained(tmp_path):
    path = tmp_path / "ViT-L-14.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"ViT-L-14/{name}", b"")
    with pytest.raises(ValueError, match="TorchScript archive.*huggingface.co/openai/clip-vit-large-patch14"):
        weights.read(path)


@pytest.mark.parametrize("kind", ["hps", "hps_port"])
@pytest.mark.parametrize("keep", [0.999, 0.5, 40])
def test_truncated_files_are_called_so(files, tmp_path, kind, keep):
    data = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)} is damaged or incomplete .*Download it again"):
        weights.read(path)


@reads_pickles
def test_truncated_files_of_torchs_first_format_are_called_so(small):
    state, path = small
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert torch.equal(weights.read(path)["a"], state["a"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged or incomplete"):
        weights.read(path)


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_weights_file_is_called_so(tmp_path, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"model.safetensors is no weights file.*found {len(data)} bytes"):
        weights.read(path)


@reads_pickles
@pytest.mark.parametrize("contents", [torch.ones(2), [torch.ones(2)], {}, {"epoch": 3}, {"state_dict": {"epoch": 3}}])
def test_files_without_named_tensors_are_refused(tmp_path, contents):
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt holds no named tensors"):
        weights.read(tmp_path / "other.pt")


def test_missing_files_are_told_where_to_get_and_where_to_put():
    with pytest.raises(FileNotFoundError) as error:
        weights.read("nowhere/HPS.pt")
    for words in ("HPS.pt", "ComfyUI/models/reward_models", "HPS_v2.1_compressed.pt from huggingface.co/xswu/HPSv2"):
        assert words in str(error.value)
    message = str(weights.missing("x.pt", "PickScore", "D:/models/reward_models"))
    assert "D:/models/reward_models" in message and "yuvalkirstain/PickScore_v1" in message and "HPSv2" not in message


def test_wrong_files_are_told_what_they_are(files, small):
    with pytest.raises(ValueError, match=r"is of the kind 'clip \(HF\)'; expected 'ImageReward'"):
        weights.read_as(files["clip_l"], "ImageReward")
    state, path = small
    tiny_rewards.save(state, path)
    with pytest.raises(ValueError, match=r"small\.pt is of no known kind.*found 2 tensors such as a, b\."):
        weights.read_as(path, "ImageReward")


@pytest.mark.parametrize("suffix", [pytest.param("pt", marks=reads_pickles), "safetensors"])
def test_weights_read_in_inference_mode_can_take_part_in_gradients(small, tmp_path, suffix):
    path = tmp_path / f"small.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(small[0], path)
    with torch.inference_mode():
        state = weights.read(path)
    x = torch.ones(2, 3, requires_grad=True)
    (x * state["a"]).sum().backward()
    assert torch.equal(x.grad, small[0]["a"])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells how much memory is the process's own")
@pytest.mark.parametrize("suffix", [pytest.param("pt", marks=reads_pickles), "safetensors"])
def test_reading_maps_the_file_and_copies_nothing(tmp_path, suffix):
    path = tmp_path / f"large.{suffix}"
    state = {str(index): torch.rand(2**22) for index in range(8)}
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    del state
    before = anonymous_megabytes()
    state = weights.read(path)
    assert sum(value.sum() for value in state.values()) > 0
    assert anonymous_megabytes() - before < 40  # of 128
    assert len(state) == 8


def anonymous_megabytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024

"""ONNX files are read as the onnx package reads them, and what is none of them is refused in one way."""

import time

import pytest
import tiny_onnx
import torch
from comfyui_dno.rewards import onnx_file

NO_TEXT = b":\x07*\x05@\xff\xff\xff\x7f"
"""A graph with a weight whose name, a text, is a number of 28 bits."""


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


@pytest.fixture
def scorer(tmp_path):
    return tiny_onnx.write_scorer(tmp_path / "scorer.onnx")


def model_of(onnx, nodes, weights=(), opset=17):
    graph = onnx.helper.make_graph(nodes, "graph", [], [], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def test_onnx_itself_accepts_the_tiny_files(onnx, scorer):
    onnx.checker.check_model(onnx.load(scorer), full_check=True)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"])
def test_weights_of_every_type_are_what_onnx_says(onnx, tmp_path, kind, raw):
    import numpy as np

    values = np.array([[0, 1, 100], [3, 4, 5]]).astype(kind)
    code = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    content = values.tobytes() if raw else values.flatten().tolist()
    weight = onnx.helper.make_tensor("weight", code, values.shape, content, raw=raw)
    path = tmp_path / "model.onnx"
    onnx.save(model_of(onnx, [onnx.helper.make_node("Identity", ["weight"], ["y"])], [weight]), path)
    found = onnx_file.read(path, torch.float64).weights["weight"]
    assert torch.equal(found, torch.tensor(onnx.numpy_helper.to_array(weight)).to(found.dtype))
    assert found.dtype == (torch.float64 if "float" in kind else getattr(torch, kind))


def test_attributes_of_every_type_are_what_onnx_says(onnx, tmp_path):
    said = {"i": -3, "f": 0.5, "s": "text", "ints": [1, -2, 1 << 40], "floats": [0.25, -1.0], "strings": ["a", "b"]}
    path = tmp_path / "model.onnx"
    onnx.save(model_of(onnx, [onnx.helper.make_node("Identity", ["x"], ["y"], "mine", **said)]), path)
    (node,) = onnx_file.read(path).nodes
    assert (node.op, node.name, node.inputs, node.outputs) == ("Identity", "mine", ["x"], ["y"])
    assert {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in node.attributes.items()} == said


def test_weights_beside_the_file_are_read_from_there(onnx, tmp_path):
    import numpy as np

    values = np.arange(2000, dtype=np.float32)
    weights = [onnx.numpy_helper.from_array(values + at, f"weight {at}") for at in range(2)]
    model, path = model_of(onnx, [onnx.helper.make_node("Identity", ["x"], ["y"])], weights), tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    found = onnx_file.read(path).weights
    assert all(torch.equal(found[f"weight {at}"], torch.tensor(values + at)) for at in range(2))
    (tmp_path / "model.data").unlink()
    with pytest.raises(FileNotFoundError, match="keeps its weights in model.data; put that file beside it"):
        onnx_file.read(path)


def test_weights_outside_the_folder_are_refused(onnx, tmp_path):
    weight = onnx.TensorProto(name="weight", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret.bin")
    path = tmp_path / "model.onnx"
    path.write_bytes(model_of(onnx, [onnx.helper.make_node("Identity", ["x"], ["y"])], [weight]).SerializeToString())
    with pytest.raises(ValueError, match=r"in '../secret.bin'; expected a file beside the ONNX file"):
        onnx_file.read(path)


def test_a_file_that_is_cut_off_anywhere_is_refused_as_damaged(scorer):
    whole = scorer.read_bytes()
    for length in range(1, len(whole) - 6, 7):  # the last six bytes are the operator set's, and it may end before
        scorer.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="scorer.onnx is no whole ONNX file"):
            onnx_file.read(scorer)


@pytest.mark.parametrize(
    "content", [b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\n", bytes(40), b"", NO_TEXT]
)
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "page.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="page.onnx is no whole ONNX file.*download the file again"):
        onnx_file.read(path)


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80])
def test_of_a_large_file_of_nothing_its_metadata_are_none_at_once(tmp_path, byte):
    """As a download that reserves its room first; lists of nodes look into every file of the folder."""
    path = tmp_path / "reserved.onnx"
    path.write_bytes(bytes([byte]) * 2**25)
    started = time.process_time()
    assert onnx_file.metadata_of(path) == {}
    assert time.process_time() - started < 0.5


def test_metadata_are_read_once_and_anew_where_the_file_has_changed(tmp_path, monkeypatch):
    path = tiny_onnx.write_recogniser(tmp_path / "text.onnx")
    expected = onnx_file.metadata_of(path)
    assert expected["character"]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "_mapped", lambda path: 1 / 0)
        assert onnx_file.metadata_of(path) == expected
    tiny_onnx.write_scorer(path)
    assert "character" not in onnx_file.metadata_of(path)


def test_operators_of_an_old_set_are_refused(tmp_path):
    path = tiny_onnx.save(tmp_path / "old.onnx", tiny_onnx.scorer_nodes(), {}, [], [], opset=6)
    with pytest.raises(ValueError, match="operator set 6; expected 7 or later"):
        onnx_file.read(path)


def test_a_missing_file_says_where_one_is_to_be_had(tmp_path):
    with pytest.raises(FileNotFoundError, match="Download open_nsfw.onnx"):
        onnx_file.read(tmp_path / "none.onnx")

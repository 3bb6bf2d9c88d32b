"""Every operator against ONNX's own test cases, which come with the onnx package: its numbers, by NumPy."""

import importlib.util
import re
import warnings

import numpy
import pytest
import tiny_onnx
import torch
from comfyui_dno.rewards import onnx_file
from comfyui_dno.rewards.onnx_operators import NUMBERS, OPERATORS
from comfyui_dno.rewards.onnx_tower import Network

NOT_OURS = {
    "numbers that PyTorch or this pack has no type for": "uint(16|32|64)|bfloat|bf16|fp16|FLOAT|INT|string|_float16",
    "operators in training": "training|batchnorm_.*training_mode",
    "an opset before 7": "^test_not_[234]d$",
    "an empty set, whose largest number is infinite": "reduce_(max|min)_empty_set",
    "what no image network was seen to use, refused with a message": (
        "select_last_index|tf_crop_and_resize|averagepool_.*dilations|with_argmax|scatternd_(add|mul|max|min)"
        "|gathernd_example_int32_batch_dim1"
    ),
    "files without inputs, or with such of other types": "^test_constant$",
    "an operator once more, made of others": "_expanded",
    "expected values that were written down with four digits": "gridsample_bicubic$|ceil_last_window_starts_on_pad",
}
"""Reason -> names of ONNX's cases that are left out for it."""


WITHOUT_CASE = {"Cast", "CastLike", "Constant", "Not"}
"""Those of which no case is left; they are tested together below."""


@pytest.fixture(scope="session")
def cases():
    """Operator -> ONNX's cases of it."""
    node = pytest.importorskip("onnx.backend.test.case.node")
    left_out = re.compile("|".join(NOT_OURS.values()))
    found = {op: [] for op in OPERATORS}
    with warnings.catch_warnings(action="ignore"):
        for case in node.collect_testcases(None):
            ops = {one.op_type for one in case.model.graph.node}
            if ops <= OPERATORS.keys() and not left_out.search(case.name):
                for op in ops:
                    found[op].append(case)
    return found


def tensors(arrays):
    found = [torch.tensor(numpy.array(array)) for array in arrays]
    return [one.double() if one.is_floating_point() else one for one in found]


def check(case, path):
    path.write_bytes(case.model.SerializeToString())
    network = Network(onnx_file.read(path, torch.float64), case.name)
    for inputs, outputs in case.data_sets:
        found = network(*tensors(inputs))
        for mine, theirs in zip(found, tensors(outputs), strict=True):
            # Theirs are rounded to float32, and made from inputs so rounded.
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True, msg=lambda m: case.name + m)


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_an_operator_gives_what_onnx_expects(op, cases, tmp_path):
    assert cases[op] or op in WITHOUT_CASE
    for case in cases[op]:
        check(case, tmp_path / "case.onnx")


def test_casts_constants_and_not_give_what_onnxs_own_evaluator_gives(tmp_path):
    onnx = pytest.importorskip("onnx")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    node, types = onnx.helper.make_node, onnx.TensorProto
    nodes = [
        node("Constant", [], ["half"], value_floats=[0.5, 0.0, -1.5]),
        node("Add", ["x", "half"], ["sum"]),
        node("Cast", ["sum"], ["whole"], to=types.INT64),
        node("Cast", ["sum"], ["truth"], to=types.BOOL),
        node("Not", ["truth"], ["untruth"]),
        node("Cast", ["untruth"], ["back"], to=types.FLOAT),
        node("CastLike", ["whole", "x"], ["like"]),
    ]
    outputs = ["whole", "truth", "untruth", "back", "like"]
    inputs = [onnx.helper.make_tensor_value_info("x", types.FLOAT, [3])]
    graph = onnx.helper.make_graph(
        nodes, "casts", inputs, [onnx.helper.make_empty_tensor_value_info(name) for name in outputs]
    )
    path, x = tmp_path / "casts.onnx", torch.tensor([1.75, 0.0, -2.0])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    found = Network(onnx_file.read(path), "casts")(x)
    for mine, theirs in zip(found, evaluator(str(path)).run(None, {"x": x.numpy()}), strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("opset, sums_over", [(12, (1, 2)), (13, (1,))])
def test_before_operator_set_13_softmax_is_over_all_axes_from_the_one_that_is_named(tmp_path, opset, sums_over):
    nodes, inputs = [tiny_onnx.node("Softmax", ["x"], ["y"], axis=1)], [tiny_onnx.value("x", 2, 3, 4)]
    path = tiny_onnx.save(tmp_path / "softmax.onnx", nodes, {}, inputs, [tiny_onnx.value("y", 2, 3, 4)], opset)
    (found,) = Network(onnx_file.read(path), "softmax")(torch.rand(2, 3, 4))
    sums = found.sum(sums_over)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def alone(tmp_path, nodes, weights, sizes, opset=17):
    """Return the network, in float32, of some nodes from "x" to "y"."""
    inputs = [tiny_onnx.value("x", *sizes)]
    outputs = [tiny_onnx.value("y", *(f"side {k}" for k, _ in enumerate(sizes)))]
    return Network(onnx_file.read(tiny_onnx.save(tmp_path / "one.onnx", nodes, weights, inputs, outputs, opset)), "one")


@pytest.mark.parametrize(("length", "scale", "expected"), [
    (3, 5 / 3, 5), (3, 7 / 3, 7), (5, 1.4, 7), (10, 2.3, 23), (3, 4 / 3, 4), (10, 1.1, 11), (7, 1.45, 10),
])
@pytest.mark.parametrize("opset", [9, 10, 17])
def test_a_scaled_length_is_onnxruntimes_which_multiplies_in_float32(tmp_path, length, scale, expected, opset):
    """What onnxruntime 1.23 gives; where it can be imported it is asked."""
    scales = torch.tensor([1.0, 1.0, 1.0, scale])
    if opset == 17:
        nodes = [tiny_onnx.node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    else:
        nodes = [tiny_onnx.node("Upsample" if opset == 9 else "Resize", ["x", "scales"], ["y"], mode="nearest")]
    network = alone(tmp_path, nodes, {"scales": scales}, (1, 1, 1, length), opset)
    x = torch.arange(float(length)).view(1, 1, 1, length)
    (found,) = network(x)
    assert found.shape[3] == expected
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
        assert torch.equal(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), found)


@pytest.mark.parametrize("nodes", [
    [tiny_onnx.node("ReduceL2", ["x"], ["y"], axes=[1])], [tiny_onnx.node("LpNormalization", ["x"], ["y"], axis=1)],
    [tiny_onnx.node("LpNormalization", ["x"], ["y"], axis=1, p=1)],
])
def test_a_vector_of_zeros_has_a_length_whose_gradient_is_finite(tmp_path, nodes):
    network = alone(tmp_path, nodes, {}, ("batch", 3), opset=13)
    x = torch.zeros((2, 3))
    x[1] = torch.tensor([3.0, 0.0, 4.0])
    x.requires_grad_()
    (found,) = network(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert not found[0].any() and gradient.isfinite().all()


def test_the_bounds_of_a_clip_may_be_lists_of_one_number(tmp_path):
    bounds = {"least": torch.tensor([-1.0]), "greatest": torch.tensor([0.5])}
    network = alone(tmp_path, [tiny_onnx.node("Clip", ["x", *bounds], ["y"])], bounds, (3,))
    assert network(torch.tensor([-2.0, 0.0, 2.0]))[0].tolist() == [-1, 0, 0.5]


def test_a_cast_to_what_pytorch_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one.onnx casts to ONNX's type 12; expected a cast to one of float32, uint8"):
        alone(tmp_path, [tiny_onnx.node("Cast", ["x"], ["y"], to=12)], {}, (3,))


def test_what_is_read_as_numbers_is_an_implemented_operators():
    assert NUMBERS.keys() <= OPERATORS.keys()

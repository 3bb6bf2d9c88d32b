"""The ONNX reward: a network of PyTorch's own as the reference, Pillow for the pixels, differences for the gradient."""

import numpy
import pytest
import tiny_onnx
import tiny_rewards
import torch
from comfyui_dno import core, rewards
from comfyui_dno.rewards import onnx_file
from PIL import Image
from torch.nn import functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def scorer(tmp_path):
    return tiny_onnx.write_scorer(tmp_path / "scorer.onnx")


@pytest.fixture
def images():
    return tiny_rewards.pictures(seed=3)


def saved(path, nodes, weights=None, inputs=None, outputs=None):
    """Load a file with these nodes, of pictures of 32 x 32."""
    inputs = inputs or [tiny_onnx.value("image", "batch", 3, 32, 32)]
    outputs = outputs or [tiny_onnx.value("y", "batch", 2)]
    return rewards.load_tower(tiny_onnx.save(path / "other.onnx", nodes, weights or {}, inputs, outputs))


def reference(images):
    """What PyTorch's own layers give for the scorer's pixels."""
    small = F.interpolate(images.clamp(0, 1), size=(32, 32), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return tiny_onnx.network()((small - mean) / std)


@pytest.mark.parametrize(
    "activation, expected",
    [
        ("none", lambda logits: logits[:, 1]),
        ("softmax", lambda logits: logits.softmax(dim=1)[:, 1]),
        ("sigmoid", lambda logits: logits[:, 1].sigmoid()),
    ],
)
def test_the_score_is_what_the_network_in_pytorch_gives(scorer, images, activation, expected):
    reward = rewards.ONNX(rewards.load_tower(scorer), class_index=1, activation=activation)
    # Float32 sums in another order: some of its units in the last place.
    torch.testing.assert_close(reward(images), expected(reference(images)), rtol=1e-5, atol=1e-6)


def test_a_negative_reward_is_the_opposite_and_says_so_in_its_name(scorer, images):
    tower = rewards.load_tower(scorer)
    reward, negative = rewards.ONNX(tower), rewards.ONNX(tower, negative=True)
    assert torch.equal(negative(images), -reward(images))
    assert (reward.name, negative.name) == ("scorer", "not scorer")


def test_the_mean_rating_weighs_each_rating_by_its_probability(scorer, images):
    reward = rewards.ONNX(rewards.load_tower(scorer), class_index=None, activation="softmax")
    probabilities = reference(images).softmax(dim=1)
    torch.testing.assert_close(reward(images), probabilities[:, 0] + 2 * probabilities[:, 1], rtol=1e-5, atol=1e-6)


def test_the_logarithm_has_a_gradient_where_a_probability_has_next_to_none(tmp_path, images):
    nodes = [
        tiny_onnx.node("GlobalAveragePool", ["image"], ["pool"]),
        tiny_onnx.node("Flatten", ["pool"], ["flat"]),
        tiny_onnx.node("Mul", ["flat", "scale"], ["logits"]),
        tiny_onnx.node("Softmax", ["logits"], ["y"], axis=1),
    ]
    tower = saved(
        tmp_path, nodes, {"scale": torch.tensor([1.0, 80.0, 1.0])}, outputs=[tiny_onnx.value("y", "batch", 3)]
    )
    pixels = rewards.OnnxPixels(mean=(0,), std=(1,))
    slopes = [core.scoring.exact(rewards.ONNX(tower, pixels, activation=name), images)[1].abs().amax() for name in
              ("none", "log")]  # fmt: skip
    assert slopes[0] < 1e-12 and slopes[1] > 1e-4


def test_the_gradient_is_that_of_differences(scorer, images):
    reward = rewards.ONNX(rewards.load_tower(scorer, dtype=torch.float64), class_index=1)
    images = images.double().clamp(0.1, 0.9)
    _, gradient = core.scoring.exact(reward, images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5  # the error of central differences is about its square
    differences = (reward(images + step * direction) - reward(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(dim=(1, 2, 3)), differences, rtol=1e-6, atol=1e-9)


def test_ten_steps_along_the_gradient_raise_each_pictures_score(scorer, images):
    reward = rewards.ONNX(rewards.load_tower(scorer))
    before, found = reward(images), images
    for _ in range(10):
        found = found + 0.05 * torch.sign(core.scoring.exact(reward, found)[1])
    assert (reward(found) > before + 0.01).all()


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (20, 30)])
def test_pixels_are_those_of_pillow(size):
    levels = numpy.random.default_rng(0).integers(0, 256, (*size, 3), dtype=numpy.uint8)
    images = torch.tensor(levels).movedim(-1, 0)[None] / 255
    found = rewards.OnnxPixels(size=(28, 28), kept=0.875, mean=(0,), std=(1,), scale=255)(images)
    expected = Image.fromarray(levels).resize((32, 32), Image.Resampling.BILINEAR).crop((2, 2, 30, 30))
    # Pillow rounds twice to whole levels, 0.5 each.
    torch.testing.assert_close(found[0].movedim(0, -1), torch.tensor(numpy.array(expected)).float(), rtol=0, atol=1.01)


def test_a_crop_keeps_the_shape_and_cuts_off_what_is_beyond_the_middle():
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = 1
    pixels = rewards.OnnxPixels(size=32, fit="crop", mean=(0,), std=(1,))
    assert torch.equal(pixels(wide), torch.ones(1, 3, 32, 32))


@pytest.mark.parametrize(
    "channels, expected",
    [
        ("RGB", [250, 126, 61]),
        ("BGR", [60, 127, 248]),
        ("gray", [0.299 * 251 + 0.587 * 128 + 0.114 * 64 - 1]),
    ],
)
def test_mean_and_std_are_in_the_order_of_the_channels(channels, expected):
    picture = (torch.tensor([251.0, 128, 64]) / 255).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    mean = {"RGB": (1, 2, 3), "BGR": (4, 1, 3), "gray": (1,)}[channels]
    pixels = rewards.OnnxPixels(size=4, scale=255, mean=mean, std=(1,), channels=channels)(picture)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-3)


def test_where_the_channels_are_is_read_off_the_file(tmp_path, images):
    transposed = [tiny_onnx.node("Transpose", ["rows"], ["image"], perm=[0, 3, 1, 2]), *tiny_onnx.scorer_nodes()]
    inputs, outputs = [tiny_onnx.value("rows", "batch", 32, 32, 3)], [tiny_onnx.value("logits", "batch", 2)]
    tower = saved(tmp_path, transposed, tiny_onnx.network().state_dict(), inputs, outputs)
    torch.testing.assert_close(rewards.ONNX(tower)(images), reference(images)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", ["batch", 1])
def test_a_network_of_one_picture_judges_a_batch_one_by_one(tmp_path, images, batch):
    nodes = tiny_onnx.scorer_nodes()
    nodes[4] = tiny_onnx.node("Reshape", ["pool", "sizes"], ["flat"])  # to one row, whatever the file says
    weights = tiny_onnx.network().state_dict() | {"sizes": torch.tensor([1, 8])}
    inputs, outputs = [tiny_onnx.value("image", batch, 3, 32, 32)], [tiny_onnx.value("logits", batch, 2)]
    reward = rewards.ONNX(saved(tmp_path, nodes, weights, inputs, outputs))
    torch.testing.assert_close(reward(images), reference(images)[:, 0], rtol=1e-5, atol=1e-6)
    assert core.scoring.exact(reward, images)[1].abs().flatten(1).amax(dim=1).gt(0).all()


def test_of_a_map_the_mean_over_the_places_counts(tmp_path, images):
    nodes = [tiny_onnx.node("AveragePool", ["image"], ["y"], kernel_shape=[8, 8], strides=[8, 8])]
    tower = saved(tmp_path, nodes, outputs=[tiny_onnx.value("y", "batch", 3, 4, 4)])
    pixels = rewards.OnnxPixels(mean=(0,), std=(1,))
    expected = F.interpolate(images.clamp(0, 1), size=(32, 32), mode="bilinear", antialias=True).mean(dim=(2, 3))
    torch.testing.assert_close(rewards.ONNX(tower, pixels, class_index=2)(images), expected[:, 2])


def test_an_output_is_chosen_by_its_name_or_number(tmp_path, images):
    outputs = [tiny_onnx.value("logits", "batch", 2), tiny_onnx.value("flat", "batch", 8)]
    inputs = [tiny_onnx.value("image", "batch", 3, 32, 32)]
    tower = saved(tmp_path, tiny_onnx.scorer_nodes(), tiny_onnx.network().state_dict(), inputs, outputs)
    by_name, by_number = (rewards.ONNX(tower, output=output, class_index=7) for output in ("flat", 1))
    assert torch.equal(by_name(images), by_number(images))
    with pytest.raises(ValueError, match="output is 'other'; expected 0 to 1, or one of logits, flat"):
        rewards.ONNX(tower, output="other")


def test_an_output_whose_name_is_a_number_is_chosen_by_it(tmp_path, images):
    """As older PyTorch exports them; the name goes before the place."""
    nodes = [*tiny_onnx.scorer_nodes(), tiny_onnx.node("Identity", ["logits"], ["495"])]
    outputs = [tiny_onnx.value("flat", "batch", 8), tiny_onnx.value("495", "batch", 2)]
    inputs = [tiny_onnx.value("image", "batch", 3, 32, 32)]
    tower = saved(tmp_path, nodes, tiny_onnx.network().state_dict(), inputs, outputs)
    found = [rewards.ONNX(tower, output=output, class_index=1)(images) for output in (495, "495", 1)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_network_that_only_chooses_says_that_it_has_no_gradient(tmp_path, images):
    nodes = [*tiny_onnx.scorer_nodes(), tiny_onnx.node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0),
             tiny_onnx.node("CastLike", ["best", "logits"], ["y"])]  # fmt: skip
    outputs = [tiny_onnx.value("y", "batch")]
    reward = rewards.ONNX(saved(tmp_path, nodes, tiny_onnx.network().state_dict(), outputs=outputs))
    assert reward.differentiable is False
    assert torch.equal(reward(images), reference(images).argmax(dim=1).float())


def test_a_number_of_a_class_is_taken_as_it_is_and_of_a_picture_that_is_not_finite_there_is_none(tmp_path, images):
    nodes = [*tiny_onnx.scorer_nodes(), tiny_onnx.node("ArgMax", ["logits"], ["y"], axis=1)]
    outputs = [tiny_onnx.value("y", "batch", 1, code=7)]
    tower = saved(tmp_path, nodes, tiny_onnx.network().state_dict(), outputs=outputs)
    reward = rewards.ONNX(tower)
    assert torch.equal(reward(images), reward(images).round()) and not reward.differentiable
    images[0, 0, 0, 0] = torch.nan
    assert reward(images).isnan().tolist() == [True, False]
    rewards.ONNX(tower, activation="sigmoid")(images)


def test_the_softmax_of_a_single_number_is_refused(tmp_path):
    nodes = [*tiny_onnx.scorer_nodes(), tiny_onnx.node("ReduceMean", ["logits"], ["y"], axes=[1])]
    outputs = [tiny_onnx.value("y", "batch", 1)]
    tower = saved(tmp_path, nodes, tiny_onnx.network().state_dict(), outputs=outputs)
    with pytest.raises(ValueError, match="the softmax of one number is 1 whatever it is; expected none or sigmoid"):
        rewards.ONNX(tower, activation="softmax")


def test_it_can_be_made_and_differentiated_in_inference_mode(scorer, images):
    with torch.inference_mode():
        reward = rewards.ONNX(rewards.load_tower(scorer))
        scores, gradient = core.scoring.exact(reward, images)
    assert reward.differentiable and gradient.abs().amax() > 0
    torch.testing.assert_close(scores, reference(images)[:, 0], rtol=1e-5, atol=1e-6)


def test_one_file_is_read_once(scorer):
    assert rewards.load_tower(scorer) is (kept := rewards.load_tower(scorer)) and kept.kind == "ONNX"


def test_unknown_operations_are_refused_by_name_before_anything_runs(tmp_path):
    nodes = [*tiny_onnx.scorer_nodes(), tiny_onnx.node("LSTM", ["logits"], ["a"]), tiny_onnx.node("If", ["a"], ["y"])]
    nodes[-1]["domain"] = "com.microsoft"
    with pytest.raises(ValueError, match="not implemented: LSTM, com.microsoft.If. Expected an image network"):
        saved(tmp_path, nodes, tiny_onnx.network().state_dict())


def test_a_graph_with_a_part_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="other.onnx takes 4.bias, 4.weight, y, which nothing in it makes"):
        weights = {name: weight for name, weight in tiny_onnx.network().state_dict().items() if name[0] == "0"}
        saved(tmp_path, tiny_onnx.scorer_nodes(), weights)


def test_a_network_that_does_not_fit_together_says_at_which_operation(tmp_path):
    weights = tiny_onnx.network().state_dict() | {"4.weight": torch.zeros(2, 9)}
    with pytest.raises(
        ValueError, match=r"other.onnx failed at the operation Gemm 'the Gemm', whose inputs .*\(1, 8\)"
    ):
        rewards.ONNX(saved(tmp_path, tiny_onnx.scorer_nodes(), weights, outputs=[tiny_onnx.value("logits", "b", 2)]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_index": 2}, "class_index is 2; expected 0 to 1"),
        ({"activation": "relu"}, "activation is 'relu'; expected one of none, softmax, sigmoid, log"),
        ({"pixels": rewards.OnnxPixels(size=16)}, r"size is \(16, 16\); expected \(32, 32\), the only one"),
        ({"pixels": rewards.OnnxPixels(channels="gray", mean=(0,), std=(1,))}, "3 channels; expected 1 for gray"),
        ({"pixels": rewards.OnnxPixels(layout="NHWC")}, "in the layout NHWC is 32 channels; expected 3"),
    ],
)
def test_settings_that_the_file_contradicts_are_refused(scorer, changes, message):
    with pytest.raises(ValueError, match=message):
        rewards.ONNX(rewards.load_tower(scorer), **changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kept": 0.0}, "kept is 0.0; expected more than 0"),
        ({"mean": (1, 2)}, "mean has 2 numbers; expected 1, or 3 for RGB pixels"),
        ({"std": (0,)}, "expected other numbers than 0"),
        ({"mean": (float("nan"),)}, "expected finite numbers"),
        ({"mean": (float("nan"),)}, "expected finite numbers"),
        ({"channels": "CMYK"}, "channels is 'CMYK'; expected one of RGB, BGR, gray"),
        ({"fit": "pad"}, "fit is 'pad'; expected one of stretch, crop"),
    ],
)
def test_pixels_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rewards.OnnxPixels(**changes)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            [tiny_onnx.value("image", "b", 3, 32, 32), tiny_onnx.value("text", "b", 77, code=7)],
            "text .* of torch.int64",
        ),
        ([tiny_onnx.value("image", "b", 3, 32, 32, code=2)], "of torch.uint8; expected one input, pictures"),
        ([tiny_onnx.value("image", 4, 3, 32, 32)], "takes 4 pictures at a time; expected 1, or any number"),
        ([tiny_onnx.value("image", "b", 3, "h", "w")], "takes pictures of any size; set size"),
    ],
)
def test_networks_of_other_things_than_pictures_are_refused(tmp_path, inputs, message):
    weights, outputs = tiny_onnx.network().state_dict(), [tiny_onnx.value("logits", "b", 2)]
    with pytest.raises(ValueError, match=message):
        rewards.ONNX(saved(tmp_path, tiny_onnx.scorer_nodes(), weights, inputs, outputs))


def test_half_precision_is_refused(scorer):
    with pytest.raises(ValueError, match="dtype is torch.float16; expected torch.float32 or torch.float64"):
        rewards.load_tower(scorer, dtype=torch.float16)


def test_a_tower_of_another_kind_is_refused(build):
    with pytest.raises(ValueError, match="needs a tower of kind ONNX"):
        rewards.ONNX(build("CLIPScore L").tower)


def test_the_same_operations_are_read_whichever_way_a_batch_is_named(scorer):
    assert onnx_file.read(scorer).inputs == [onnx_file.Input("image", torch.float32, (None, 3, 32, 32))]

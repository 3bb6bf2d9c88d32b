"""ShownText on a tiny recogniser, against PyTorch's CTC and a list of all ways to read a text; and on the real one."""

import itertools

import numpy
import pytest
import tiny_onnx
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.onnx_tower import OnnxTower
from comfyui_dno.rewards.shown_text import log_probability
from fetched_files import RECOGNISER
from PIL import Image, ImageDraw, ImageFont
from reward_laws import check_gradient, gained_by_ten_steps
from torch.nn import functional as F

BOX = (0.25, 0.5, 0.5, 0.25)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return tiny_onnx.write_recogniser(tmp_path_factory.mktemp("recogniser") / "rec.onnx")


@pytest.fixture
def tower(recogniser):
    return rewards.load_tower(recogniser)


def pictures(count=2, dtype=torch.float32):
    """Pictures whose `BOX` is a line of 24 places."""
    return 0.3 + 0.4 * tiny_rewards.pictures(count, 96, 192, dtype=dtype).clamp(0, 1)


def logits(*shape):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def extended(labels):
    """Return blank, label, blank, .. as `log_probability` takes it; blank is 0."""
    return [number for label in labels for number in (0, label)] + [0]


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2, 2], [3, 3, 3]])
def test_the_log_probability_and_its_gradient_are_those_of_pytorchs_ctc(labels):
    x = logits(3, 9, 5).requires_grad_()
    found = log_probability(x.log_softmax(dim=2)[..., extended(labels)], extended(labels))
    lengths = torch.full((3,), 9), torch.full((3,), len(labels))
    targets = torch.tensor(labels).expand(3, -1)
    expected = -F.ctc_loss(x.log_softmax(dim=2).movedim(1, 0), targets, *lengths, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(each.sum(), x, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1]])
def test_the_probability_is_that_of_all_ways_to_read_the_text(labels):
    chances = logits(1, 5, 3).softmax(dim=2)
    total = 0
    for path in itertools.product(range(3), repeat=5):
        if [label for label, _ in itertools.groupby(path) if label] == labels:
            total += torch.stack([chances[0, place, label] for place, label in enumerate(path)]).prod()
    found = log_probability(chances.log()[..., extended(labels)], extended(labels))
    torch.testing.assert_close(found.exp()[0], total, rtol=1e-10, atol=0)


def by_hand(images, text):
    """Return the score by PyTorch's own layer and CTC: the box of 48 rows is shown as it is."""
    line = images[..., 48:72, 48:144].flip(1)
    line = F.interpolate(line, (48, 192), mode="bilinear", align_corners=False)
    seen = tiny_onnx.recogniser()((line - 0.5) / 0.5).squeeze(2)
    labels = torch.tensor([[1 + tiny_onnx.CHARACTERS.index(character) for character in text]] * len(images))
    lengths = torch.full((len(images),), seen.shape[2]), torch.full((len(images),), len(text))
    loss = F.ctc_loss(seen.movedim(2, 0).log_softmax(dim=2), labels, *lengths, reduction="none")
    return -loss / len(text)


@pytest.mark.parametrize("text", ["CAT", "book", "A1"])
def test_the_score_is_the_log_probability_per_character_of_the_box(tower, text):
    images = pictures()
    found, gradient = exact(rewards.ShownText(tower, text, BOX), images)
    images.requires_grad_()
    expected = by_hand(images, text)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), images)
    assert (expected[0] - expected[1]).abs() > 0.01
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


def test_gradients_agree_with_differences_and_are_of_the_box_alone(recogniser):
    reward = rewards.ShownText(OnnxTower(recogniser, dtype=torch.float64), "book", BOX)
    images, direction = pictures(1, torch.float64), tiny_rewards.pictures(1, 96, 192, seed=1, dtype=torch.float64)
    gradient = check_gradient(reward, images, direction, rtol=1e-5)
    inside = torch.zeros(96, 192, dtype=torch.bool)
    inside[48:72, 48:144] = True
    assert (gradient[..., ~inside] == 0).all() and (gradient[..., inside] != 0).any()


def test_scores_of_a_batch_are_those_of_its_pictures(tower):
    reward, images = rewards.ShownText(tower, "CAT", BOX), pictures(18)
    singles = [score(reward, images[row : row + 1]) for row in range(18)]
    torch.testing.assert_close(score(reward, images), torch.cat(singles), rtol=1e-4, atol=1e-5)


def test_ten_ascent_steps_raise_the_score(tower):
    reward, images = rewards.ShownText(tower, "CAT", BOX), pictures()
    assert (gained_by_ten_steps(reward, images) > 0).all()


def test_everything_may_happen_in_inference_mode(recogniser, tower):
    images = pictures()
    expected, expected_gradient = exact(rewards.ShownText(tower, "CAT", BOX), images)
    with torch.inference_mode():
        found, gradient = exact(rewards.ShownText(OnnxTower(recogniser), "CAT", BOX), images.clone())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_line_is_as_wide_as_it_is_in_the_picture_and_48_pixels_high(tower):
    images = pictures(1)
    shapes = {
        box: rewards.ShownText(tower, "A", box).lines(images).shape[2:] for box in (BOX, (0, 0, 1, 1), (0, 0, 0.1, 1))
    }
    assert list(shapes.values()) == [(48, 192), (48, 96), (48, 48)]


@pytest.mark.parametrize(
    ("text", "box", "message"),
    [
        ("na\u00efve", BOX, "rec.onnx does not know '\u00ef', of 'na\u00efve'; expected characters of its own 63"),
        (" ", BOX, "the text is empty; expected what the picture shall show"),
        ("CAT", (0.5, 0, 0.6, 1), r"box is \(0.5, 0, 0.6, 1\); expected left, top, width and height as shares"),
        ("CAT", (0, 0, 0, 1), "expected left, top, width and height"),
        ("CAT", (0, -0.1, 1, 1), "expected left, top, width and height"),
    ],
)
def test_wrong_settings_are_refused(tower, text, box, message):
    with pytest.raises(ValueError, match=message):
        rewards.ShownText(tower, text, box)


@pytest.mark.parametrize(("text", "needed"), [("ABCDEFGHIJKLM", 13), ("ABCDEFGHIJJK", 13)])
def test_a_box_that_is_too_narrow_for_the_text_is_refused(tower, text, needed):
    reward = rewards.ShownText(tower, text, (0, 0, 1, 1))
    expected = f"the box, 96 x 48 pixels as rec.onnx sees it, has room for 12 characters.* needs {needed}.* Make the"
    with pytest.raises(ValueError, match=expected):
        reward(pictures(1))
    assert rewards.ShownText(tower, text[:-1], (0, 0, 1, 1))(pictures(1)).isfinite().all()


def test_files_that_are_no_recogniser_are_refused(tmp_path, build):
    silent = rewards.load_tower(tiny_onnx.write_recogniser(tmp_path / "silent.onnx", listed=""))
    with pytest.raises(ValueError, match="silent.onnx does not list its characters; expected a recogniser of text"):
        rewards.ShownText(silent, "A")
    other = rewards.load_tower(tiny_onnx.write_recogniser(tmp_path / "other.onnx", classes=60))
    with pytest.raises(ValueError, match="other.onnx gives 60 classes and lists 62 characters; expected two more"):
        rewards.ShownText(other, "A")(pictures(1))
    two = rewards.load_tower(tiny_onnx.write_recogniser(tmp_path / "two.onnx"))
    two.outputs.append("places")
    with pytest.raises(ValueError, match="two.onnx has 2 outputs, chances, places; expected a recogniser"):
        rewards.ShownText(two, "A")
    with pytest.raises(ValueError, match="needs a tower of kind ONNX.*of kind CLIP. Use Text: ch_PP-OCRv4"):
        rewards.ShownText(build("CLIPScore L").tower, "A")


def written(text):
    """Return a picture with a line of text in `BOX`, in the font that comes with Pillow."""
    picture = Image.new("RGB", (512, 192), (200, 210, 220))
    font = ImageFont.load_default(36)
    ImageDraw.Draw(picture).text((136, 96), text, fill=(20, 30, 60), font=font)
    return torch.from_numpy(numpy.array(picture)).movedim(-1, 0)[None] / 255


@pytest.mark.slow  # it may have to be fetched
def test_the_published_recogniser_reads_what_is_written():
    tower, image = rewards.load_tower(RECOGNISER.path()), written("HELLO")
    scores = {text: score(rewards.ShownText(tower, text, BOX), image).item() for text in ("HELLO", "HELL0", "WORLD")}
    assert scores["HELLO"] > -0.5 and scores["HELLO"] > scores["HELL0"] + 1 > scores["WORLD"] + 2, scores


@pytest.mark.slow
def test_ten_ascent_steps_on_pixels_make_the_published_recogniser_read_more_of_the_text():
    reward = rewards.ShownText(rewards.load_tower(RECOGNISER.path()), "CAFE", BOX)
    images = pictures()
    assert (gained_by_ten_steps(reward, images, lr=0.02) > 1).all()

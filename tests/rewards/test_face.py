"""FaceSimilarity on tiny twins, and on published weights: the same person, another, and no face at all."""

import pytest
import tiny_faces
import tiny_onnx
import tiny_rewards
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards.face_crop import cropped, five_points_frame
from comfyui_dno.rewards.facenet_tower import FaceNetTower
from comfyui_dno.rewards.onnx_tower import OnnxTower
from reward_laws import check_gradient, gained_by_ten_steps
from tiny_faces import portraits
from torch.nn import functional as F

EMBEDDERS = ("FaceNet", "ArcFace", "ArcFace that normalises")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_faces.write_all(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def detector(folder):
    return rewards.load_tower(folder / "onet.pt")


@pytest.fixture(scope="module")
def build(folder, detector):
    """build(name) -> the reward, in float32 or float64, towards `reference`."""

    def build(name, dtype=torch.float32, reference=None):
        if name == "FaceNet":
            tower = FaceNetTower(tiny_faces.facenet_state(), dtype=dtype)
        else:
            tower = OnnxTower(folder / tiny_faces.ARCFACES[name], dtype=dtype)
        return rewards.FaceSimilarity(tower, detector, portraits(1, seed=5) if reference is None else reference)

    return build


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_picture_is_wholly_like_itself_and_less_like_others(build, name):
    pictures = portraits(3)
    scores = score(build(name, reference=pictures[:1]), pictures)
    assert scores[0] == pytest.approx(1, abs=1e-6) and (scores[1:] < 1 - 1e-4).all()


@pytest.mark.parametrize("name", EMBEDDERS)
def test_of_several_references_the_mean_counts(build, name):
    pictures, references = portraits(2), portraits(2, seed=7)
    apart = [score(build(name, reference=one), pictures) for one in references.split(1)]
    both = score(build(name, reference=references), pictures)
    torch.testing.assert_close(both, torch.stack(apart).mean(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_scores_of_a_batch_are_those_of_its_pictures(build, name):
    reward, images = build(name), torch.cat([portraits(2), torch.zeros(1, 3, 44, 52)])
    singles = [score(reward, image) for image in images.split(1)]
    torch.testing.assert_close(score(reward, images), torch.cat(singles), rtol=0, atol=1e-5)


def test_an_arcface_sees_the_aligned_face_as_its_authors_code_gives_it(build, detector):
    """Pixels from -1 to 1, of 112 x 112; and those of a file that wants levels come to the same."""
    pictures = portraits(1).clamp(0, 1)
    face = detector.faces(pictures)[0][0]
    pixels = (cropped(pictures[0], five_points_frame(face)) - 0.5) / 0.5
    wanted, found = (build("ArcFace", reference=pictures), build("ArcFace that normalises", reference=pictures))
    embedding = wanted.tower.module(pixels[None])[0]
    for reward in (wanted, found):
        torch.testing.assert_close(reward._reference, F.normalize(embedding, dim=1)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_gradients_agree_with_differences_of_scores_where_the_face_stands_still(build, name, monkeypatch):
    images = portraits(1, dtype=torch.float64)
    reward = build(name, torch.float64)
    faces = reward._faces(images)
    monkeypatch.setattr(reward, "_faces", lambda images: faces)
    direction = tiny_rewards.pictures(1, 44, 52, seed=1, dtype=torch.float64)
    check_gradient(reward, images, direction)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_the_gradient_is_where_the_face_is(build, detector, name):
    images = portraits(1)
    box = detector.faces(images)[0][0].box
    _, gradient = exact(build(name), images)
    rows, columns = gradient.abs().sum(dim=(0, 1)).nonzero().unbind(1)
    margin = 8  # what the network sees around the box, and the filter's reach
    assert box[0] - margin < columns.min() and columns.max() < box[2] + margin
    assert box[1] - margin < rows.min() and rows.max() < box[3] + margin


@pytest.mark.parametrize("name", EMBEDDERS)
def test_ten_ascent_steps_raise_the_score(build, name):
    reward, images = build(name), portraits(2)
    assert (gained_by_ten_steps(reward, images, lr=0.003) > 0).all()


@pytest.mark.parametrize("name", EMBEDDERS)
def test_without_a_face_the_score_is_minus_one_and_the_gradient_zero(build, name):
    reward, images = build(name), torch.cat([torch.zeros(1, 3, 44, 52), portraits(1), torch.full((1, 3, 44, 52), 0.2)])
    scores, gradient = exact(reward, images)
    assert scores[[0, 2]].tolist() == [-1, -1] and scores[1] > 0
    assert gradient[[0, 2]].eq(0).all() and gradient[1].norm() > 0
    scores, gradient = exact(reward, images[:1])  # and where no picture has one
    assert scores.tolist() == [-1] and gradient.eq(0).all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_picture_that_is_not_finite_never_gets_a_finite_score(build, value):
    images = portraits(2)
    images[1, 0, 0, 0] = value
    with torch.no_grad():
        found = build("ArcFace")(images)
    assert found[0].isfinite() and found[1].isnan()


def test_a_search_says_in_which_of_its_pictures_there_is_no_face(build):
    dark, bright = torch.zeros(3, 44, 52), portraits(1)[0]
    shown = torch.stack([dark, bright])
    sample_map = core.generator_map(lambda noise: shown + 0.01 * noise.view(-1, 3, 1, 1).tanh(), (3,), batch=2)
    reward, noise = build("ArcFace"), sample_map.randn(seed=0)
    expected = "picture 0: no face was found, so its score is -1, and it has no gradient. Start from a seed"
    for judge in (reward, rewards.Combine([reward, rewards.Contrast()]), rewards.Jittered(reward, crops=1)):
        result = core.optimize(sample_map, judge, noise, core.GradientAscent(lr=0.1), iterations=1)
        (warning,) = (text for text in result.history.warnings if "no face" in text)
        assert warning.startswith(expected)
    watched = core.optimize(sample_map, rewards.Contrast(), noise, iterations=0, watch=[reward])
    assert any(text.startswith(expected) for text in watched.history.warnings)


def test_everything_may_happen_in_inference_mode(folder, build):
    images = portraits(2)
    expected, expected_gradient = exact(build("FaceNet"), images)
    with torch.inference_mode():
        towers = FaceNetTower(tiny_faces.facenet_state()), rewards.load_tower(folder / "onet.pt")
        reward = rewards.FaceSimilarity(*towers, portraits(1, seed=5))
        scores, gradient = exact(reward, images.clone())
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


def test_a_reference_without_a_face_is_refused(build):
    with pytest.raises(ValueError, match="no face was found in the reference; expected a picture that shows one"):
        build("ArcFace", reference=torch.zeros(1, 3, 44, 52))
    with pytest.raises(ValueError, match=r"no face was found in the reference \(picture 1\); expected"):
        build("ArcFace", reference=torch.cat([portraits(1), torch.zeros(1, 3, 44, 52)]))
    with pytest.raises(ValueError, match="reference holds NaN or infinity"):
        build("ArcFace", reference=portraits(1) * torch.nan)


def test_networks_that_are_of_another_kind_are_refused(folder, detector, tmp_path):
    scorer = rewards.load_tower(tiny_onnx.write_scorer(tmp_path / "scorer.onnx"))
    with pytest.raises(ValueError, match=r"scorer.onnx takes \(None, 3, 32, 32\); expected .* \(B, 3, 112, 112\)"):
        rewards.FaceSimilarity(scorer, detector, portraits(1))
    arcface = rewards.load_tower(folder / "arcface.onnx")
    with pytest.raises(ValueError, match="face needs a tower of kind FaceNet or ONNX.*found onet.pt, of kind MTCNN"):
        rewards.FaceSimilarity(detector, detector, portraits(1))
    with pytest.raises(ValueError, match="face needs a tower of kind MTCNN.*found arcface.onnx, of kind ONNX"):
        rewards.FaceSimilarity(arcface, arcface, portraits(1))

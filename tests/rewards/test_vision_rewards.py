"""DINOv2Similarity and AestheticV25 against transformers' own networks and image processors."""

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards import weights
from comfyui_dno.rewards.towers import load_tower
from comfyui_dno.rewards.vision_tower import VisionTower
from image_processors import by_processor
from reward_laws import check_gradient, gained_by_ten_steps
from torch.nn import functional as F
from torchvision.transforms import functional as vision

ALL = ("DINOv2 subject", "DINOv2 places", "Aesthetic V2.5")
REFERENCE = tiny_rewards.pictures(2, seed=5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def towers(files):
    """The towers of both files; loaded once."""
    return {name: load_tower(files[name]) for name in ("dinov2", "siglip")}


@pytest.fixture
def build(files, towers):
    def build(name, tower=None, **settings):
        if name == "Aesthetic V2.5":
            return rewards.AestheticV25(tower or towers["siglip"], files["aesthetic_v25"], **settings)
        return rewards.DINOv2Similarity(tower or towers["dinov2"], REFERENCE, by=name.split()[1], **settings)

    return build


def tower_of(name, files, dtype=torch.float32):
    path = files["siglip" if name == "Aesthetic V2.5" else "dinov2"]
    return VisionTower(weights.read(path), path.name, dtype=dtype)


def side(name):
    """Return the side of the pictures that a tower is shown: of the tiny SigLIP 56."""
    return 56 if name == "Aesthetic V2.5" else 224


def oracle_scores(name, x):
    """Return the scores of preprocessed pixels by the formulas and transformers' own networks."""
    if name == "Aesthetic V2.5":
        embeds = tiny_rewards.siglip_model(11).vision_model(pixel_values=x).pooler_output
        return tiny_rewards.aesthetic_v25_head(12).scoring_head(embeds / embeds.norm(dim=-1, keepdim=True))[:, 0]
    model = tiny_rewards.dinov2_model(9)
    found, wanted = (model(pixel_values=each).last_hidden_state for each in (x, by_processors_code(name, REFERENCE)))
    part = slice(0, 1) if name == "DINOv2 subject" else slice(1, None)
    cosines = [F.cosine_similarity(found[:, part], each[None, part], dim=-1).mean(dim=1) for each in wanted]
    return torch.stack(cosines).mean(dim=0)


def by_processors_code(name, images):
    """Preprocess float pictures as transformers does the files: 8 bits, then its image processor."""
    files = [vision.to_pil_image((image.clamp(0, 1) * 255 + 0.5).to(torch.uint8)) for image in images]
    if name == "Aesthetic V2.5":
        found = [
            by_processor(file, "siglip", "SiglipImageProcessor", {"size": {"height": 56, "width": 56}})
            for file in files
        ]
        return vision.normalize(torch.cat(found) / 255, *HALF)
    sizes = {"size": {"shortest_edge": 256}, "crop_size": 224}
    found = [by_processor(file, "bit", "BitImageProcessor", sizes) for file in files]
    return vision.normalize(torch.cat(found) / 255, *IMAGENET)


@pytest.mark.parametrize("name", ALL)
def test_scores_of_a_picture_equal_the_formulas_from_its_file(build, name):
    images = tiny_rewards.pictures(2, 301, 445)
    expected = oracle_scores(name, by_processors_code(name, images)).detach()
    parity, smooth = (score(build(name, parity=parity), images) for parity in (True, False))
    spread = (expected[0] - expected[1]).abs()
    assert (parity - expected).abs().max() < 0.01 * spread
    assert (smooth - expected).abs().max() < 0.05 * spread


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_those_of_transformers_networks(build, name):
    """On pictures that the preprocessing only normalises and, for DINOv2, crops."""
    length = side(name) if name == "Aesthetic V2.5" else 256
    images = tiny_rewards.pictures(2, length, length).clamp(0, 1)
    found, gradient = exact(build(name), images)
    images.requires_grad_()
    seen = vision.normalize(vision.center_crop(images, side(name)), *(HALF if side(name) == 56 else IMAGENET))
    expected = oracle_scores(name, seen)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), images)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_differences_of_scores(files, build, name):
    tower = tower_of(name, files, torch.float64)
    reward = build(name, tower=tower)
    images = 0.4 + 0.2 * tiny_rewards.pictures(1, 40, 57, dtype=torch.float64)
    direction = tiny_rewards.pictures(1, 40, 57, seed=1, dtype=torch.float64)
    check_gradient(reward, images, direction)


@pytest.mark.parametrize("name", ALL)
def test_scores_of_a_batch_are_those_of_its_pictures(build, name):
    reward, images = build(name), tiny_rewards.pictures(2, 40, 57)
    singles = [score(reward, images[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(score(reward, images), torch.cat(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_ten_ascent_steps_raise_the_score(build, name):
    reward = build(name)
    images = tiny_rewards.pictures(2, 64, 64)
    assert (gained_by_ten_steps(reward, images) > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_everything_may_happen_in_inference_mode(files, build, name):
    images = tiny_rewards.pictures()
    expected, expected_gradient = exact(build(name), images)
    with torch.inference_mode():
        scores, gradient = exact(build(name, tower=tower_of(name, files)), images.clone())
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.2), (torch.float16, 0.035)])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_towers_give_float32_scores_and_nearly_the_same_gradient(files, build, name, dtype, error):
    """A score by the dtype's spacing of numbers at 1 for a cosine; a gradient by more than twice what was measured."""
    images = tiny_rewards.pictures(1, 256, 256)
    expected, expected_gradient = exact(build(name), images)
    scores, gradient = exact(build(name, tower=tower_of(name, files, dtype)), images)
    assert scores.dtype == gradient.dtype == torch.float32
    assert (gradient - expected_gradient).norm() < error * expected_gradient.norm()
    unit = 20 if name == "Aesthetic V2.5" else 1  # what a cosine of 1 counts, about
    assert (scores - expected).abs() < torch.finfo(dtype).eps * unit


@pytest.mark.parametrize("by", ["subject", "places"])
def test_a_picture_is_wholly_similar_to_itself(towers, by):
    images = tiny_rewards.pictures(3)
    scores = score(rewards.DINOv2Similarity(towers["dinov2"], images[:1], by=by), images)
    assert scores[0] > 0.999 and (scores[1:] < 0.99).all()
    both = score(rewards.DINOv2Similarity(towers["dinov2"], images[:2], by=by), images)
    second = score(rewards.DINOv2Similarity(towers["dinov2"], images[1:2], by=by), images)
    torch.testing.assert_close(both, (scores + second) / 2)


def test_the_places_are_compared_one_by_one(towers):
    picture = tiny_rewards.pictures(1, 256, 256)
    reward = rewards.DINOv2Similarity(towers["dinov2"], picture, by="places")
    tokens = [towers["dinov2"].places(each, "dinov2") for each in (picture, picture.flip(3))]
    expected = F.cosine_similarity(*tokens, dim=-1).mean(dim=1)
    torch.testing.assert_close(score(reward, picture.flip(3)), expected, rtol=1e-4, atol=1e-4)


def test_the_heads_layers_are_one_linear_map(files, build):
    reward, images = build("Aesthetic V2.5"), tiny_rewards.pictures()
    embeds = F.normalize(reward.tower.embed(images, "siglip"), dim=-1).double()
    expected = tiny_rewards.aesthetic_v25_head(12).double().scoring_head(embeds)[:, 0].float()
    # float32 sums of 1152 products, of which the largest is near 1, err by 1152 * 2**-24 at most.
    torch.testing.assert_close(score(reward, images), expected, rtol=1e-4, atol=7e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda files, towers: rewards.DINOv2Similarity(towers["siglip"], REFERENCE),
            "DINOv2 similarity needs a tower of kind DINOv2.* found siglip-so400m.*, of kind SigLIP. Use DINOv2",
        ),
        (
            lambda files, towers: rewards.AestheticV25(towers["dinov2"], files["aesthetic_v25"]),
            "aesthetic V2.5 needs a tower of kind SigLIP.* found dinov2-base.safetensors, of kind DINOv2. Use SigLIP",
        ),
        (
            lambda files, towers: rewards.CLIPScore(towers["dinov2"], "a cat"),
            "CLIPScore needs a tower of kind CLIP.* found dinov2-base.safetensors, of kind DINOv2",
        ),
        (
            lambda files, towers: rewards.AestheticV25(towers["siglip"], files["aesthetic"]),
            r"is of the kind 'aesthetic head'; expected 'aesthetic head \(v2.5, for SigLIP\)'",
        ),
        (
            lambda files, towers: rewards.Aesthetic(load_tower(files["clip_l"]), files["aesthetic_v25"]),
            r"is of the kind 'aesthetic head \(v2.5, for SigLIP\)'; expected 'aesthetic head'",
        ),
        (
            lambda files, towers: rewards.DINOv2Similarity(towers["dinov2"], REFERENCE, by="colour"),
            "by is 'colour'; expected one of 'subject', 'places'",
        ),
    ],
)
def test_wrong_files_and_settings_are_refused_by_name(files, towers, make, message):
    with pytest.raises(ValueError, match=message):
        make(files, towers)


def test_a_siglip_of_another_width_is_refused(files):
    state = tiny_rewards.siglip_model(width=128).state_dict()
    with pytest.raises(ValueError, match="aesthetic V2.5 needs embeddings 1152 wide, found 128 in small. Use SigLIP"):
        rewards.AestheticV25(VisionTower(state, "small"), files["aesthetic_v25"])


@pytest.mark.parametrize("lost", ["scoring_head.8.weight", "scoring_head.4.weight"])
def test_a_head_without_one_of_its_layers_is_refused(files, towers, tmp_path, lost):
    state = {name: value for name, value in weights.read(files["aesthetic_v25"]).items() if name != lost}
    tiny_rewards.save(state, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="head.pth has layers of shapes .*; expected .*the predictor for SigLIP. Use"):
        rewards.AestheticV25(towers["siglip"], tmp_path / "head.pth")

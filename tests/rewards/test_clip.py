"""HPS, PickScore, CLIPScore, Similarity, Directions and Aesthetic against the reference libraries' own models."""

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards import clip_tower, weights
from comfyui_dno.rewards.clip_tower import ClipTower
from comfyui_dno.rewards.preprocess import OPENAI_MEAN, OPENAI_STD
from comfyui_dno.rewards.towers import load_tower
from PIL import Image
from reward_laws import check_gradient, gained_by_ten_steps
from torch.nn import functional as F
from torchvision.transforms import functional as vision

PROMPTS = ["a black cat", "two dogs, oil on canvas"]
KINDS = {"HPS": "hps", "PickScore": "pickscore", "CLIPScore L": "clip_l", "CLIPScore H": "clip_h_open_clip"}
ALL = (*KINDS, "Aesthetic", "Similarity", "Directions")


def oracle_embeds(kind, files):
    """Return the reference library's own pixels -> (B, width), texts -> (B, width) at unit length."""
    tokenize = pytest.importorskip("open_clip").tokenize
    size = "L" if kind.startswith("clip_l") else "H"
    if "vision_model.pre_layrnorm.weight" in (state := weights.read(files[kind])):
        model = tiny_rewards.hf_model(size)
        model.load_state_dict(state)
        # The text is seen by the open_clip tokenizer's ids, as everywhere; one call gives both at unit length.
        return (
            lambda x: model(tokenize(["x"] * len(x)), x).image_embeds,
            lambda texts: model(tokenize(texts), torch.zeros(1, 3, 224, 224)).text_embeds,
        )
    model = tiny_rewards.open_clip_model(size)
    model.load_state_dict(state)
    return (
        lambda x: model.encode_image(x, normalize=True),
        lambda texts: model.encode_text(tokenize(texts), normalize=True),
    )


def oracle_scores(name, x, files):
    """Return the scores of preprocessed pictures (B, 3, 224, 224) by the reference's formula and model."""
    image_of, text_of = oracle_embeds(KINDS.get(name, "clip_l"), files)
    image = image_of(x)
    if name == "Aesthetic":
        head = tiny_rewards.aesthetic_head()
        head.load_state_dict(weights.read(files["aesthetic"]))
        return head.layers(image)[:, 0]
    if name == "Similarity":
        references = image_of(by_references_code("CLIPScore L", tiny_rewards.pictures(seed=5)))
        return (image @ references.T).mean(dim=1)
    if name == "Directions":
        more, less = text_of(["a watercolour", "a photo"])
        return image @ more - image @ less
    scale = 100 if name == "PickScore" else 1
    return scale * (image * text_of(PROMPTS)).sum(dim=1)


def normalised(images):
    return vision.normalize(images, OPENAI_MEAN, OPENAI_STD)


def by_references_code(name, images):
    """Preprocess float pictures as the reference does the file: saved as 8 bits, then Pillow or, for HPS, tensors."""
    return torch.stack([_by_references_code(name, image) for image in images])


def _by_references_code(name, image):
    picture = vision.to_pil_image((image.clamp(0, 1) * 255 + 0.5).to(torch.uint8))
    if name == "HPS":
        scale = 224 / max(picture.size)
        tensor = vision.to_tensor(picture)
        sides = [round(side * scale) for side in tensor.shape[-2:]]
        tensor = vision.resize(tensor, sides, vision.InterpolationMode.BICUBIC, antialias=True)
        missing = [224 - side for side in sides]
        tensor = F.pad(tensor, (missing[1] // 2, -(-missing[1] // 2), missing[0] // 2, -(-missing[0] // 2)))
    else:
        scale = 224 / min(picture.size)
        picture = picture.resize([int(side * scale) for side in picture.size], Image.BICUBIC)
        corner = [(side - 224) / 2 for side in picture.size]
        left, top = (round(c) if name == "Aesthetic" else int(c) for c in corner)
        tensor = vision.to_tensor(picture.crop((left, top, left + 224, top + 224)))
    return normalised(tensor)


@pytest.mark.parametrize("name", ALL)
def test_scores_and_gradients_equal_the_references_on_its_own_pixels(build, files, name):
    images = tiny_rewards.pictures(2, 224, 224).clamp(0, 1)
    found, gradient = exact(build(name), images, PROMPTS)
    images.requires_grad_()
    expected = oracle_scores(name, normalised(images), files)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), images)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize("name", ALL)
def test_scores_of_a_picture_equal_the_references_from_its_file(build, files, name):
    images = tiny_rewards.pictures(2, 301, 445)  # 224 x 331: crops from 53 or, for LAION, 54
    expected = oracle_scores(name, by_references_code(name, images), files).detach()
    parity, smooth = (score(build(name, parity=parity), images, PROMPTS) for parity in (True, False))
    spread = (expected[0] - expected[1]).abs()
    assert (parity - expected).abs().max() < min(0.01 * spread, 0.1 if name == "PickScore" else 1e-3)
    assert (smooth - expected).abs().max() < 0.05 * spread


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_differences_of_scores(files, build, name):
    tower = ClipTower(weights.read(files[KINDS.get(name, "clip_l")]))
    tower.module["image"].double()  # the text tower of transformers 4.50 knows no float64
    reward = build(name, tower=tower)
    # Inside [0, 1]: outside, the gradient is that of no clamping, on purpose.
    images = 0.4 + 0.2 * tiny_rewards.pictures(1, 40, 57, dtype=torch.float64)
    direction = tiny_rewards.pictures(1, 40, 57, seed=1, dtype=torch.float64)
    check_gradient(reward, images, direction, prompts=PROMPTS[:1])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [(40, 57), (601, 224)])
def test_scores_of_a_batch_are_those_of_its_pictures(build, name, size):
    reward, images = build(name), tiny_rewards.pictures(2, *size)
    singles = [score(reward, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(score(reward, images, PROMPTS), torch.cat(singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_ten_ascent_steps_raise_the_score(build, name):
    reward = build(name)
    images = tiny_rewards.pictures(2, 64, 64)
    assert (gained_by_ten_steps(reward, images, prompts=PROMPTS) > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_everything_may_happen_in_inference_mode(files, build, name):
    expected, expected_gradient = exact(build(name), tiny_rewards.pictures(), PROMPTS)
    with torch.inference_mode():
        path = files[KINDS.get(name, "clip_l")]
        tower = ClipTower({key: value.clone() for key, value in weights.read(path).items()})
        reward = build(name, tower=tower)
        images = tiny_rewards.pictures()
        torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-4, atol=1e-5)
        scores, gradient = exact(reward, images, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.2), (torch.float16, 0.035)])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_towers_give_float32_scores_and_nearly_the_same_gradient(build, name, dtype, error):
    """A score by the dtype's spacing of numbers at 1 for a cosine; a gradient by 4 times what was measured."""
    images = tiny_rewards.pictures(1, 512, 512)
    expected, expected_gradient = exact(build(name), images, PROMPTS[:1])
    scores, gradient = exact(build(name, dtype), images, PROMPTS[:1])
    assert scores.dtype == gradient.dtype == torch.float32
    assert (gradient - expected_gradient).norm() < error * expected_gradient.norm()
    unit = {"PickScore": 100, "Aesthetic": 5}.get(name, 1)  # what a cosine of 1 counts, about
    assert (scores - expected).abs() < torch.finfo(dtype).eps * unit


@pytest.mark.parametrize("name", KINDS)
def test_a_rewards_own_prompt_wins(build, name):
    images = tiny_rewards.pictures()
    own = build(name, prompt=PROMPTS[0])
    both = score(build(name), images, [PROMPTS[0]] * 2)
    assert torch.equal(score(own, images, PROMPTS), both) and torch.equal(score(own, images), both)
    assert not torch.allclose(score(build(name), images, PROMPTS), both, rtol=1e-3)


def test_spaces_around_a_directions_texts_do_not_count(build):
    tower = build("CLIPScore L").tower
    found = rewards.Directions(tower, " a cat\n", " ")
    assert (found.more, found.less) == ("a cat", "")
    with pytest.raises(ValueError, match="more and less are both ''"):
        rewards.Directions(tower, " ", "")


def test_autocast_changes_no_score_and_no_text_that_is_remembered(build, tmp_path):
    path = tiny_rewards.write("hps", tmp_path)  # a tower of its own, whose texts nobody has embedded yet
    reward, images = rewards.HPS(load_tower(path), "a cat in autocast"), tiny_rewards.pictures()
    with torch.autocast("cpu", torch.bfloat16):
        inside = reward(images)
    expected = build("HPS", prompt="a cat in autocast")(images)
    assert torch.equal(inside, expected) and torch.equal(reward(images), expected)


def test_many_pictures_are_judged_some_at_a_time_without_gradient_and_together_with_one(files):
    reward, sizes = rewards.CLIPScore(ClipTower(weights.read(files["clip_l"]))), []
    reward.tower.module["image"].register_forward_pre_hook(
        lambda *call: sizes.append(len(call[-1]["pixel_values"])), with_kwargs=True
    )
    images = tiny_rewards.pictures(20, 32, 32)
    prompts = [f"cat {n}" for n in range(20)]
    expected, _ = exact(reward, images, prompts)
    torch.testing.assert_close(score(reward, images, prompts), expected, rtol=1e-4, atol=1e-5)
    assert sizes == [20, 16, 4]


def test_a_cosine_below_zero_keeps_its_gradient(build):
    scores, gradient = exact(build("CLIPScore L"), tiny_rewards.pictures(), PROMPTS)
    assert (scores < 0).any() and (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_picture_is_wholly_similar_to_itself(build):
    images = tiny_rewards.pictures(3)
    tower = build("CLIPScore L").tower
    scores = score(rewards.Similarity(tower, images[:1]), images)
    assert scores[0] > 0.999 and (scores[1:] < 0.99).all()
    both = score(rewards.Similarity(tower, images[:2]), images)
    torch.testing.assert_close(both, (scores + score(rewards.Similarity(tower, images[1:2]), images)) / 2)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (torch.rand(3, 40, 57), r"reference are \(3, 40, 57\); .* Pass one picture as a batch of one"),
        (torch.rand(1, 40, 57, 3), r"reference are \(1, 40, 57, 3\); .* images.movedim"),
        (torch.rand(1, 4, 40, 57), r"reference are \(1, 4, 40, 57\); .* Leave out an alpha channel"),
        (torch.rand(0, 3, 40, 57), r"reference are \(0, 3, 40, 57\); expected"),
        (torch.full((1, 3, 4, 4), torch.nan), "reference holds NaN or infinity"),
        (torch.full((1, 3, 40, 57), 127.5), "reference have a mean of 127.5; .* by 255"),
    ],
    ids=["one", "channels last", "alpha", "none", "NaN", "levels"],
)
def test_a_reference_of_another_form_is_refused_when_it_is_given(build, reference, message):
    with pytest.raises(ValueError, match=message):
        rewards.Similarity(build("CLIPScore L").tower, reference)


def test_a_gray_reference_is_its_gray_in_three_channels(build):
    tower, gray = build("CLIPScore L").tower, tiny_rewards.pictures()[:, :1]
    alike = [score(rewards.Similarity(tower, r), tiny_rewards.pictures()) for r in (gray, gray.repeat(1, 3, 1, 1))]
    torch.testing.assert_close(*alike)


@pytest.mark.parametrize("scale", [None, torch.nan, torch.inf])
def test_a_pickscore_file_needs_a_finite_logit_scale(files, scale):
    state = {key: value for key, value in weights.read(files["pickscore"]).items() if key != "logit_scale"}
    if scale is not None:
        state["logit_scale"] = torch.tensor(scale)
    with pytest.raises(ValueError, match=f"logit_scale of pick.pt is {scale}; expected a finite number. Use PickScore"):
        rewards.PickScore(ClipTower(state, "pick.pt"))


def test_directions_are_differences_of_cosines(build):
    tower, images = build("CLIPScore L").tower, tiny_rewards.pictures()
    more, less = (score(rewards.CLIPScore(tower, prompt), images) for prompt in PROMPTS)
    torch.testing.assert_close(score(rewards.Directions(tower, *PROMPTS), images), more - less)
    torch.testing.assert_close(score(rewards.Directions(tower, PROMPTS[0]), images), more)
    torch.testing.assert_close(score(rewards.Directions(tower, "", PROMPTS[1]), images), -less)
    with pytest.raises(ValueError, match="more and less are both 'cat'"):
        rewards.Directions(tower, "cat", "cat")


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ("A Cat", "a cat"),
        ("a  cat", "a cat"),
        ("cat &amp; dog", "cat & dog"),
        ("cat " * 75 + "one", "cat " * 75 + "two"),
    ],
    ids=["capitals", "spaces", "HTML", "beyond 75 tokens"],
)
def test_directions_refuse_two_texts_that_are_one_to_the_tower(build, more, less):
    with pytest.raises(ValueError, match="are one text to clip-vit-large-patch14.safetensors, so every"):
        rewards.Directions(build("CLIPScore L").tower, more, less)


def test_rewards_on_one_file_share_a_tower_and_its_texts(build):
    parts = [build(name) for name in ("CLIPScore L", "Aesthetic", "Similarity")]
    parts.append(rewards.Directions(build("CLIPScore L").tower, "third", "fourth"))
    assert len({id(part.tower) for part in parts}) == 1
    counts = {"image": 0, "text": 0}
    for kind, network in parts[0].tower.module.items():
        network.register_forward_hook(lambda *_, kind=kind: counts.update({kind: counts[kind] + 1}))
    for texts in (["first", "second"], ["second", "first"]):
        for part in parts:
            score(part, tiny_rewards.pictures(), texts)
    assert counts == {"image": 9, "text": 2}  # 8 pictures and 1 reference; the prompts, the two directions


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda files: rewards.HPS("HPS.pt"), "HPS needs a tower of kind CLIP.* found 'HPS.pt'"),
        (lambda files: rewards.HPS(load_tower(files["clip_l"])), "HPS needs embeddings 1024 wide, found 768"),
        (lambda files: rewards.PickScore(load_tower(files["clip_l"])), "found 768 .*yuvalkirstain/PickScore_v1"),
        (
            lambda files: rewards.Aesthetic(load_tower(files["hps"]), files["aesthetic"]),
            "aesthetic needs embeddings 768 wide, found 1024 in HPS_v2.1_compressed.pt. Use CLIP ViT-L/14",
        ),
        (
            lambda files: rewards.Aesthetic(load_tower(files["clip_l"]), files["hps"]),
            r"HPS_v2.1_compressed.pt is of the kind 'clip \(open_clip\)'; expected 'aesthetic head'",
        ),
        (lambda files: load_tower(files["aesthetic"]), "is of the kind 'aesthetic head'; expected 'clip"),
    ],
)
def test_wrong_files_are_refused_by_name(files, make, message):
    with pytest.raises(ValueError, match=message):
        make(files)


def test_texts_need_a_text_tower_and_pictures_do_not(files):
    tower = ClipTower(tiny_rewards.image_tower(weights.read(files["clip_l"])), "CLIP_VISION")
    for make in (lambda: rewards.CLIPScore(tower), lambda: rewards.Directions(tower, "cat")):
        with pytest.raises(ValueError, match="CLIP_VISION has an image tower alone"):
            make()
    images = tiny_rewards.pictures()
    whole = load_tower(files["clip_l"])
    for alone, both in (
        (rewards.Aesthetic(tower, files["aesthetic"]), rewards.Aesthetic(whole, files["aesthetic"])),
        (rewards.Similarity(tower, images[:1]), rewards.Similarity(whole, images[:1])),
    ):
        torch.testing.assert_close(score(alone, images), score(both, images))


def test_a_tokenizer_that_cannot_be_loaded_is_found_before_any_picture_is_judged(files, monkeypatch):
    def broken():
        raise ImportError("open_clip does not fit this torchvision")

    tower = load_tower(files["clip_l"])
    monkeypatch.setattr(clip_tower, "_tokenizer", broken)
    with pytest.raises(ImportError, match="does not fit"):
        rewards.CLIPScore(tower, "a cat")

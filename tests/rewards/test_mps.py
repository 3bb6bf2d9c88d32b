"""MPS against a plain loop over the port's formulas and, where it is installed, against the port's own code.

pip install --no-deps imscore==0.0.11; pytest -m oracles tests/rewards/test_mps.py
"""

from importlib.util import find_spec

import mps_reference
import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import exact, score
from comfyui_dno.rewards import mps_tower, weights
from comfyui_dno.rewards.mps_tower import CONDITION, MpsTower
from comfyui_dno.rewards.preprocess import OPENAI_MEAN, OPENAI_STD
from comfyui_dno.rewards.towers import load_tower
from image_processors import by_processor
from reward_laws import check_gradient, gained_by_ten_steps
from torchvision.transforms import functional as vision

PROMPTS = ["a black cat", "two dogs in a light room, oil on canvas"]


@pytest.fixture(scope="module")
def state(files):
    """The twin's weights, changed so that "cat" and "dogs" are far from every word of the condition."""
    state = weights.read(files["mps"])
    key = "mps.model.text_model.embeddings.token_embedding.weight"
    with torch.no_grad():
        text = tiny_rewards.hf_model("H", 13).text_model(input_ids=ids_of([CONDITION])).last_hidden_state[0]
    embeddings = state[key].clone()
    embeddings[ids_of(["cat dogs"])[0, 1:3]] = -20 * text.mean(dim=0)
    return state | {key: embeddings}


@pytest.fixture(scope="module")
def tower(state):
    return MpsTower(state, "MPS.safetensors")


def part(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def ids_of(texts):
    """Return the ids of transformers' tokenizer for CLIP, which fills with the mark of the end."""
    ids = pytest.importorskip("open_clip").tokenize(texts)
    for row in ids:
        row[row.argmax() :] = 49407
    return ids


def oracle_scores(state, pixels, prompts, cross):
    model = tiny_rewards.hf_model("H", 13)
    model.load_state_dict(part(state, "mps.model."))
    return mps_reference.scores(model, cross, pixels, ids_of(prompts), ids_of([CONDITION])[0])


def normalised(images):
    return vision.normalize(images, OPENAI_MEAN, OPENAI_STD)


def by_the_loop(state):
    reader = part(state, "mps.cross_model.")
    return lambda *given: mps_reference.reader(reader, *given)


def assert_scores_and_gradients_equal(state, cross):
    images = tiny_rewards.pictures(2, 224, 224).clamp(0, 1)
    found, gradient = exact(rewards.MPS(MpsTower(state)), images, PROMPTS)
    images.requires_grad_()
    expected = oracle_scores(state, normalised(images), PROMPTS, cross)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), images)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


def test_scores_and_gradients_equal_a_plain_loop_over_the_formulas(state):
    assert_scores_and_gradients_equal(state, by_the_loop(state))


@pytest.mark.oracles
@pytest.mark.skipif(find_spec("imscore") is None, reason="needs the port's own code")
def test_scores_and_gradients_equal_those_of_the_ports_reader(state):
    from imscore.mps.cross import CrossModel

    model = CrossModel(dim=1024, layer_num=2, dim_head=64, heads=2, ff_mult=4)
    reader = part(tiny_rewards.mps_state(13, hidden=4096), "mps.cross_model.")  # the port has no other
    model.load_state_dict(reader)

    def cross(patches, tokens, mask):
        return model(patches, tokens, mask[:, None].expand(-1, patches.shape[1], -1))

    assert_scores_and_gradients_equal(state | tiny_rewards.prefixed(reader, "mps.cross_model."), cross)


def test_a_picture_scores_as_its_file_by_transformers_image_processor(state, tower):
    images = tiny_rewards.pictures(2, 301, 445)
    pictures = [vision.to_pil_image((image.clamp(0, 1) * 255 + 0.5).to(torch.uint8)) for image in images]
    pixels = torch.cat([by_processor(picture, "clip", "CLIPImageProcessor", {}) for picture in pictures])
    expected = oracle_scores(state, normalised(pixels / 255), PROMPTS, by_the_loop(state))
    parity, smooth = (score(rewards.MPS(tower, parity=parity), images, PROMPTS) for parity in (True, False))
    assert (parity - expected.detach()).abs().max() < 0.1  # a thousandth of a cosine, of which 1 scores 100
    assert (smooth - expected.detach()).abs().max() < 0.5


def test_tokens_far_from_the_conditions_words_do_not_count(tower):
    tokens, near, _ = tower._read(PROMPTS[1])
    assert (~near).nonzero().tolist() == [[2]]  # a mark, two, dogs
    patches = torch.randn((1, 257, 1024), generator=torch.Generator().manual_seed(0))
    reader = tower.module["reader"]
    expected = reader(patches, tokens[None], near[None])
    changed = torch.where(near[:, None], tokens, 5.0)
    torch.testing.assert_close(reader(patches, changed[None], near[None]), expected)
    assert not torch.allclose(reader(patches, tokens[None], torch.ones_like(near)[None]), expected, rtol=1e-2)


def test_what_is_near_is_measured_by_the_nearest_token_of_the_prompt(state, tower):
    key = "mps.model.text_projection.weight"
    small = MpsTower(state | {key: state[key] * 1e-4})
    for prompt in PROMPTS:
        assert torch.equal(small._read(prompt)[1], tower._read(prompt)[1])


def test_token_ids_are_filled_with_the_mark_of_the_end():
    ids = torch.tensor([[49406, 320, 49407, 0, 0], [49406, 320, 2368, 525, 49407]])
    expected = [[49406, 320, 49407, 49407, 49407], [49406, 320, 2368, 525, 49407]]
    assert mps_tower.filled_with_the_end(ids).tolist() == expected


def test_gradients_agree_with_differences_of_scores(state):
    tower = MpsTower(state)
    tower.module["image"].double(), tower.module["reader"].double()
    reward = rewards.MPS(tower, PROMPTS[0])
    images = 0.4 + 0.2 * tiny_rewards.pictures(1, 40, 57, dtype=torch.float64)
    direction = tiny_rewards.pictures(1, 40, 57, seed=1, dtype=torch.float64)
    check_gradient(reward, images, direction, step=1e-5, atol=1e-7)


def test_scores_of_a_batch_are_those_of_its_pictures_whatever_the_other_prompts(tower):
    """Unlike in the port, whose mask is scaled by the largest of the batch."""
    reward, images = rewards.MPS(tower), tiny_rewards.pictures(2, 40, 57)
    singles = [score(reward, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(score(reward, images, PROMPTS), torch.cat(singles), rtol=1e-4, atol=1e-3)


def test_ten_ascent_steps_raise_the_score(tower):
    reward, images = rewards.MPS(tower), tiny_rewards.pictures(2, 64, 64)
    assert (gained_by_ten_steps(reward, images, prompts=PROMPTS) > 0).all()


def test_everything_may_happen_in_inference_mode(state, tower):
    images = tiny_rewards.pictures()
    expected, expected_gradient = exact(rewards.MPS(tower), images, PROMPTS)
    with torch.inference_mode():
        scores, gradient = exact(rewards.MPS(MpsTower(state)), images.clone(), PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-3)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.2), (torch.float16, 0.035)])
def test_half_precision_towers_give_float32_scores_and_nearly_the_same_gradient(state, tower, dtype, error):
    images = tiny_rewards.pictures(1, 256, 256)
    expected, expected_gradient = exact(rewards.MPS(tower, PROMPTS[0]), images)
    scores, gradient = exact(rewards.MPS(MpsTower(state, dtype=dtype), PROMPTS[0]), images)
    assert scores.dtype == gradient.dtype == torch.float32
    assert (gradient - expected_gradient).norm() < error * expected_gradient.norm()
    assert (scores - expected).abs() < torch.finfo(dtype).eps * 100


def test_each_text_is_read_once_and_what_is_cut_of_it_is_said(state, caplog):
    tower, calls = MpsTower(state, "MPS.safetensors"), []
    tower.module["text"].register_forward_hook(lambda *_: calls.append(1))
    reward = rewards.MPS(tower)
    for _ in range(2):
        score(reward, tiny_rewards.pictures(3), ["a cat", "a dog", "a cat"])
    assert len(calls) == 2 and not caplog.messages
    score(reward, tiny_rewards.pictures(1), ["cat " * 75 + "dog"])
    assert len(caplog.messages) == 1 and "reads 75 tokens of a text, and this one has 76" in caplog.messages[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mps.cross_model.layers.1.1.fn.attn_out.weight"), "Missing key.*layers.1.1.attn_out"),
        (lambda state: state.update({"mps.cross_model.odd": torch.ones(1)}), "Unexpected key.*odd"),
        (lambda state: state.pop("mps.model.visual_projection.weight"), "visual_projection.weight"),
    ],
)
def test_incomplete_and_altered_files_are_refused(state, change, message):
    state = dict(state)
    change(state)
    with pytest.raises(ValueError, match=f"x.safetensors is not a whole (MPS|CLIP) .*{message}.*Download it again"):
        MpsTower(state, "x.safetensors")


def test_other_towers_are_refused_by_name_and_others_refuse_it(files, tower):
    with pytest.raises(
        ValueError, match="MPS needs a tower of kind MPS.* found HPS_v2.1.*, of kind CLIP. Use MPS: mod"
    ):
        rewards.MPS(load_tower(files["hps"]))
    assert load_tower(files["mps"]).kind == "MPS"
    with pytest.raises(ValueError, match="PickScore needs a tower of kind CLIP.* found MPS.safetensors, of kind MPS"):
        rewards.PickScore(tower)

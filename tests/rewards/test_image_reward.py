"""ImageReward on tiny random files of its layout, against timm's vision tower and a text tower written out here."""

from dataclasses import replace

import pytest
import torch
from comfyui_dno import rewards
from comfyui_dno.rewards import weights
from comfyui_dno.rewards.blip_tower import find_vocabulary
from comfyui_dno.rewards.preprocess import Preprocess
from tiny_image_reward import image_reward_state, write_vocabulary
from torch.nn import functional as F

PROMPTS = ["a black cat", "white owls, a dog"]
CYCLE = (0, 2, 4, 6, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward_models")
    write_vocabulary(folder / "vocab.txt")
    torch.save(image_reward_state(), folder / "ImageReward.pt")
    torch.save(image_reward_state(head=CYCLE), folder / "CycleReward.pt")
    return folder


def blip(path, vocabulary=None, **settings):
    """Return a tower of one's own, which `load_tower` would share."""
    return rewards.BlipTower(weights.read(path), vocabulary or path.parent / "vocab.txt", path.name, **settings)


@pytest.fixture(scope="module")
def reward(folder):
    return rewards.ImageReward(blip(folder / "ImageReward.pt"))


@pytest.fixture(scope="module")
def wide(folder):
    return rewards.ImageReward(blip(folder / "ImageReward.pt", dtype=torch.float64))


def pictures(dtype=torch.float32):
    """Two pictures that are resized to 224 x 227: of the 3 columns too many, ImageReward's crop takes 2 on the left."""
    generator = torch.Generator().manual_seed(0)
    return 0.2 + 0.6 * torch.rand((2, 3, 240, 244), generator=generator, dtype=dtype)


def pixels_of(images):
    return Preprocess(rule="laion")(images)


def gradient(reward, images, prompts=PROMPTS):
    images = images.clone().requires_grad_()
    scores = reward(images, prompts)
    return scores.detach(), torch.autograd.grad(scores.sum(), images)[0]


def reference(state, pixels, ids, mask):
    """Return the first text token after both towers, in the file's own names: (B, 128)."""
    timm = pytest.importorskip("timm.models.vision_transformer", reason="comes with open_clip_torch")
    vision = timm.VisionTransformer(224, 16, embed_dim=192, depth=2, num_heads=3, num_classes=0, global_pool="")
    vision.load_state_dict(part(state, "blip.visual_encoder."))
    return text_tower(part(state, "blip.text_encoder."), ids, mask, vision.eval()(pixels))[:, 0]


def part(state, prefix):
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def text_tower(state, ids, mask, patches):
    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def heads(name, x):
        return linear(name, x).unflatten(-1, (2, 64)).transpose(1, 2)

    def attention(name, x, context, mask=None):
        query = heads(f"{name}.self.query", x)
        key, value = heads(f"{name}.self.key", context), heads(f"{name}.self.value", context)
        found = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)
        return norm(f"{name}.output.LayerNorm", x + linear(f"{name}.output.dense", found))

    positions = state["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm("embeddings.LayerNorm", state["embeddings.word_embeddings.weight"][ids] + positions)
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = attention(f"{layer}.attention", x, x, mask[:, None, None].bool())
        x = attention(f"{layer}.crossattention", x, patches)
        inner = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


def head(state, x, activation):
    places = sorted(int(name.split(".")[2]) for name in state if name.startswith("mlp.") and name.endswith("weight"))
    for place in places:
        x = F.linear(x, state[f"mlp.layers.{place}.weight"], state[f"mlp.layers.{place}.bias"])
        x = activation(x) if place != places[-1] else x
    return x[:, 0]


@torch.no_grad()
def test_scores_agree_with_a_reference_in_the_files_own_names(reward):
    state, images = image_reward_state(), pictures()
    ids = torch.tensor([[101, 104, 105, 107, 102] + [0] * 30, [101, 106, 111, 109, 112, 104, 108, 102] + [0] * 27])
    token = reference(state, pixels_of(images), ids, ids > 0)
    expected = (head(state, token, lambda x: x) - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_cycle_reward_has_gelus_in_the_head_and_reads_128_tokens(folder):
    state, images = image_reward_state(head=CYCLE), pictures()
    reward = rewards.CycleReward(blip(folder / "CycleReward.pt"))
    ids = torch.tensor([[101, *[107] * 126, 102]] * 2)
    expected = head(state, reference(state, pixels_of(images), ids, ids > 0), F.gelu)
    torch.testing.assert_close(reward(images, ["cat " * 200] * 2), expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_a_prompt_counts_up_to_its_35th_token(reward):
    """[CLS], 33 words, [SEP]."""
    shorter, cut, longer = (reward(pictures()[:1], ["cat " * words]) for words in (32, 33, 34))
    assert shorter != cut == longer


@torch.no_grad()
def test_the_filling_behind_a_prompt_does_not_count(folder, reward):
    state = image_reward_state()
    state["blip.text_encoder.embeddings.word_embeddings.weight"][0] *= -1
    torch.save(state, folder / "padding.pt")
    changed = rewards.ImageReward(blip(folder / "padding.pt"))
    torch.testing.assert_close(changed(pictures(), PROMPTS), reward(pictures(), PROMPTS))


def test_the_gradient_agrees_with_finite_differences(wide):
    images = pictures(dtype=torch.float64)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, d_images = gradient(wide, images)
    with torch.no_grad():
        difference = wide(images + 1e-5 * direction, PROMPTS) - wide(images - 1e-5 * direction, PROMPTS)
    torch.testing.assert_close((d_images * direction).sum((1, 2, 3)), difference / 2e-5, rtol=1e-5, atol=0)


def test_a_batch_scores_as_its_pictures_alone(reward):
    images = pictures()
    together, d_together = gradient(reward, images)
    alone, d_alone = zip(*(gradient(reward, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)), strict=True)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d_together, torch.cat(d_alone), rtol=1e-3, atol=1e-6)
    assert together[0] != together[1]


def test_ten_ascent_steps_raise_every_score(reward):
    images = pictures()
    before, d_images = gradient(reward, images)
    for _ in range(10):
        images = images + 0.5 * d_images / d_images.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        after, d_images = gradient(reward, images)
    assert (after > before + 0.05).all()


@pytest.mark.parametrize(("dtype", "score", "slope"), [(torch.bfloat16, 0.05, 0.05), (torch.float16, 0.005, 0.01)])
def test_low_precision_towers_err_by_little(folder, reward, dtype, score, slope):
    """Relative error of the gradient's norm; the module's docstring states what was measured at full size."""
    low = rewards.ImageReward(blip(folder / "ImageReward.pt", dtype=dtype))
    expected, d_expected = gradient(reward, pictures())
    found, d_found = gradient(low, pictures())
    assert found.dtype == d_found.dtype == torch.float32
    assert 0 < (found - expected).abs().max() < score
    assert 0 < (d_found - d_expected).norm() / d_expected.norm() < slope


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_memory_is_the_networks_own_or_let_go(folder, dtype):
    """In the file's dtype no weight is copied; in another one all are, or the rest of the file would stay mapped."""
    state = weights.read(folder / "ImageReward.pt")
    places = {weight.untyped_storage().data_ptr() for weight in state.values()}
    module = rewards.BlipTower(state, folder / "vocab.txt", dtype=dtype).module
    shared = [weight.untyped_storage().data_ptr() in places for weight in module.parameters()]
    assert all(shared) if dtype == torch.float32 else not any(shared)


def test_a_gradient_that_is_small_for_float16_survives(folder, reward):
    low = rewards.ImageReward(blip(folder / "ImageReward.pt", dtype=torch.float16))
    _, expected = gradient(lambda images, prompts: 1e-6 * reward(images, prompts), pictures())
    _, found = gradient(lambda images, prompts: 1e-6 * low(images, prompts), pictures())
    assert expected.abs().max() < torch.finfo(torch.float16).tiny
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_reward_made_in_inference_mode_has_a_gradient(folder, wide):
    """In another dtype than the file's, so that the weights are made anew."""
    with torch.inference_mode():
        made = rewards.ImageReward(blip(folder / "ImageReward.pt", dtype=torch.float64))
        scores = made(pictures(), PROMPTS)
    for found, expected in zip(gradient(made, pictures()), gradient(wide, pictures()), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(scores.clone(), wide(pictures(), PROMPTS))


@torch.no_grad()
def test_many_pictures_are_judged_some_at_a_time(reward):
    images, prompts = pictures()[:1].repeat(20, 1, 1, 1), PROMPTS * 10
    sizes, hook = [], lambda module, call: sizes.append(len(call[0]))
    with torch.no_grad():
        handle = reward.tower.module.register_forward_pre_hook(hook)
        found = reward(images, prompts)
        handle.remove()
        expected = reward(images[:2], PROMPTS).repeat(10)
    assert sizes == [16, 4]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_its_own_prompt_wins(reward):
    images = pictures()
    own = replace(reward, prompt=PROMPTS[0])
    torch.testing.assert_close(own(images, [PROMPTS[1]] * 2), reward(images, [PROMPTS[0]] * 2))


def test_prompts_that_are_missing_or_too_few_are_refused(reward):
    with pytest.raises(ValueError, match="ImageReward needs a prompt"):
        reward(pictures())
    with pytest.raises(ValueError, match="1 prompts, .* for 2 pictures"):
        reward(pictures(), PROMPTS[:1])


def test_whoever_manages_the_network_is_asked_before_it_runs(folder):
    reward, log = rewards.ImageReward(blip(folder / "ImageReward.pt")), []
    reward.tower.on_use = lambda memory: log.append("asked")
    reward.tower.module.register_forward_pre_hook(lambda module, inputs: log.append("ran"))
    reward(pictures(), PROMPTS)
    assert log == ["asked", "ran"]


def test_a_file_of_another_model_is_told_what_it_is(folder):
    keys = ("visual.class_embedding", "visual.ln_pre.weight", "token_embedding.weight", "ln_final.weight")
    torch.save({key: torch.zeros(1) for key in keys}, folder / "HPS.pt")
    with pytest.raises(ValueError, match=r"HPS.pt is of the kind 'clip \(open_clip\)'; expected 'ImageReward'"):
        rewards.ImageReward(blip(folder / "HPS.pt"))
    with pytest.raises(ValueError, match="a tower of kind ImageReward.* found CycleReward.pt, of kind CycleReward."):
        rewards.ImageReward(blip(folder / "CycleReward.pt"))
    with pytest.raises(ValueError, match="a tower of kind CycleReward.* found ImageReward.pt, of kind ImageReward."):
        rewards.CycleReward(blip(folder / "ImageReward.pt"))
    with pytest.raises(ValueError, match="needs a tower of kind ImageReward.* found 'ImageReward.pt'"):
        rewards.ImageReward("ImageReward.pt")


@pytest.mark.parametrize(
    ("name", "weight", "found"),
    [
        ("blip.text_encoder.encoder.layer.1.output.dense.bias", None, "Missing key"),
        ("mlp.layers.7.weight", None, "the last layer of mlp"),
        ("blip.visual_encoder.patch_embed.proj.weight", None, "vision.embeddings.patch_embedding.weight"),
        ("blip.visual_encoder.norm2.weight", torch.zeros(192), "Unexpected key"),
        ("blip.visual_encoder.norm.weight", torch.zeros(191), "size mismatch"),
    ],
)
def test_an_incomplete_or_altered_file_is_refused(folder, name, weight, found):
    state = image_reward_state()
    state = {**state, name: weight} if weight is not None else {k: w for k, w in state.items() if k != name}
    torch.save(state, folder / "altered.pt")
    with pytest.raises(ValueError, match=rf"altered.pt is not a whole ImageReward .*{found}"):
        rewards.ImageReward(blip(folder / "altered.pt"))


def test_what_blip_was_trained_with_and_no_score_needs_may_be_absent(folder, reward):
    unused = ("blip.vision_proj", "blip.text_proj", "blip.text_encoder.embeddings.position_ids")
    state = {name: weight for name, weight in image_reward_state().items() if not name.startswith(unused)}
    torch.save(state, folder / "pruned.pt")
    pruned = rewards.ImageReward(blip(folder / "pruned.pt"))
    torch.testing.assert_close(pruned(pictures(), PROMPTS), reward(pictures(), PROMPTS))


def test_a_missing_vocabulary_says_where_to_get_it_and_where_to_put_it(folder, tmp_path):
    (tmp_path / "ImageReward.pt").symlink_to(folder / "ImageReward.pt")
    with pytest.raises(FileNotFoundError, match=f"vocab.txt in {tmp_path}. Take vocab.txt .* google-bert"):
        rewards.ImageReward(rewards.load_tower(tmp_path / "ImageReward.pt"))
    with pytest.raises(FileNotFoundError, match="no vocabulary at .*words.txt; expected bert-base-uncased's"):
        rewards.ImageReward(blip(tmp_path / "ImageReward.pt", vocabulary=tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="words.txt is no vocabulary .*; expected bert-base-uncased's"):
        rewards.ImageReward(blip(tmp_path / "ImageReward.pt", vocabulary=tmp_path / "words.txt"))


def test_the_vocabulary_is_found_under_its_usual_names(folder, tmp_path):
    (tmp_path / "bert-base-uncased").mkdir()
    usual = write_vocabulary(tmp_path / "bert-base-uncased" / "vocab.txt")
    assert find_vocabulary([tmp_path / "nowhere", tmp_path, folder]) == usual
    assert find_vocabulary([tmp_path / "nowhere", folder]) == folder / "vocab.txt"


@pytest.mark.parametrize(
    ("layout", "found"), [({"lines": 28996}, "28996 words with .CLS. at 101"), ({"cls": 2}, "30522 .* .CLS. at 2")]
)
def test_another_models_vocabulary_is_refused(folder, tmp_path, layout, found):
    """28,996 words are bert-base-cased's, whose special tokens have the same numbers."""
    path = write_vocabulary(tmp_path / "vocab.txt", **layout)
    with pytest.raises(ValueError, match=f"{found}; expected 30522 with .CLS. at 101"):
        rewards.ImageReward(blip(folder / "ImageReward.pt", vocabulary=path))

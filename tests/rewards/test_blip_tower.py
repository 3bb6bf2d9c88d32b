"""The tower of ImageReward: its file, its vocabulary, what it reads of a prompt."""

import pytest
import tiny_rewards
import torch
from blip_reference import blip, pictures
from comfyui_dno import rewards
from comfyui_dno.rewards import weights
from comfyui_dno.rewards.blip_tower import find_vocabulary
from tiny_image_reward import image_reward_state, write_vocabulary

PROMPTS = ["a black cat", "white owls, a dog"]


@pytest.fixture(scope="module")
def reward(blip_files):
    return rewards.ImageReward(blip(blip_files / "ImageReward.pt"))


@torch.no_grad()
def test_a_prompt_counts_up_to_its_35th_token(reward):
    """[CLS], 33 words, [SEP]."""
    shorter, cut, longer = (reward(pictures()[:1], ["cat " * words]) for words in (32, 33, 34))
    assert shorter != cut == longer


@torch.no_grad()
def test_what_is_cut_of_a_long_prompt_is_said_once(blip_files, caplog):
    tower = blip(blip_files / "ImageReward.pt")
    tower.judge(pictures()[:1], ["Cat " * 33])
    assert not caplog.messages
    for _ in range(2):
        tower.judge(pictures()[:1], ["Cat " * 33 + "dog"])
    found = "ImageReward.pt reads 33 tokens of a text, and this one has 34; only this counts of it: "
    assert caplog.messages == [found + " ".join(["cat"] * 33)]


@torch.no_grad()
def test_the_filling_behind_a_prompt_does_not_count(blip_files, reward):
    state = image_reward_state()
    state["blip.text_encoder.embeddings.word_embeddings.weight"][0] *= -1
    tiny_rewards.save(state, blip_files / "padding.pt")
    changed = rewards.ImageReward(blip(blip_files / "padding.pt"))
    torch.testing.assert_close(changed(pictures(), PROMPTS), reward(pictures(), PROMPTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_files_memory_is_the_networks_own_or_let_go(blip_files, dtype):
    """In the file's dtype no weight is copied; in another one all are, or the rest of the file would stay mapped."""
    state = weights.read(blip_files / "ImageReward.pt")
    places = {weight.untyped_storage().data_ptr() for weight in state.values()}
    module = rewards.BlipTower(state, blip_files / "vocab.txt", dtype=dtype).module
    shared = [weight.untyped_storage().data_ptr() in places for weight in module.parameters()]
    assert all(shared) if dtype == torch.float32 else not any(shared)


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


def test_whoever_manages_the_network_is_asked_before_it_runs(blip_files):
    reward, log = rewards.ImageReward(blip(blip_files / "ImageReward.pt")), []
    reward.tower.on_use = lambda memory: log.append("asked")
    reward.tower.module.register_forward_pre_hook(lambda module, inputs: log.append("ran"))
    reward(pictures(), PROMPTS)
    assert log == ["asked", "ran"]


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
def test_an_incomplete_or_altered_file_is_refused(blip_files, name, weight, found):
    state = image_reward_state()
    state = {**state, name: weight} if weight is not None else {k: w for k, w in state.items() if k != name}
    tiny_rewards.save(state, blip_files / "altered.pt")
    with pytest.raises(ValueError, match=rf"altered.pt is not a whole ImageReward .*{found}"):
        rewards.ImageReward(blip(blip_files / "altered.pt"))


def test_what_blip_was_trained_with_and_no_score_needs_may_be_absent(blip_files, reward):
    unused = ("blip.vision_proj", "blip.text_proj", "blip.text_encoder.embeddings.position_ids")
    state = {name: weight for name, weight in image_reward_state().items() if not name.startswith(unused)}
    tiny_rewards.save(state, blip_files / "pruned.pt")
    pruned = rewards.ImageReward(blip(blip_files / "pruned.pt"))
    torch.testing.assert_close(pruned(pictures(), PROMPTS), reward(pictures(), PROMPTS))


def test_a_missing_vocabulary_says_where_to_get_it_and_where_to_put_it(blip_files, tmp_path):
    (tmp_path / "ImageReward.pt").symlink_to(blip_files / "ImageReward.pt")
    with pytest.raises(FileNotFoundError, match=f"vocab.txt in {tmp_path}. Take vocab.txt .* google-bert"):
        rewards.ImageReward(rewards.load_tower(tmp_path / "ImageReward.pt"))
    with pytest.raises(FileNotFoundError, match="no vocabulary at .*words.txt; expected bert-base-uncased's"):
        rewards.ImageReward(blip(tmp_path / "ImageReward.pt", vocabulary=tmp_path / "words.txt"))
    (tmp_path / "words.txt").write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="words.txt is no vocabulary .*; expected bert-base-uncased's"):
        rewards.ImageReward(blip(tmp_path / "ImageReward.pt", vocabulary=tmp_path / "words.txt"))


def test_the_vocabulary_is_found_under_its_usual_names(blip_files, tmp_path):
    (tmp_path / "bert-base-uncased").mkdir()
    usual = write_vocabulary(tmp_path / "bert-base-uncased" / "vocab.txt")
    assert find_vocabulary([tmp_path / "nowhere", tmp_path, blip_files]) == usual
    assert find_vocabulary([tmp_path / "nowhere", blip_files]) == blip_files / "vocab.txt"


@pytest.mark.parametrize(
    ("layout", "found"), [({"lines": 28996}, "28996 words with .CLS. at 101"), ({"cls": 2}, "30522 .* .CLS. at 2")]
)
def test_another_models_vocabulary_is_refused(blip_files, tmp_path, layout, found):
    """28,996 words are bert-base-cased's, whose special tokens have the same numbers."""
    path = write_vocabulary(tmp_path / "vocab.txt", **layout)
    with pytest.raises(ValueError, match=f"{found}; expected 30522 with .CLS. at 101"):
        rewards.ImageReward(blip(blip_files / "ImageReward.pt", vocabulary=path))

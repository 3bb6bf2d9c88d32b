"""Tiny files of the reward models, each written once for all tests of rewards."""

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.rewards.towers import load_tower
from tiny_image_reward import image_reward_state, write_vocabulary

KINDS = {"HPS": "hps", "PickScore": "pickscore", "CLIPScore L": "clip_l", "CLIPScore H": "clip_h_open_clip"}


class Files(dict):
    """Kind -> path, of `tiny_rewards.FILES`; each is written when it is first asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, kind):
        self[kind] = tiny_rewards.write(kind, self.folder)
        return self[kind]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def blip_files(tmp_path_factory):
    """A folder with ImageReward.pt, CycleReward.pt and the vocabulary that both need."""
    folder = tmp_path_factory.mktemp("blip")
    write_vocabulary(folder / "vocab.txt")
    tiny_rewards.save(image_reward_state(), folder / "ImageReward.pt")
    tiny_rewards.save(image_reward_state(head=(0, 2, 4, 6, 8)), folder / "CycleReward.pt")
    return folder


@pytest.fixture(scope="session")
def build(files):
    """build(name, ..) -> the reward of that name on its tiny twin; towers stay loaded for the session."""
    kept = []

    def build(name, dtype=torch.float32, tower=None, **settings):
        tower = tower or load_tower(files[KINDS.get(name, "clip_l")], dtype=dtype)
        kept.append(tower)
        if name == "Aesthetic":
            return rewards.Aesthetic(tower, files["aesthetic"], **settings)
        if name == "Similarity":
            return rewards.Similarity(tower, tiny_rewards.pictures(seed=5), **settings)
        if name == "Directions":
            return rewards.Directions(tower, "a watercolour", "a photo", **settings)
        return getattr(rewards, name.split()[0])(tower, **settings)

    return build

"""LAION's predictor: its five layers as one, and what is refused in their place; see test_clip.py for its scores."""

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import score
from comfyui_dno.rewards import weights
from fetched_files import LAION_HEAD
from torch.nn import functional as F


def test_the_score_is_what_the_five_layers_say_one_after_another(files, build):
    reward, images = build("Aesthetic"), tiny_rewards.pictures()
    embeds = F.normalize(reward.tower.embed(images, "laion"), dim=-1).double()
    layers = tiny_rewards.aesthetic_head()
    layers.load_state_dict(weights.read(files["aesthetic"]))
    expected = layers.double().layers(embeds)[:, 0].float()
    # float32 sums of 768 products, of which the largest is near 1, err by 768 * 2**-24 at most.
    torch.testing.assert_close(score(reward, images), expected, rtol=1e-4, atol=5e-5)


def test_an_aesthetic_head_of_other_sizes_is_refused(files, build, tmp_path):
    state = weights.read(files["aesthetic"])
    tiny_rewards.save(state | {"layers.0.weight": torch.ones(1024, 1024)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head.pth has layers of shapes .*\(1024, 1024\).*expected"):
        rewards.Aesthetic(build("CLIPScore L").tower, tmp_path / "head.pth")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["layers.4.weight", "layers.7.bias"])
def test_an_aesthetic_head_that_is_not_finite_is_refused(files, build, tmp_path, name, value):
    state = weights.read(files["aesthetic"])
    tiny_rewards.save(state | {name: torch.full_like(state[name], value)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="head.pth holds NaN or infinity; expected finite numbers. Download it again"):
        rewards.Aesthetic(build("CLIPScore L").tower, tmp_path / "head.pth")


@pytest.mark.slow  # it may have to be fetched
def test_the_published_head_gives_the_numbers_that_its_five_layers_give(build):
    """LAION's own file: 5.2366 + w . e of a unit embedding e, |w| = 17.9956, and so scores of 4.5 to 7."""
    tower, images = build("Aesthetic").tower, tiny_rewards.pictures()
    reward = rewards.Aesthetic(tower, LAION_HEAD.path())
    embeds = F.normalize(tower.embed(images, "laion"), dim=-1)
    layers = tiny_rewards.aesthetic_head()
    layers.load_state_dict(torch.load(LAION_HEAD.path(), map_location="cpu", weights_only=True))
    layers = layers.double().layers
    # float32 sums of 768 products, 18 together at most, err by 768 * 18 * 2**-24 at most.
    torch.testing.assert_close(score(reward, images).double(), layers(embeds.double())[:, 0], rtol=0, atol=1e-3)
    with torch.no_grad():
        constant = layers(torch.zeros(1, 768, dtype=torch.float64)).item()
        weight = layers(torch.eye(768, dtype=torch.float64))[:, 0] - constant
    assert constant == pytest.approx(5.236646, abs=1e-6) and weight.norm().item() == pytest.approx(17.9956, abs=1e-4)

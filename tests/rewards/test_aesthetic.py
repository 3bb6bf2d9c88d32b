"""LAION's predictor: its five layers as one, and what is refused in their place; see test_clip.py for its scores."""

import pytest
import tiny_rewards
import torch
from comfyui_dno import rewards
from comfyui_dno.core.scoring import score
from comfyui_dno.rewards import weights
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

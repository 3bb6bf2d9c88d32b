"""Full-size reward files take little more memory than they are long."""

import pytest
import reward_models
import torch


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype, least", [("ImageReward", torch.float32, 1.7e9), ("HPS", torch.bfloat16, 1.9e9)]
)
def test_a_full_size_file_takes_its_own_size(name, dtype, least):
    """Loaded within 1.3 times its size: mapped, where the network keeps the file's dtype, or else converted."""
    figures = reward_models.of_model(name, [dtype])
    size, found = figures["file_bytes"], figures[str(dtype).removeprefix("torch.")]
    assert size > least
    kept = size if reward_models.MODELS[name].dtype == dtype else 0
    assert found["mapped_bytes"] < kept + 0.05 * size, found
    assert found["load_bytes"] + kept < 1.3 * size, found
    assert found["score_bytes"] + kept < 1.6 * size, found

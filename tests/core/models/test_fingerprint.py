"""What tells one model's weights from another's."""

import torch
from comfyui_dno import core
from tiny_models import TinyDenoiser


def test_the_fingerprint_knows_the_model_whatever_its_precision_and_names():
    network = TinyDenoiser().float()
    renamed = torch.nn.ModuleList([network.outer, network.inner])
    assert core.fingerprint(renamed) == core.fingerprint(network)
    assert core.fingerprint(network.half()) == core.fingerprint(TinyDenoiser().float())
    assert core.fingerprint(TinyDenoiser(seed=1)) != core.fingerprint(TinyDenoiser(seed=0))


def test_weights_of_two_dimensions_do_not_count_as_a_lora_changes_them():
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)).requires_grad_(False)
    before = core.fingerprint(network)
    network[0].weight += 1
    assert core.fingerprint(network) == before
    network[0].bias += 0.01
    assert core.fingerprint(network) != before
    assert len(before) == 16 and int(before, 16) >= 0


def test_a_bfloat16_copy_counts_as_another_model():
    network = TinyDenoiser().float()
    assert core.fingerprint(TinyDenoiser().bfloat16()) != core.fingerprint(network)

"""ComfyUI's layers whose weights are outside of the device, on the pretend device: their gradients are exact.

What was cast is overwritten when a layer has run, as ComfyUI's streams may do; expected is the gradient by PyTorch of
the same layer on the device.
"""

import pytest
from comfy_server import report_of

LAYERS = [
    "Linear", "Conv1d", "Conv2d", "Conv2d, even kernel and stride", "Conv2d, tiling", "Conv2d, same", "Conv3d",
    "ConvTranspose1d", "ConvTranspose2d", "GroupNorm", "LayerNorm", "RMSNorm", "float16 Linear", "float16 Conv2d",
]  # fmt: skip


@pytest.fixture(scope="module")
def report(pretend):
    return report_of("recast_in_comfyui.py")


@pytest.mark.parametrize("layer", LAYERS)
def test_the_gradient_is_that_of_the_layer_on_the_device(report, layer):
    assert report[layer]["outside"] == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_a_graph_keeps_the_weight_that_it_ran_with_where_hooks_change_it(report, layer):
    assert report[layer]["hooked"] == 0


@pytest.mark.parametrize("layer", LAYERS)
def test_a_lora_that_is_applied_when_the_layer_is_called_is_in_the_gradient(report, layer):
    """Up to the rounding of a few sums in float32, whose unit is 6e-8: the expected gradient is scaled afterwards."""
    assert report[layer]["LoRA"] < 1e-6


@pytest.mark.parametrize("layer", LAYERS)
def test_the_layer_is_as_before_afterwards(report, layer):
    assert report[layer]["restored"]


def test_the_layer_is_as_before_after_an_error(report):
    assert report["after an error"]


def test_the_gradient_is_right_where_a_model_casts_a_layers_weight_itself(report):
    assert report["by the model"] == 0

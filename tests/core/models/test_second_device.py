"""Whole models on a second device that has no float64: the CPU's pictures, and a search from a noise on the CPU."""

import contextlib

import pytest
import tiny_pipelines as tiny
import torch
from comfyui_dno import core, rewards
from comfyui_dno.__main__ import main
from comfyui_dno.core.models.pipelines import from_pipeline
from diffusers import LCMScheduler
from second_device import without_float64

MODELS = {
    "embedded": lambda device: core.load_embedded(["black cat", "red owl"], steps=2, device=device),
    "sd": lambda device: from_tiny(tiny.stable_diffusion(), device),
    "sdxl": lambda device: from_tiny(tiny.stable_diffusion_xl(), device),
    "lcm": lambda device: from_tiny(tiny.latent_consistency(LCMScheduler(**tiny.SD_BETAS, steps_offset=1)), device),
    "sd3": lambda device: from_tiny(tiny.stable_diffusion_3(), device),
    "flux": lambda device: from_tiny(tiny.flux(), device),
}


def allowed(device, model=""):
    """Return a context in which the pretend device has no float64, as MPS; diffusers' Flux asks for MPS by its name."""
    refuses = device.type == "pretend" and model != "flux"
    return without_float64() if refuses else contextlib.nullcontext()


def from_tiny(pipeline, device):
    return from_pipeline(pipeline, ["a white duck", "black cat"], steps=2, height=16, width=16, device=device)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_samples_and_is_searched_as_on_the_cpu(device, model):
    with allowed(device, model):
        ours = MODELS[model](device)
        noise = ours.randn(0).to("cpu")
        found = core.optimize(ours, rewards.Brightness(), noise, iterations=1)
    expected = core.optimize(MODELS[model]("cpu"), rewards.Brightness(), noise, iterations=1)
    assert found.images.device == device
    torch.testing.assert_close(found.images.cpu(), expected.images, rtol=1e-3, atol=1e-3)


def test_a_noise_from_a_file_is_sampled_where_the_model_is(device, tmp_path):
    """Files hold tensors of the CPU: to replay one nobody has to move it."""
    ours = MODELS["sd"](device)
    noise, expected = ours.randn(0), ours.sample(ours.randn(0))
    noise.save(tmp_path / "noise.safetensors")
    loaded = core.Noise.load(tmp_path / "noise.safetensors")
    assert loaded.initial.device.type == "cpu"
    images, vjp = ours.pullback(loaded)
    assert torch.equal(ours.sample(loaded), expected) and torch.equal(images, expected)
    assert vjp(torch.ones_like(images)).initial.device == device


def test_a_scheduler_that_diffusers_has_moved_needs_no_float64_there(device):
    """`add_noise`, which pictures made from pictures begin with, leaves a scheduler's tensors on the device."""
    pipeline = tiny.stable_diffusion(LCMScheduler(**tiny.SD_BETAS, steps_offset=1))
    pipeline.scheduler.alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(device)
    with allowed(device):
        images = (ours := from_tiny(pipeline, device)).sample(ours.randn(0))
    expected = from_tiny(tiny.stable_diffusion(LCMScheduler(**tiny.SD_BETAS, steps_offset=1)), "cpu")
    torch.testing.assert_close(images.cpu(), expected.sample(expected.randn(0)), rtol=1e-3, atol=1e-3)


def test_the_command_runs_on_it(device, tmp_path):
    options = ["run", "--prompt", "black cat", "--steps", "1", "--iterations", "1", "--out", str(tmp_path)]
    with allowed(device):
        assert main([*options, "--device", str(device)]) == 0
    assert core.Noise.load(tmp_path / "noise.safetensors").initial.device.type == "cpu"

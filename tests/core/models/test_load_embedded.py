"""The embedded model as a sample map: the same pictures as diffusers' own loop, on every device and dtype."""

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.models.embedded.networks import build_unet, build_vae, encode_prompts, scheduler

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def diffusers_images(prompts, noise, steps, cfg, eta):
    """Plain diffusers: DDIMScheduler, classifier-free guidance, AutoencoderKL."""
    unet, vae, ddim = build_unet(), build_vae(), scheduler()
    context = encode_prompts([""] * len(prompts) + prompts)
    ddim.set_timesteps(steps)
    x = noise.initial
    for index, timestep in enumerate(ddim.timesteps):
        uncond, cond = unet(torch.cat([x, x]), timestep, encoder_hidden_states=context).sample.chunk(2)
        output = uncond + cfg * (cond - uncond)
        step_noise = noise.injected[index] if index < len(noise.injected) else torch.zeros_like(x)
        x = ddim.step(output, timestep, x, eta=eta, variance_noise=step_noise).prev_sample
    return vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5


@torch.no_grad()
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_pictures_equal_diffusers_own(eta):
    prompts = ["black cat", "red owl"]
    noise_map = core.load_embedded(prompts, steps=5, cfg=3.0, eta=eta)
    noise = noise_map.randn(0)
    expected = diffusers_images(prompts, noise, 5, 3.0, eta)
    torch.testing.assert_close(noise_map.sample(noise), expected, rtol=0, atol=5e-4)
    assert noise_map.prompts == prompts and expected.shape == (2, 3, 128, 128)


@torch.no_grad()
def test_guidance_one_leaves_the_negative_out():
    noise_map = core.load_embedded("black cat", negative="white", steps=2, cfg=1.0)
    other = core.load_embedded("black cat", negative="", steps=2, cfg=1.0)
    torch.testing.assert_close(noise_map.sample(noise_map.randn(0)), other.sample(other.randn(0)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype, least", [(torch.float32, 0.9999), (torch.bfloat16, 0.97)])
def test_the_gradient_points_the_same_way_on_every_device_and_dtype(device, dtype, least):
    def gradient(device, dtype):
        noise_map = core.load_embedded("black cat", steps=4, device=device, dtype=dtype)
        problem = core.Problem(noise_map, rewards.Brightness())
        return problem.gradient(noise_map.randn(0).to(device))[1].flat().cpu()

    cosine = torch.cosine_similarity(gradient(device, dtype), gradient("cpu", torch.float32))
    assert cosine.item() > least


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_raises_the_brightness(device):
    noise_map = core.load_embedded(["black cat", "red owl"], steps=4, device=device, keep_graphs=True)
    noise = noise_map.randn(1).to(device)
    watch = (rewards.Consistency(device=device),)
    result = core.optimize(noise_map, rewards.Brightness(), noise, core.GradientAscent(0.05), iterations=3, watch=watch)
    for item in (0, 1):
        scores = result.history.column("score", item)
        assert scores[-1] > scores[0]
        assert 0 <= result.history.column("watch/consistency", item)[0] <= 1

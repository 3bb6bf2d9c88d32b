"""Tiny random pipelines of every class: the map's picture against the pipeline's own."""

import math

import diffusers
import pytest
import tiny_pipelines as tiny
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.models.pipelines import from_pipeline, load_pipeline
from comfyui_dno.core.noise import Noise
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
PROMPTS = ["a white duck", "black cat"]
HEIGHT, WIDTH = 16, 24
EULER = tiny.SD_BETAS | {"timestep_spacing": "leading", "steps_offset": 1}
LCM = LCMScheduler(**tiny.SD_BETAS, steps_offset=1)
FAMILIES = {
    "sd": tiny.stable_diffusion,
    "sdxl": tiny.stable_diffusion_xl,
    "sd3": tiny.stable_diffusion_3,
    "flux": tiny.flux,
}


def map_of(pipeline, prompt=PROMPTS, steps=5, **settings):
    return from_pipeline(pipeline, prompt, steps=steps, height=HEIGHT, width=WIDTH, **settings)


def own_picture(pipeline, noise, prompt=PROMPTS, steps=5, **arguments):
    """The picture of the pipeline itself, clamped as it clamps, from the same x_T."""
    latents = noise.initial
    if isinstance(pipeline, diffusers.FluxPipeline):
        latents = pipeline._pack_latents(latents, *latents.shape)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt, height=HEIGHT, width=WIDTH, num_inference_steps=steps, latents=latents, output_type="pt", **arguments
    ).images


def check_equal(images, expected):
    assert expected.std() > 0.05 and ((expected > 0) & (expected < 1)).float().mean() > 0.9, "too flat to compare"
    torch.testing.assert_close(images.clamp(0, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cfg", [5.0, 0.5, 0.0])
@pytest.mark.parametrize("device", DEVICES)
def test_zero_iterations_equal_the_pipeline(family, cfg, device):
    pipeline = FAMILIES[family]()
    noise_map = map_of(pipeline, cfg=cfg, eta=0.0, device=device)
    noise = noise_map.randn(0).to(device)
    result = core.optimize(noise_map, rewards.Brightness(), noise, iterations=0)
    check_equal(result.images, own_picture(pipeline, noise, guidance_scale=cfg))
    assert noise_map.prompts == PROMPTS and noise_map.shape == (2, 4, HEIGHT // 2, WIDTH // 2)


@pytest.mark.parametrize("build, given", [
    (tiny.stable_diffusion, tiny.embeddings()),
    (tiny.stable_diffusion_xl, tiny.embeddings(tiny.WIDTH, width=2 * tiny.WIDTH)),
    (tiny.stable_diffusion_xl, tiny.embeddings(tiny.WIDTH, width=2 * tiny.WIDTH, negative=False)),
    (tiny.stable_diffusion_3, tiny.embeddings(2 * tiny.WIDTH, width=2 * tiny.WIDTH)),
    (tiny.flux, tiny.embeddings(tiny.WIDTH, negative=False)),
])  # fmt: skip
def test_a_pipeline_without_text_encoders_takes_embeddings(build, given):
    pipeline = build(with_text=False)
    noise_map = map_of(pipeline, None, cfg=4.0, eta=0.0, **given)
    noise = noise_map.randn(0)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, None, guidance_scale=4.0, **given))
    assert noise_map.prompts is None


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_a_negative_prompt_equals_the_pipelines(family):
    pipeline = FAMILIES[family]()
    noise_map = map_of(pipeline, negative="blurry", cfg=5.0, eta=0.0)
    noise = noise_map.randn(0)
    expected = own_picture(pipeline, noise, negative_prompt=["blurry"] * 2, guidance_scale=5.0)
    check_equal(noise_map.sample(noise), expected)
    assert (noise_map.sample(noise) - map_of(pipeline, cfg=5.0, eta=0.0).sample(noise)).abs().max() > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scheduler", [
    tiny.ddim(),
    tiny.ddim("v_prediction"),
    tiny.ddim("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", set_alpha_to_one=True),
    tiny.ddim(beta_schedule="linear", timestep_spacing="trailing"),
], ids=["sd1", "sd2-v", "zero-snr", "linear"])  # fmt: skip
def test_the_picture_equals_ddim_at_every_eta(scheduler, eta, monkeypatch):
    """diffusers draws its variance noise by `randn_tensor`; here it is handed the map's."""
    pipeline = tiny.stable_diffusion(scheduler)
    noise_map = map_of(pipeline, cfg=3.0, eta=eta)
    noise = noise_map.randn(1)
    hand_out(noise, "ddim", monkeypatch)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, guidance_scale=3.0, eta=eta))


def hand_out(noise, module, monkeypatch):
    """Let a scheduler of diffusers draw the noise's injected noises, then zeros where they do not matter."""
    draws = iter([*noise.injected, torch.zeros_like(noise.initial)])
    module = getattr(diffusers.schedulers, f"scheduling_{module}")
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws))


@pytest.mark.parametrize("name", ["PNDM", "DDPM", "DPMSolverMultistep", "UniPCMultistep"])
def test_other_many_step_schedulers_are_taken_as_ddim_of_their_config(name):
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(tiny.ddim("v_prediction").config)
    pipeline = tiny.stable_diffusion(scheduler)
    noise_map = map_of(pipeline, cfg=3.0, eta=0.0)
    noise = noise_map.randn(0)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, guidance_scale=3.0))


@pytest.mark.parametrize("config", [
    EULER,
    EULER | {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    EULER | {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    EULER | {"final_sigmas_type": "sigma_min"},
], ids=["leading", "trailing-v", "karras", "sigma-min"])  # fmt: skip
def test_euler_keeps_its_own_sigmas_and_timesteps(config):
    pipeline, told = tiny.stable_diffusion_xl(EulerDiscreteScheduler(**config)), []
    noise_map = map_of(pipeline, cfg=3.0, eta=0.0)
    noise = noise_map.randn(0)
    pipeline.unet.register_forward_pre_hook(lambda unet, inputs: told.append(float(inputs[1].flatten()[0])))
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, guidance_scale=3.0))
    assert told[:5] == told[5:]


def test_at_eta_one_the_picture_equals_euler_ancestrals(monkeypatch):
    """The scheduler of SDXL-Turbo."""
    scheduler = EulerAncestralDiscreteScheduler(**tiny.SD_BETAS, timestep_spacing="trailing")
    pipeline = tiny.stable_diffusion_xl(scheduler)
    noise_map = map_of(pipeline, steps=4, cfg=0.0, eta=1.0)
    noise = noise_map.randn(0)
    hand_out(noise, "euler_ancestral_discrete", monkeypatch)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, steps=4, guidance_scale=0.0))


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.latent_consistency])
def test_one_step_equals_the_lcm_scheduler(build):
    pipeline = build(LCM)
    noise_map = map_of(pipeline, steps=1, cfg=8.0)
    noise = noise_map.randn(0)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, steps=1, guidance_scale=8.0))


def test_several_steps_of_lcm_are_ddim_on_its_timesteps():
    """Eq. (12) of DDIM in its own coordinates, written out."""
    pipeline = tiny.latent_consistency(LCM)
    noise_map = map_of(pipeline, steps=4, cfg=8.0, eta=0.0)
    noise = noise_map.randn(0)
    timesteps = [999, 759, 499, 259]
    alphas = LCM.alphas_cumprod[timesteps].tolist() + [1.0]
    text = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    told = pipeline.get_guidance_scale_embedding(torch.full((2,), 7.0), embedding_dim=8)
    x = noise.initial
    with torch.no_grad():
        for timestep, alpha, target in zip(timesteps, alphas[:-1], alphas[1:], strict=True):
            eps = pipeline.unet(x, timestep, encoder_hidden_states=text, timestep_cond=told).sample
            x_0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
            x = math.sqrt(target) * x_0 + math.sqrt(1 - target) * eps
        expected = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(noise_map.sample(noise), expected, rtol=0, atol=1e-4)


def test_flux_schnell_has_no_guidance_input():
    pipeline = tiny.flux(diffusers.FlowMatchEulerDiscreteScheduler(), guidance_embeds=False)
    noise_map = map_of(pipeline, cfg=0.0, eta=0.0)
    noise = noise_map.randn(0)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, guidance_scale=0.0))


def test_a_vae_with_latent_mean_and_deviation_decodes_as_in_the_pipeline():
    pipeline = tiny.stable_diffusion_xl(latents_mean=[0.3, -0.2, 0.1, 0.5], latents_std=[0.8, 1.2, 0.6, 1.1])
    noise_map = map_of(pipeline, cfg=3.0, eta=0.0)
    noise = noise_map.randn(0)
    check_equal(noise_map.sample(noise), own_picture(pipeline, noise, guidance_scale=3.0))


def test_steps_guidance_and_size_default_to_the_pipelines():
    noise_map = from_pipeline(tiny.stable_diffusion(), "black cat")
    assert (noise_map.schedule.steps, noise_map.denoise.cfg, noise_map.shape) == (50, 7.5, (1, 4, 8, 8))
    noise_map = from_pipeline(tiny.stable_diffusion_3(), "black cat")
    assert (noise_map.schedule.steps, noise_map.denoise.cfg, noise_map.shape) == (28, 7.0, (1, 4, 8, 8))


def test_fifty_steps_of_stable_diffusions_own_config_have_the_known_sigmas():
    """Of its scheduler_config.json; against the published sigmas."""
    scheduler = diffusers.PNDMScheduler(**tiny.SD_BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    schedule = map_of(tiny.stable_diffusion(scheduler), steps=50).schedule
    for index, sigma in {0: 13.12041, 1: 11.67605, 49: 0.04131, 50: 0.02917}.items():
        assert schedule.sigmas[index] == pytest.approx(sigma, abs=1e-4)


def test_sixty_one_trailing_steps_are_sixty_one():
    """diffusers makes 62 of them, the last at -1, by a rounding error."""
    assert map_of(tiny.stable_diffusion(tiny.ddim(timestep_spacing="trailing")), steps=61).schedule.steps == 61


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_gradient_equals_a_directional_difference(family, eta):
    pipeline = FAMILIES[family]()
    noise_map = map_of(pipeline, steps=3, cfg=3.0, eta=eta)
    problem = core.Problem(noise_map, lambda images, prompts: images.double().square().mean((1, 2, 3)))
    # In float32, whose rounding of the two ends is a part in a thousand of their difference.
    assert problem.check_gradient(noise_map.randn(0)).max() < 1e-2
    assert not any(parameter.requires_grad for parameter in pipeline.vae.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_candidates_are_sampled_with_their_own_prompts(family):
    noise_map = map_of(FAMILIES[family](), steps=2, cfg=3.0)
    first, second = noise_map.randn(0), noise_map.randn(5)
    both = Noise(torch.cat([first.initial, second.initial]), torch.cat([first.injected, second.injected], dim=1))
    expected = torch.cat([noise_map.sample(first), noise_map.sample(second)])
    torch.testing.assert_close(noise_map.sample(both), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_guidance_takes_one_call_of_the_network(family):
    pipeline = FAMILIES[family]()
    network = pipeline.unet if family in ("sd", "sdxl") else pipeline.transformer
    noise_map, calls = map_of(pipeline, steps=3, cfg=3.0), []
    network.register_forward_pre_hook(lambda *arguments: calls.append(1))
    noise_map.sample(noise_map.randn(0))
    assert len(calls) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_what_guidance_is_made_of_makes_the_guided_estimate(family):
    noise_map, alone = (map_of(FAMILIES[family](), cfg=cfg) for cfg in (3.0, 1.0))
    x, sigma = noise_map.randn(0).initial, torch.full((2,), noise_map.schedule.sigmas[2])
    cond, uncond = noise_map.unguided(x, sigma)
    if family == "flux":  # whose cfg is told to the network
        assert uncond is None
        torch.testing.assert_close(cond, noise_map.denoise(x, sigma))
        return
    torch.testing.assert_close(cond, alone.denoise(x, sigma))
    assert (cond - uncond).abs().max() > 1e-3
    torch.testing.assert_close(noise_map.denoise(x, sigma), uncond + 3 * (cond - uncond), rtol=1e-4, atol=1e-5)
    assert alone.unguided(x, sigma)[1] is None


@pytest.mark.parametrize("scheduler", [tiny.ddim(), EulerDiscreteScheduler(**EULER)], ids=["ddim", "euler"])
def test_between_the_steps_the_network_is_told_its_own_timestep_of_a_level(scheduler):
    pipeline, timestep, told = tiny.stable_diffusion(scheduler), 433, []
    noise_map = map_of(pipeline, cfg=3.0)
    pipeline.unet.register_forward_pre_hook(lambda network, arguments: told.append(arguments[1]))
    alpha = tiny.ddim().alphas_cumprod[timestep]
    noise_map.unguided(noise_map.randn(0).initial, ((1 - alpha) / alpha).sqrt().expand(2))
    assert told[0].tolist() == [timestep] * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_networks_run_in_half_precision_and_the_steps_in_the_noises_own(family):
    pipeline = FAMILIES[family]()
    noise = map_of(pipeline, cfg=3.0).randn(0)
    expected = map_of(pipeline, cfg=3.0).sample(noise)
    pipeline.to(torch.bfloat16)
    noise_map = map_of(pipeline, cfg=3.0)
    found = noise_map.sample(noise)
    assert found.dtype == noise_map.latent(noise).dtype == torch.float32
    assert 0 < (found - expected).abs().mean() < 0.02
    _, vjp = noise_map.pullback(noise)
    assert vjp(torch.ones_like(found)).initial.dtype == torch.float32


@pytest.mark.parametrize("build, force_upcast, copied", [
    (tiny.stable_diffusion_xl, True, True),
    (tiny.stable_diffusion_xl, False, False),
    (tiny.stable_diffusion, True, False),
])  # fmt: skip
def test_the_vae_of_sdxl_is_copied_in_float32_where_it_overflows_in_float16(build, force_upcast, copied):
    pipeline = build()
    pipeline.vae.register_to_config(force_upcast=force_upcast)
    pipeline.vae.half()
    latent = torch.randn(2, 4, HEIGHT // 2, WIDTH // 2, generator=torch.Generator().manual_seed(0))
    found = map_of(pipeline).decode(latent)
    assert pipeline.vae.dtype == torch.float16
    exact = pipeline.vae.float().decode(latent / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.equal(found, exact) == copied


@pytest.mark.parametrize("build", [tiny.stable_diffusion, tiny.stable_diffusion_3], ids=["sd", "sd3-without-t5"])
def test_a_saved_pipeline_is_loaded_from_its_folder(build, tmp_path):
    pipeline = build()
    pipeline.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model", dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    noise_map = map_of(load_pipeline(tmp_path / "model"), steps=2, cfg=3.0)
    noise = noise_map.randn(0)
    torch.testing.assert_close(noise_map.sample(noise), map_of(pipeline, steps=2, cfg=3.0).sample(noise))

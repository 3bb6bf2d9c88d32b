from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.models.embedded.networks import build_unet, encode_prompts
from comfyui_dno.experiments import tuned_models as tuned

pytest.importorskip("peft", reason="the tuned models need the extra 'experiments'")

PROMPTS = ["black cat", "red dog"]


def small(name, updates, batch=4):
    return replace(tuned.TUNINGS[name], updates=updates, batch=batch)


def weights(unet):
    return [p.detach().clone() for name, p in unet.named_parameters() if "lora" in name]


def test_a_fresh_lora_changes_no_picture_and_alone_has_gradients():
    unet = tuned.tunable_unet()
    plain, with_lora = (core.load_embedded("black cat", steps=2, unet=each) for each in (None, unet))
    noise = plain.randn(0)
    torch.testing.assert_close(with_lora.sample(noise), plain.sample(noise), rtol=0, atol=1e-6)
    assert all(("lora" in name) == p.requires_grad for name, p in unet.named_parameters())


def test_pictures_made_with_a_graph_are_those_that_the_map_samples():
    sample_map = core.load_embedded(PROMPTS, steps=3, unet=tuned.tunable_unet())
    noise = sample_map.randn(1)
    images = tuned.sampled(sample_map, noise, differentiated=2)
    assert images.requires_grad
    torch.testing.assert_close(images.detach(), sample_map.sample(noise), rtol=0, atol=1e-5)


def test_before_any_update_an_actions_probability_is_that_of_the_noise_it_drew():
    sample_map = core.load_embedded(PROMPTS, steps=4, unet=tuned.tunable_unet())
    noise = sample_map.randn(2)
    states = tuned._states(sample_map, noise)
    for index in range(3):
        found = tuned._log_probability(sample_map, states, index)
        torch.testing.assert_close(found, tuned.log_p_before(noise, index), rtol=1e-4, atol=1e-5)


def test_an_actions_probability_falls_with_the_distance_from_its_mean_as_a_gaussians_does():
    sample_map = core.load_embedded("black cat", steps=4)
    states = tuned._states(sample_map, sample_map.randn(3))
    c_noise = sample_map.coefficients(0)[2]
    x, following = states[0], states[1]
    mean = sample_map.step(x, sample_map.denoise(x, x.new_full((1,), sample_map.schedule.sigmas[0])), 0,
                           sample_map.randn(0).map(torch.zeros_like))  # fmt: skip
    normal = torch.distributions.Normal(mean, c_noise)
    shifted = following + 0.3
    expected = (normal.log_prob(shifted) - normal.log_prob(following)).mean()
    found = tuned._log_probability(sample_map, [x, shifted], 0) - tuned._log_probability(sample_map, states, 0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_against_its_equal_the_model_errs_as_much():
    new, old = (core.load_embedded(PROMPTS, steps=4, unet=tuned.tunable_unet()) for _ in range(2))
    latents = torch.randn(2, 2, *new.shape[1:], generator=torch.Generator().manual_seed(0))
    errors = tuned._errors(new, old, latents)
    assert errors.shape == (2, 2)
    assert errors.abs().max() < 1e-5


def test_the_error_of_spin_is_that_of_the_networks_own_v():
    sample_map = core.load_embedded("black cat", steps=4, cfg=1.0)
    sigma = torch.tensor([2.0])
    latent, noise = torch.randn(2, 1, *sample_map.shape[1:], generator=torch.Generator().manual_seed(1))
    c_in = (1 + sigma.square()).rsqrt()
    unet, condition = build_unet(), encode_prompts(["black cat"])
    timestep = sample_map.denoise.denoise.timestep(sigma)
    predicted = unet(c_in * (latent + sigma * noise), timestep, encoder_hidden_states=condition).sample
    # v = alpha eps - sigma' x0 with alpha = c_in and sigma' = sigma c_in, as the network was trained.
    expected = (predicted - c_in * (noise - sigma * latent)).square().mean()
    found = tuned.v_error(sample_map, latent, noise, sigma)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", tuned.TUNINGS)
def test_tuning_moves_the_weights_of_the_lora_and_draws_the_same_from_a_seed(name, monkeypatch):
    monkeypatch.setattr(tuned, "CHOSEN_OF", 2)
    monkeypatch.setattr(tuned, "STEPS", 4)
    before = torch.get_rng_state()
    first, again = (tuned.tune(small(name, 2), rewards.Brightness(), PROMPTS, seed=5)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    moved = [(a - b).abs().max() for a, b in zip(weights(first), weights(tuned.tunable_unet()), strict=True)]
    assert max(moved) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


def test_alignprop_raises_the_reward_of_pictures_that_it_has_not_seen(monkeypatch):
    monkeypatch.setattr(tuned, "STEPS", 4)
    unet, seconds = tuned.tune(replace(small("alignprop", 4), lr=1e-2), rewards.Brightness(), PROMPTS)
    maps = [core.load_embedded(PROMPTS, steps=tuned.STEPS, cfg=tuned.CFG, unet=each) for each in (unet, None)]
    noise = maps[0].randn(77)
    after, before = (rewards.Brightness()(each.sample(noise)).mean() for each in maps)
    assert after > before + 0.05
    assert seconds > 0

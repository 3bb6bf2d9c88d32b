"""One SDE step against diffusers' DDIM, the papers' values and an analytic mixture."""

import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.schedule import scaled_linear_alphas_cumprod
from diffusers import DDIMScheduler


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_a_run_equals_diffusers_ddim(eta, prediction, spacing):
    """The same network output, noises and timesteps, in VP coordinates there and in sigma space here."""
    leading = spacing == "leading"
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=not leading, prediction_type=prediction, timestep_spacing=spacing,
        steps_offset=1 if leading else 0,
    )
    scheduler.alphas_cumprod = scaled_linear_alphas_cumprod()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0] if leading else torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(20)
    schedule = core.Schedule.ddim(scheduler.alphas_cumprod, 20, spacing, float(scheduler.final_alpha_cumprod))
    noise = core.Noise.randn((2, 3, 4, 4), schedule.injected, seed=1).to(torch.float64)

    def network(x_vp):
        return torch.tanh(x_vp.flip(-1)) * 0.7

    x_vp = noise.initial
    for index, timestep in enumerate(scheduler.timesteps):
        step_noise = noise.injected[index] if index < schedule.injected else torch.zeros_like(x_vp)
        x_vp = scheduler.step(network(x_vp), timestep, x_vp, eta=eta, variance_noise=step_noise).prev_sample
    predict = core.DiscreteDenoiser(
        lambda x, timestep, condition: network(x), scheduler.alphas_cumprod, "eps" if prediction == "epsilon" else "v"
    )
    used = noise if eta > 0 else core.Noise(noise.initial, noise.injected[:0])
    found = core.SampleMap(lambda x, sigma: predict(x, sigma, None), schedule, (2, 3, 4, 4), eta=eta).latent(used)
    alpha = 1 / math.sqrt(1 + schedule.sigmas[-1] ** 2)
    torch.testing.assert_close(found * alpha, x_vp, rtol=1e-9, atol=1e-9)


def test_stable_diffusions_fifty_leading_steps_have_the_known_sigmas():
    alphas = scaled_linear_alphas_cumprod()
    schedule = core.Schedule.ddim(alphas, 50, "leading", alphas[0])
    expected = {0: 13.12041, 1: 11.67605, 24: 1.62369, 48: 0.14146, 49: 0.04131, 50: 0.02917}
    for index, sigma in expected.items():
        assert schedule.sigmas[index] == pytest.approx(sigma, abs=1e-5)
    assert schedule.injected == 50
    assert core.Schedule.ddim(alphas, 50).injected == 49


def test_the_flow_step_from_nine_to_eight_tenths_has_the_known_noise_levels():
    assert core.step_coefficients(0.9, 0.8, 1.0, "flow")[2] == pytest.approx(0.717, abs=1e-3)
    assert core.step_coefficients(0.9, 0.8, 1.0, "flow_rf")[2] == pytest.approx(0.631, abs=1e-3)


@pytest.mark.parametrize("family", ["vp", "flow"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_a_step_keeps_the_marginal_of_a_known_x0(family, eta):
    """For D = x0 exactly, x_next has mean alpha x0 and standard deviation sigma_next whatever eta is."""
    sigma, sigma_next = 0.7, 0.4
    c_x, c_denoised, c_noise = core.step_coefficients(sigma, sigma_next, eta, family)
    alpha, alpha_next = (1, 1) if family == "vp" else (1 - sigma, 1 - sigma_next)
    assert c_x * alpha + c_denoised == pytest.approx(alpha_next)
    assert math.hypot(c_x * sigma, c_noise) == pytest.approx(sigma_next)


@pytest.mark.parametrize("family, sigmas", [
    ("vp", [14.0 * (0.02 / 14.0) ** (i / 199) for i in range(200)] + [0.0]),
    ("flow", [1 - i / 200 for i in range(201)]),
    ("flow_rf", [1 - i / 200 for i in range(201)]),
])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_exact_denoiser_of_a_mixture_samples_the_mixture(family, sigmas, eta):
    means, weights, spread = torch.tensor([-1.0, 0.2, 1.1]), torch.tensor([0.3, 0.5, 0.2]), 0.1

    def denoise(x, sigma):
        alpha = (1 if family == "vp" else 1 - sigma).view(-1, 1) if family != "vp" else torch.ones(len(x), 1)
        variance = alpha**2 * spread**2 + sigma.view(-1, 1) ** 2
        responsibility = (weights.log() - (x - alpha * means) ** 2 / (2 * variance)).softmax(dim=1)
        posterior = means + alpha * spread**2 / variance * (x - alpha * means)
        return (responsibility * posterior).sum(dim=1, keepdim=True)

    schedule = core.Schedule(sigmas, family)
    noise_map = core.SampleMap(denoise, schedule, (20000, 1), eta=eta)
    found = noise_map.latent(noise_map.randn(2)).flatten().sort().values
    component = torch.multinomial(weights, 20000, True, generator=torch.Generator().manual_seed(1))
    truth = means[component] + spread * torch.randn(20000, generator=torch.Generator().manual_seed(2))
    assert (found - truth.sort().values).abs().mean() < 0.03


def test_the_step_to_zero_returns_the_denoised_and_needs_no_noise():
    x, denoised = torch.randn(1, 2), torch.randn(1, 2)
    assert core.sde_step(x, denoised, 0.5, 0.0) is denoised
    with pytest.raises(ValueError, match="injects noise"):
        core.sde_step(x, denoised, 0.5, 0.2)


@pytest.mark.parametrize("family", ["flow", "flow_rf"])
def test_the_first_flow_step_at_sigma_one_is_safe(family):
    assert all(math.isfinite(c) for c in core.step_coefficients(1.0, 0.9, 1.0, family))


@pytest.mark.parametrize("arguments, message", [
    (((1.0,),), "has no step"),
    (((1.0, 2.0, 0.0),), "never rise"),
    (((2.0, 0.0, 0.0),), "but for the last"),
    (((2.0, 1.0, 0.0), "flow"), "flow sigmas lie in"),
    (((2.0, 1.0, 0.0), "edm"), "unknown family"),
])
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        core.Schedule(*arguments)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_outside_zero_to_one_is_refused(eta):
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        core.step_coefficients(1.0, 0.5, eta)

"""Denoisers of discrete timesteps, against the x0 estimates of diffusers' DDIM."""

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.schedule import scaled_linear_alphas_cumprod
from diffusers import DDIMScheduler

ALPHAS = scaled_linear_alphas_cumprod()


def sigma_of(timestep):
    return ((1 - ALPHAS[timestep]) / ALPHAS[timestep]).sqrt().item()


@pytest.mark.parametrize("prediction, theirs", [("eps", "epsilon"), ("v", "v_prediction")])
@pytest.mark.parametrize("timestep", [1, 21, 501, 981])
def test_the_x0_estimate_is_that_of_diffusers(prediction, theirs, timestep):
    generator = torch.Generator().manual_seed(timestep)
    x, output = torch.randn((2, 2, 4, 4, 4), generator=generator, dtype=torch.float64).unbind()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=theirs, clip_sample=False
    )
    scheduler.set_timesteps(1000)
    expected = scheduler.step(output, timestep, x * ALPHAS[timestep].sqrt()).pred_original_sample
    asked = []

    def network(x_in, timesteps, condition):
        asked.append((x_in, timesteps, condition))
        return output

    found = core.DiscreteDenoiser(network, ALPHAS, prediction)(x, torch.full((2,), sigma_of(timestep)), "a cat")
    # diffusers keeps its alphas in float32: 6e-8 of each, times up to 13 where the estimate divides by sqrt(alpha).
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    ((x_in, timesteps, condition),) = asked
    torch.testing.assert_close(x_in, x * ALPHAS[timestep].sqrt(), rtol=1e-6, atol=1e-6)
    assert timesteps.tolist() == [timestep] * 2 and condition == "a cat"


def test_a_sigma_between_two_timesteps_takes_the_nearer_in_log_sigma():
    denoise = core.DiscreteDenoiser(None, ALPHAS)
    low, high = sigma_of(500), sigma_of(501)
    sigmas = torch.tensor([low * (high / low) ** share for share in (0.0, 0.4, 0.6, 1.0)])
    assert denoise.timestep(sigmas).tolist() == [500, 500, 501, 501]
    assert denoise.timestep(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]


def test_guidance_is_the_sum_of_the_unconditional_and_cfg_times_the_difference():
    conditions = torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]])
    rows = []

    def denoise(x, sigma, condition):
        rows.append(len(x))
        return x * condition.view(-1, 1, 1, 1)

    x, sigma = torch.ones(4, 1, 2, 2), torch.ones(4)
    found = core.Guided(denoise, *conditions, cfg=3.0)(x, sigma)
    # Two candidates for each of two pictures, candidate-major: 10 + 3 (1 - 10), 20 + 3 (2 - 20).
    assert found[:, 0, 0, 0].tolist() == [-17.0, -34.0, -17.0, -34.0] and rows == [8]
    assert core.Guided(denoise, *conditions, cfg=1)(x, sigma)[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert rows == [8, 4]
    cond, uncond = core.Guided(denoise, *conditions, cfg=1).unguided(x, sigma)
    assert cond[:, 0, 0, 0].tolist() == [1.0, 2.0, 1.0, 2.0] and uncond[:, 0, 0, 0].tolist() == [10.0, 20.0] * 2


def test_unknown_predictions_are_refused():
    with pytest.raises(ValueError, match="unknown prediction 'x0'; expected 'eps' or 'v'"):
        core.DiscreteDenoiser(None, ALPHAS, "x0")

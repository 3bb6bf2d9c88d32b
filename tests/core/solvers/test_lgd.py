"""Loss-guided diffusion against closed forms and against a loop written out here."""

import math

import pytest
import torch
from comfyui_dno import core
from tiny_models import SIGMAS, sample_map

SHAPE = (2, 3, 2, 2)


def linear_map(family, sigmas=None, shape=SHAPE):
    """D = 0.6 x: the guidance is known for linear and quadratic rewards."""
    return core.SampleMap(lambda x, sigma: 0.6 * x, core.Schedule(sigmas or SIGMAS[family], family), shape)


def noise_of(noise_map):
    return noise_map.randn(0).to(torch.float64)


def guided(noise_map, noise, gradient, scale):
    """LGD as it is usually written: the denoised is shifted by sigma^2 / alpha times the guidance."""
    schedule = noise_map.schedule
    x = noise_map.start(noise.initial)
    for index, (sigma, sigma_next) in enumerate(schedule.intervals):
        denoised, alpha = 0.6 * x, 1.0 if schedule.family == "vp" else 1.0 - sigma
        injected = noise.injected[index] if index < len(noise.injected) else None
        if injected is not None and alpha > 0:
            spread = sigma / math.hypot(alpha, sigma)
            denoised = denoised + sigma**2 / alpha * scale * gradient(denoised, spread)
        x = core.sde_step(x, denoised, sigma, sigma_next, 1.0, injected, schedule.family)
    return x


@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
def test_a_linear_reward_guides_as_the_closed_form_says(family):
    direction = torch.linspace(-1, 1, 12, dtype=torch.float64).view(SHAPE[1:])
    noise_map = linear_map(family)
    noise = noise_of(noise_map)
    expected = guided(noise_map, noise, lambda denoised, spread: 0.6 * direction, 0.1)
    result = core.optimize(
        noise_map, lambda i, p: (i * direction).sum(dim=(1, 2, 3)), noise, core.LGD(3, 0.1), iterations=1, floor=0.0
    )
    torch.testing.assert_close(result.images, expected)
    torch.testing.assert_close(noise_map.sample(result.noise), expected)
    assert (torch.tensor(result.history.best_row["score"]) > torch.tensor(result.history.rows[0]["score"])).all()


@pytest.mark.parametrize("scale, tolerance", [(1.0, 0.04), (0.25, 0.02)])
def test_many_samples_give_the_expectation_of_a_curved_reward(scale, tolerance):
    """ln E over N(D, s^2) of exp(-a |x0 - c|^2 / 2) has the gradient -a (D - c) / (1 + a s^2) by D, and D = 0.6 x."""
    noise_map = linear_map("vp", (1.0, 0.5, 0.0), (2, 3, 1, 1))
    noise = noise_of(noise_map)
    expected = guided(noise_map, noise, lambda denoised, s: -0.6 * (denoised - 2) / (1 + scale * s**2), scale)
    problem = core.Problem(noise_map, lambda i, p: -(i - 2).square().sum(dim=(1, 2, 3)) / 2)
    moved, _ = core.LGD(samples=20000, scale=scale).step(problem, noise)
    # A mean over samples; four times what was measured.
    torch.testing.assert_close(noise_map.sample(moved), expected, rtol=tolerance, atol=tolerance)
    few, _ = core.LGD(samples=1, scale=scale).step(problem, noise)
    assert (noise_map.sample(few) - expected).abs().max() > 0.05  # one sample feels no curvature


def test_a_decoder_in_half_precision_guides_as_well():
    """Entries of this gradient are about 1e-9, nothing in float16 if they are not scaled."""
    weights = torch.full((3,), 0.5)

    def decode(latent, dtype):
        small = (latent * weights[:, None, None].to(latent)).to(dtype)
        return torch.nn.functional.interpolate(small, scale_factor=16).to(latent.dtype)

    moved = {}
    for dtype in (torch.float32, torch.float16):
        noise_map = linear_map("vp")
        noise_map.decode = lambda latent, dtype=dtype: decode(latent, dtype)
        noise = noise_map.randn(0)
        found, _ = core.LGD(50).step(core.Problem(noise_map, lambda i, p: 1e-3 * i.mean(dim=(1, 2, 3))), noise)
        moved[dtype] = (found.injected - noise.injected).norm()
    assert moved[torch.float32] > 0
    torch.testing.assert_close(moved[torch.float16], moved[torch.float32], rtol=0.02, atol=0)


def test_only_what_is_optimised_is_guided():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    noise_map = sample_map(mask=mask, part="last 2")
    noise = noise_of(noise_map)
    moved, _ = core.LGD().step(core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3))), noise)
    changed = moved.injected != noise.injected
    assert torch.equal(moved.initial, noise.initial) and not changed[0].any()
    assert changed[1:, ..., :3].all() and not changed[..., 3:].any()


def test_the_ode_cannot_be_guided_this_way():
    noise_map = sample_map(eta=0.0)
    with pytest.raises(ValueError, match="expected eta > 0"):
        core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise_of(noise_map), core.LGD(), iterations=1)


@pytest.mark.parametrize("settings", [{"samples": 0}, {"scale": 0.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected 1 or more, and more than 0"):
        core.LGD(**settings)


def test_each_pictures_guidance_is_its_own_in_half_precision():
    """A picture whose gradient is a million times larger must not round its neighbour's to zero."""

    def reward(images, prompts):
        scale = torch.tensor([1.0, 1e-6]).repeat(len(images) // 2).to(images)
        return images.mean(dim=(1, 2, 3)) * scale

    noise_map = sample_map()
    decode = noise_map.decode

    class Half(torch.autograd.Function):
        """The identity, whose gradient passes through float16."""

        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient.half().to(gradient)

    noise, change = noise_map.randn(0).to(torch.float64), {}
    for name, between in {"exact": lambda images: images, "half": Half.apply}.items():
        noise_map.decode = lambda latent, between=between: between(decode(latent))
        moved, _ = core.LGD(samples=2).step(core.Problem(noise_map, reward), noise)
        change[name] = (moved.injected - noise.injected)[0]
    for found, expected in zip(change["half"], change["exact"], strict=True):
        torch.testing.assert_close(found, expected, rtol=0.01, atol=float(1e-3 * expected.abs().max()))


def test_a_sample_without_a_score_has_no_say():
    """Of eight pictures that the guidance asks about at once, one cannot be judged: the others guide."""
    noise_map = linear_map("vp")

    def judged(images, prompts):
        scores = images.mean(dim=(1, 2, 3))
        spoilt = torch.zeros_like(scores)
        if len(images) > SHAPE[0]:
            spoilt[0] = math.nan
        return scores + spoilt

    noise = noise_of(noise_map)
    found = core.optimize(noise_map, judged, noise, core.LGD(samples=8, scale=5.0), iterations=1)
    assert found.history.column("score")[-1] > found.history.column("score")[0] + 0.01
    assert not any("ended" in warning for warning in found.history.warnings)

"""Tilt against closed forms: what is added is white, the law of the noise stays, and only what may move moves."""

import math

import pytest
import torch
from comfyui_dno import core
from tiny_models import SIGMAS, decode, sample_map

SHAPE = (2, 3, 6, 5)


def linear_map(family="vp", shape=SHAPE, **settings):
    """D = 0.6 x, and pictures that are their latents: a linear reward's gradient has the reward's own direction."""
    return core.SampleMap(lambda x, sigma: 0.6 * x, core.Schedule(SIGMAS[family], family), shape, **settings)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(direction):
    return lambda images, prompts: (images * direction).flatten(1).sum(dim=1)


def mean_pixel(images, prompts):
    return images.flatten(1).mean(dim=1)


def noise_of(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def tilted(noise_map, reward, noise, solver):
    """The noise of the tilted run."""
    return solver.fresh().step(core.Problem(noise_map, reward), noise)[0]


def white(direction):
    """The same phases at every amplitude 1, written with the full transform."""
    spectrum = torch.fft.fft2(direction, norm="ortho")
    return torch.fft.ifft2(spectrum / spectrum.abs(), norm="ortho").real


@pytest.mark.parametrize("family", ["vp", "flow", "flow_rf"])
@pytest.mark.parametrize("through", ["model", "decoder"])
def test_a_linear_reward_tilts_every_noise_as_the_closed_form_says(family, through):
    direction, noise_map = normal(*SHAPE[1:]), linear_map(family)
    noise = noise_of(noise_map)
    found = tilted(noise_map, linear(direction), noise, core.Tilt(0.3, through))
    expected = math.sqrt(1 - 0.09) * noise.injected + 0.3 * white(direction)
    torch.testing.assert_close(found.injected, expected)
    assert torch.equal(found.initial, noise.initial)


def test_the_gradient_goes_through_the_model_or_past_it():
    """Of D(x) = x A the gradient by x is A's transpose of that by D, which has other phases."""
    matrix, direction = normal(5, 5), normal(3, 6, 5, seed=1)
    noise_map = core.SampleMap(lambda x, sigma: x @ matrix, core.Schedule(SIGMAS["vp"]), SHAPE)
    noise = noise_of(noise_map)
    for through, expected in (("model", direction @ matrix.T), ("decoder", direction)):
        found = tilted(noise_map, linear(direction), noise, core.Tilt(0.3, through))
        torch.testing.assert_close(found.injected[0], math.sqrt(0.91) * noise.injected[0] + 0.3 * white(expected))


def test_what_is_added_has_a_flat_spectrum_and_unit_variance():
    gradient = normal(*SHAPE) * torch.linspace(0.01, 5, 5, dtype=torch.float64)  # anything but white
    added = core.solvers.tilt.tilted(torch.zeros(SHAPE).double(), gradient, 0.5, torch.ones(SHAPE, dtype=torch.bool))
    torch.testing.assert_close(torch.fft.fft2(added, norm="ortho").abs(), torch.full(SHAPE, 0.5).double())
    torch.testing.assert_close(added.square().mean(dim=(-2, -1)), torch.full(SHAPE[:2], 0.25).double())


def test_the_frames_of_a_video_are_whitened_together():
    """A gradient that is the same in every frame must not add a noise that is the same in every frame."""
    gradient = normal(1, 2, 1, 6, 5).expand(1, 2, 4, 6, 5)
    noise = normal(1, 2, 4, 6, 5, seed=1)
    found = core.solvers.tilt.tilted(noise, gradient, 0.9, torch.ones_like(noise, dtype=torch.bool))
    spectra = [torch.fft.fftn(each, dim=(2, 3, 4), norm="ortho") for each in (found, noise)]
    # It has no frequency of time but 0: all others stay the noise's own.
    torch.testing.assert_close(spectra[0][:, :, 1:], spectra[1][:, :, 1:])
    u = spectra[0][:, :, 0] - math.sqrt(1 - 0.81) * spectra[1][:, :, 0]
    torch.testing.assert_close(u.abs(), torch.full_like(u.abs(), 0.9))


def test_a_frequency_that_the_reward_says_nothing_about_keeps_the_noises_own():
    """Mean brightness has a constant gradient: of each channel the mean alone is decided, by its sign."""
    noise = normal(*SHAPE)
    found = core.solvers.tilt.tilted(noise, torch.ones(SHAPE).double(), 0.3, torch.ones(SHAPE, dtype=torch.bool))
    means = [each.mean(dim=(-2, -1), keepdim=True) for each in (found, noise)]
    torch.testing.assert_close(found - means[0], noise - means[1])
    torch.testing.assert_close(means[0], math.sqrt(0.91) * means[1] + 0.3 / math.sqrt(30))
    still = core.solvers.tilt.tilted(noise, torch.zeros(SHAPE).double(), 0.3, torch.ones(SHAPE, dtype=torch.bool))
    torch.testing.assert_close(still, noise)


def test_tilted_noise_keeps_the_variance_and_the_spectrum_of_true_noise():
    """Over 4,000 noises and gradients: bounds are four standard errors of true noise's own."""
    count = 4000
    noise, gradient = normal(count, 1, 8, 8), normal(count, 1, 8, 8, seed=1) ** 3
    found = core.solvers.tilt.tilted(noise, gradient, 0.5, torch.ones_like(noise, dtype=torch.bool))
    assert abs(found.mean()) < 4 / math.sqrt(64 * count)
    assert (found.square().mean(dim=0) - 1).abs().max() < 4 * math.sqrt(2 / count)
    power = torch.fft.fft2(found, norm="ortho").abs().square().mean(dim=0)
    assert (power - 1).abs().max() < 4 * math.sqrt(2 / count)


def test_tilted_noise_is_as_probable_as_true_noise():
    """Of true noise P is below .01 once in about 800; of 40 tilted ones at most 2 would be chance."""
    noise_map = core.SampleMap(lambda x, sigma: torch.tanh(x), core.Schedule(SIGMAS["vp"]), (40, 4, 16, 16))
    direction = normal(4, 16, 16)
    found = tilted(noise_map, linear(direction), noise_of(noise_map), core.Tilt(0.3))
    assert (core.noise_probability(found.flat()) < core.P_SUSPICIOUS).sum() <= 2


def test_a_tilted_run_scores_higher_and_is_an_ordinary_noises_run():
    noise_map = linear_map(decode=decode)
    noise = noise_of(noise_map)
    for through in ("model", "decoder"):
        result = core.optimize(noise_map, mean_pixel, noise, core.Tilt(0.4, through), iterations=1, floor=0.0)
        assert (torch.tensor(result.history.rows[1]["score"]) > torch.tensor(result.history.rows[0]["score"])).all()
        torch.testing.assert_close(noise_map.sample(result.noise), result.images)
        assert result.history.rows[1]["score"] == mean_pixel(result.images, None).tolist()


def test_a_tilted_run_costs_a_call_a_step_and_no_gradient_of_the_model_through_the_decoder():
    calls = []

    def denoise(x, sigma):
        calls.append(x.requires_grad)
        return 0.6 * x

    noise_map = core.SampleMap(denoise, core.Schedule(SIGMAS["vp"]), SHAPE)
    noise, reward = noise_of(noise_map), linear(normal(*SHAPE[1:]))
    for through, with_graph in (("decoder", [False] * 4), ("model", [True] * 3 + [False])):
        calls.clear()
        core.optimize(noise_map, reward, noise, core.Tilt(0.3, through), iterations=1)
        start, run, check = calls[:4], calls[4:8], calls[8:]
        assert run == with_graph and start == check == [False] * 4, calls  # the last evaluation samples nothing anew


def test_a_tilted_run_is_kept_though_the_time_is_spent_with_it():
    noise_map = linear_map(decode=decode)
    result = core.optimize(noise_map, mean_pixel, noise_of(noise_map), core.Tilt(0.4), iterations=1, seconds=0.0)
    start, tilted_run = result.history.rows
    assert result.history.stopped == "the time budget of 0.0 s is spent" and tilted_run["score"] > start["score"]
    torch.testing.assert_close(mean_pixel(result.images, None).tolist(), tilted_run["score"])


def test_masked_entries_stay_and_the_others_keep_their_variance():
    mask = torch.zeros(1, 1, 6, 5)
    mask[..., :3] = 1
    noise_map = linear_map(mask=mask)
    noise, direction = noise_of(noise_map), normal(*SHAPE[1:])
    found = tilted(noise_map, linear(direction), noise, core.Tilt(0.3))
    assert torch.equal(found.injected[..., 3:], noise.injected[..., 3:])
    added = (found.injected - math.sqrt(0.91) * noise.injected)[..., :3]
    torch.testing.assert_close(added.square().mean(dim=(-2, -1)), torch.full((3, *SHAPE[:2]), 0.09).double())


def test_another_picture_of_the_batch_makes_no_difference():
    noise_map, alone = sample_map(batch=2), sample_map(batch=1)
    noise = noise_of(noise_map)
    found = tilted(noise_map, mean_pixel, noise, core.Tilt(0.3))
    for item in range(2):
        torch.testing.assert_close(
            found.item(item).flat(), tilted(alone, mean_pixel, noise.item(item), core.Tilt()).flat()
        )


@pytest.mark.parametrize(
    "settings, part, moved",
    [
        ({}, "all", [True, True, True]),
        ({}, "last 2", [False, True, True]),
        ({"every": 2}, "all", [True, False, True]),
        ({"start": 0.5}, "all", [False, False, True]),
        ({"stop": 0.3}, "all", [True, False, False]),
    ],
)
def test_only_the_chosen_steps_are_tilted(settings, part, moved):
    noise_map = linear_map(part=part)
    noise = noise_of(noise_map)
    found = tilted(noise_map, linear(normal(*SHAPE[1:])), noise, core.Tilt(0.3, **settings))
    assert [not torch.equal(a, b) for a, b in zip(found.injected, noise.injected, strict=True)] == moved


def test_of_several_strengths_each_picture_keeps_its_best():
    """The first picture's reward rises with the strength, the second's falls."""
    target = normal(*SHAPE[1:]) * 2

    def reward(images, prompts):
        sign = torch.tensor([1.0, -1.0]).to(images)
        # Seen as itself for the gradient; as its negative when the finished run is scored.
        return linear(target)(images, prompts) * (1.0 if images.requires_grad else sign)

    noise_map = linear_map()
    noise = noise_of(noise_map)
    found = tilted(noise_map, reward, noise, core.Tilt(strengths=(0.6, 0.1, 0.3)))
    one = {k: tilted(noise_map, reward, noise, core.Tilt(k)) for k in (0.1, 0.6)}
    assert torch.equal(found.item(0).flat(), one[0.6].item(0).flat())
    assert torch.equal(found.item(1).flat(), one[0.1].item(1).flat())


def test_a_strength_whose_noise_is_too_improbable_loses_to_a_weaker_one():
    """Four numbers a channel are few enough for all means to be pushed the same way."""
    noise_map, direction = linear_map(shape=(1, 64, 2, 2)), normal(64, 2, 2).abs()
    noise = noise_of(noise_map)
    problem = core.Problem(noise_map, linear(direction), best=core.problem.Best(floor=math.log(core.P_SUSPICIOUS)))
    found, _ = core.Tilt(strengths=(0.05, 0.9)).fresh().step(problem, noise)
    strong, weak = (tilted(noise_map, linear(direction), noise, core.Tilt(k)) for k in (0.9, 0.05))
    assert torch.minimum(*problem.log_probabilities(strong)) < problem.best.floor
    assert problem.evaluate(strong).scores > problem.evaluate(weak).scores
    assert torch.equal(found.flat(), weak.flat())


def test_each_further_iteration_tilts_new_noise():
    noise_map = linear_map(shape=(1, 4, 16, 16))
    seen = []
    core.optimize(
        noise_map, linear(normal(4, 16, 16)), noise_of(noise_map), core.Tilt(0.3), iterations=3,
        callback=lambda evaluation, best: seen.append(evaluation.noise.flat()),
    )  # fmt: skip
    # Noises that lean the same way by 0.3 correlate by 0.09, those that are tilted from one another by 0.95.
    correlation = torch.corrcoef(torch.cat(seen))
    assert (correlation[1, 2:].abs() < 0.2).all() and correlation[0, 1] > 0.9


def test_a_reward_without_gradient_takes_an_estimated_one():
    def reward(images, prompts):
        return mean_pixel(images.detach(), prompts)

    reward.differentiable = False
    noise_map = linear_map(decode=decode)
    noise = noise_of(noise_map)
    with pytest.raises(ValueError, match="is not differentiable"):
        core.optimize(noise_map, reward, noise, core.Tilt(), iterations=1)
    solver = core.Tilt(0.4, "decoder", estimator=core.Hybrid1(q=32))
    history = core.optimize(noise_map, reward, noise, solver, iterations=1, floor=0.0).history
    assert (torch.tensor(history.rows[1]["score"]) > torch.tensor(history.rows[0]["score"])).all()


def test_a_cheaper_decoder_guides_and_the_full_one_decodes():
    noise_map = sample_map()
    noise, guided = noise_of(noise_map), []

    def cheap(latent):
        guided.append(latent)
        return latent * 0.6 + 0.5

    solver = core.Tilt(0.4, guide_decode=cheap)
    result = core.optimize(noise_map, mean_pixel, noise, solver, iterations=1, floor=0.0)
    assert len(guided) == 3 and result.images.shape[-1] == 12
    torch.testing.assert_close(noise_map.sample(result.noise), result.images)


def test_small_gradients_tilt_as_much_as_large_ones():
    noise_map = sample_map()
    noise = noise_map.randn(0)
    noise_map.denoise.float()
    large, small = (
        tilted(noise_map, lambda i, p, scale=scale: scale * mean_pixel(i, p), noise, core.Tilt(0.3)).flat()
        for scale in (1.0, 1e-20)
    )
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"part": "initial"}])
def test_without_a_noise_to_lean_nothing_runs(settings):
    def denoise(x, sigma):
        raise AssertionError("sampled")

    noise_map = core.SampleMap(denoise, core.Schedule(SIGMAS["vp"]), SHAPE, **settings)
    with pytest.raises(ValueError, match=r"expected eta > 0, two steps or more, a part with injected noises"):
        core.optimize(noise_map, mean_pixel, noise_of(noise_map), core.Tilt(), iterations=1)


@pytest.mark.parametrize("solver", [core.Tilt(), core.LGD()])
def test_another_sampler_is_refused_before_anything_is_sampled(solver):
    def euler(model, x, sigmas, noise_sampler, callback):
        for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
            x = x + (sigma_next / sigma - 1) * (x - model(x, sigma.expand(len(x))))
        return x

    schedule = core.Schedule(SIGMAS["vp"])
    traits = core.try_sampler(euler, schedule.sigmas)
    calls = []
    noise_map = core.SamplerMap(lambda x, sigma: calls.append(x), schedule, SHAPE, sampler=euler, traits=traits)
    with pytest.raises(ValueError, match=rf"{solver.name} changes the steps .*Take the sampler input .* away"):
        core.optimize(noise_map, mean_pixel, noise_of(noise_map), solver, iterations=1)
    assert not calls


def test_where_the_denoised_is_judged_the_last_noise_is_left_alone():
    """A schedule that ends above 0 injects noise in its last step too, which nobody sees where denoised is judged."""
    schedule = core.Schedule((8.0, 3.0, 1.2, 0.5))
    for judged, moved in ((True, [True, True, False]), (False, [True, True, True])):
        noise_map = core.SampleMap(lambda x, sigma: 0.6 * x, schedule, SHAPE, judge_denoised=judged)
        noise = noise_of(noise_map)
        result = core.optimize(noise_map, linear(normal(*SHAPE[1:])), noise, core.Tilt(), iterations=1, floor=0.0)
        changed = result.noise.injected != noise.injected
        assert changed.flatten(1).any(dim=1).tolist() == moved
        torch.testing.assert_close(noise_map.sample(result.noise), result.images)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strength": 1.0}, r"expected a number in \(0, 1\)"),
        ({"strengths": (0.2, 0.0)}, r"expected a number in \(0, 1\)"),
        ({"strength": math.nan}, r"expected a number in \(0, 1\)"),
        ({"through": "vae"}, "expected 'model' or 'decoder'"),
        ({"start": 0.5, "stop": 0.5}, "expected 0 <= start < stop <= 1"),
        ({"every": 0}, "expected 1 or more"),
        ({"estimator": core.Hybrid2()}, r"expected Exact\(\) or Hybrid1\(\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        core.Tilt(**settings)

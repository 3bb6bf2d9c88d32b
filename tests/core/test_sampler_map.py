"""Samplers of k-diffusion's kind as the map: their gradients against differences, and what a trial finds out."""

import contextlib
import dataclasses
import gc
import itertools
import math
import weakref

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.sampler_map import SamplerPullback
from tiny_models import SIGMAS, TinyDenoiser, decode, sample_map


def pairs(sigmas):
    return list(zip(sigmas[:-1], sigmas[1:], strict=True))


@torch.no_grad()
def heun(model, x, sigmas, noise_sampler, callback):
    """Two calls a step, the second at a point that depends on the first."""
    for sigma, sigma_next in pairs(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        callback({"denoised": denoised})
        slope = (x - denoised) / sigma
        ahead = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            second = (ahead - model(ahead, sigma_next.expand(len(x)))) / sigma_next
            slope = (slope + second) / 2
        x = x + (sigma_next - sigma) * slope
    return x


@torch.no_grad()
def multistep(model, x, sigmas, noise_sampler, callback):
    """One call a step, mixed with that of the step before; works in place."""
    before = None
    for sigma, sigma_next in pairs(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        callback({"denoised": denoised})
        mixed = denoised if before is None else 1.5 * denoised - 0.5 * before
        x = x * (sigma_next / sigma)
        x += (1 - sigma_next / sigma) * mixed
        before = denoised
    return x


@torch.no_grad()
def ancestral(model, x, sigmas, noise_sampler, callback):
    for sigma, sigma_next in pairs(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        callback({"denoised": denoised})
        up = sigma_next * (1 - sigma_next**2 / sigma**2) ** 0.5
        down = (sigma_next**2 - up**2) ** 0.5
        x = denoised + down / sigma * (x - denoised)
        if sigma_next > 0:
            x = x + up * noise_sampler(sigma, sigma_next)
    return x


@torch.no_grad()
def nested(*args):
    """As ComfyUI's variants, which call the main function: no_grad twice."""
    return ancestral(*args)


@torch.no_grad()
def midpoint_sde(model, x, sigmas, noise_sampler, callback):
    """As dpmpp_sde: asks for the noise of half a step and of the whole one."""
    for sigma, sigma_next in pairs(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        callback({"denoised": denoised})
        if sigma_next == 0:
            return denoised
        middle = (sigma * sigma_next) ** 0.5
        half = denoised + middle / sigma * (x - denoised) + 0.3 * middle * noise_sampler(sigma, middle)
        denoised = model(half, middle.expand(len(x)))
        x = denoised + sigma_next / sigma * (x - denoised) + 0.3 * sigma_next * noise_sampler(sigma, sigma_next)
    return x


SAMPLERS = {
    "heun": (heun, False), "multistep": (multistep, False), "ancestral": (ancestral, False), "nested": (nested, False),
    "midpoint": (midpoint_sde, True), "midpoint, apart": (midpoint_sde, False),
}  # fmt: skip


def sampler_map(sampler, brownian=False, sigmas=SIGMAS["vp"], denoise=None, **settings):
    """A SamplerMap of a tiny random network in float64, (2, 3, 6, 6)."""
    traits = core.try_sampler(sampler, sigmas, brownian)
    return core.SamplerMap(
        denoise or TinyDenoiser(), core.Schedule(sigmas), (2, 3, 6, 6), decode=decode, sampler=sampler, traits=traits,
        sampler_settings={"sampler": sampler.__name__}, **settings,
    )  # fmt: skip


def double_noise(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def check_gradient(noise_map):
    noise = double_noise(noise_map)
    d_images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    _, vjp = noise_map.pullback(noise)
    gradient = vjp(d_images)
    for part in ("initial", "injected"):  # each alone: one could drown in the other
        drawn = core.Noise.randn(noise.initial.shape, len(noise.injected), 5).to(torch.float64)
        direction = core.Noise(*(getattr(drawn, key) * (key == part) for key in ("initial", "injected"))).flat()

        def value(step, direction=direction):
            return (noise_map.sample(noise.with_flat(noise.flat() + step * direction)) * d_images).sum()

        expected = (value(1e-5) - value(-1e-5)) / 2e-5
        torch.testing.assert_close((gradient.flat() * direction).sum(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("sigmas", [SIGMAS["vp"], SIGMAS["vp"][:-1]])
def test_the_gradient_equals_central_differences(name, keep_graphs, sigmas):
    check_gradient(sampler_map(*SAMPLERS[name], sigmas=sigmas, keep_graphs=keep_graphs))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_by_the_last_denoised_equals_central_differences(name):
    check_gradient(sampler_map(*SAMPLERS[name], sigmas=SIGMAS["vp"][:-1], judge_denoised=True))


def test_the_ancestral_sampler_is_the_map_of_eta_1_and_so_is_its_gradient():
    ours, steps = sampler_map(ancestral), sample_map()
    noise = double_noise(steps)
    images, vjp = ours.pullback(noise)
    expected_images, expected = steps.pullback(noise)
    torch.testing.assert_close(images, expected_images, rtol=1e-10, atol=1e-10)
    d_images = torch.randn_like(images)
    torch.testing.assert_close(vjp(d_images).flat(), expected(d_images).flat(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ours.sample(noise), images)


def test_the_last_denoised_that_the_sampler_tells_is_the_maps():
    sigmas = SIGMAS["vp"][:-1]
    ours = sampler_map(ancestral, sigmas=sigmas, judge_denoised=True)
    steps = dataclasses.replace(sample_map(judge_denoised=True), schedule=core.Schedule(sigmas))
    noise = double_noise(steps)
    torch.testing.assert_close(ours.latent(noise), steps.latent(noise))
    torch.testing.assert_close(ours.noisy_latent(noise), steps.noisy_latent(noise))


def test_a_search_raises_the_reward():
    noise_map = sampler_map(midpoint_sde, brownian=True)
    result = core.optimize(
        noise_map, lambda images, prompts: images.mean(dim=(1, 2, 3)), double_noise(noise_map),
        core.GradientAscent(lr=0.05), iterations=5,
    )  # fmt: skip
    first = result.history.rows[0]["score"]
    assert all(best > score for best, score in zip(result.history.best_row["score"], first, strict=True))
    assert result.noise.settings["sampler"] == "midpoint_sde" and "eta" not in result.noise.settings
    assert not result.history.warnings


def test_overlapping_noises_are_correlated_as_brownian_motion_is():
    traits = core.try_sampler(midpoint_sde, SIGMAS["vp"], brownian=True)
    assert len(traits.intervals) == len(traits.cells) == 6
    unit = torch.eye(len(traits.cells), dtype=torch.float64)
    noise_sampler = traits.noise_sampler(unit)
    noises = [noise_sampler(*interval) for interval in traits.intervals]
    known = zip(traits.intervals, noises, strict=True)
    for (a, first), (b, second) in itertools.combinations_with_replacement(known, 2):
        shared = max(min(a[0], b[0]) - max(a[1], b[1]), 0.0)
        expected = shared / math.sqrt((a[0] - a[1]) * (b[0] - b[1]))
        # The ends are float32 numbers.
        assert abs(float(first @ second) - expected) < 1e-6


def test_independent_noises_are_given_one_after_another():
    traits = core.try_sampler(midpoint_sde, SIGMAS["vp"])
    noise_sampler = traits.noise_sampler(torch.arange(6.0))
    assert [float(noise_sampler(*interval)) for interval in traits.intervals] == list(range(6))
    with pytest.raises(RuntimeError, match="asks for more noises than the 6 of its trial"):
        noise_sampler(1.0, 0.5)


def test_a_noise_without_effect_is_not_searched():
    def silenced(model, x, sigmas, noise_sampler, callback):
        """As ComfyUI 0.3.75's res_multistep: asks for noise and multiplies it by 0."""
        once = [0]

        def half_silent(sigma, sigma_next):
            once[0] += 1
            return noise_sampler(sigma, sigma_next) * (once[0] > 2)

        return ancestral(model, x, sigmas, half_silent, callback)

    noise_map = sampler_map(silenced)
    assert noise_map.traits.silent == (0, 1) and noise_map.injected == 1
    noise = double_noise(noise_map)
    every = core.Noise(noise.initial, torch.cat([torch.zeros(2, 2, 3, 6, 6), noise.injected]))
    full = dataclasses.replace(noise_map, traits=dataclasses.replace(noise_map.traits, silent=()))
    torch.testing.assert_close(noise_map.latent(noise), full.latent(every))


def adaptive(model, x, sigmas, noise_sampler, callback):
    middle = sigmas[-1] + (sigmas[0] - sigmas[-1]) / (1 + x.abs().mean())
    return multistep(model, x, torch.stack([sigmas[0], middle, sigmas[-1]]), noise_sampler, callback)


def random(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x + 0.1 * torch.randn_like(x), sigmas, noise_sampler, callback)


def coupled(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x / x.std(), sigmas, noise_sampler, callback)


def broken(model, x, sigmas, noise_sampler, callback):
    raise KeyError("uncond")


def infinite(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x, sigmas, noise_sampler, callback) / sigmas[-1]


@pytest.mark.parametrize("sampler, reason", [
    (adaptive, "chooses its steps by the picture"), (random, "draws random numbers of its own"),
    (coupled, "depend on each other"), (broken, r"failed on a tiny latent \(KeyError: 'uncond'\)"),
    (infinite, "not finite"),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused_and_the_generator_is_left_as_it_was(sampler, reason):
    state = torch.get_rng_state()
    with pytest.raises(core.CannotBeSearchedError, match=reason):
        core.try_sampler(sampler, SIGMAS["vp"])
    assert torch.equal(torch.get_rng_state(), state) or sampler is random


def forgetful(model, x, sigmas, noise_sampler, callback):
    """As deis: earlier results without their gradient."""
    before = None
    for sigma, sigma_next in pairs(sigmas):
        denoised = model(x, sigma.expand(len(x)))
        mixed = denoised if before is None else 1.5 * denoised - 0.5 * before
        x = mixed + sigma_next / sigma * (x - mixed)
        before = denoised.detach()
    return x


@torch.no_grad()
def scaled_before_its_first_call(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x * 1.5, sigmas, noise_sampler, callback)


@pytest.mark.parametrize("sampler, reason", [
    (forgetful, "a part of its gradient is missing"), (scaled_before_its_first_call, "cannot be differentiated"),
])  # fmt: skip
def test_a_wrong_gradient_is_found_out(sampler, reason):
    assert reason in core.try_sampler(sampler, SIGMAS["vp"]).wrong_gradient
    assert not core.try_sampler(multistep, SIGMAS["vp"]).wrong_gradient


def silent(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x, sigmas, noise_sampler, lambda step: None)


def tells_without_gradient(model, x, sigmas, noise_sampler, callback):
    return multistep(model, x, sigmas, noise_sampler, lambda step: callback({"denoised": step["denoised"].detach()}))


def test_where_what_is_told_will_be_judged_a_sampler_that_tells_nothing_is_refused():
    sigmas = SIGMAS["vp"][:-1]
    with pytest.raises(core.CannotBeSearchedError, match="never calls its callback"):
        core.try_sampler(silent, sigmas, judge_denoised=True)
    core.try_sampler(silent, sigmas)
    untried = sampler_map(silent, sigmas=sigmas, judge_denoised=True)
    with pytest.raises(ValueError, match="told its callback nothing"):
        untried.latent(double_noise(untried))


def test_where_what_is_told_will_be_judged_its_gradient_is_tried_too():
    sigmas = SIGMAS["vp"][:-1]
    found = core.try_sampler(tells_without_gradient, sigmas, judge_denoised=True)
    assert "cannot be differentiated" in found.wrong_gradient
    assert not core.try_sampler(tells_without_gradient, sigmas).wrong_gradient
    # The last noise does nothing to what is told, but is in the sample that the next sampler gets.
    assert core.try_sampler(ancestral, sigmas, judge_denoised=True) == core.try_sampler(ancestral, sigmas)


def test_a_sampler_that_insists_on_single_precision_is_tried_in_it():
    def single(model, x, sigmas, noise_sampler, callback):
        return multistep(model, torch.einsum("k,kbchw->bchw", torch.ones(1), x[None]), sigmas, noise_sampler, callback)

    assert core.try_sampler(single, SIGMAS["vp"]) == core.try_sampler(multistep, SIGMAS["vp"])


def test_a_trial_in_inference_mode_finds_the_same():
    with torch.inference_mode():
        found = core.try_sampler(midpoint_sde, torch.tensor(SIGMAS["vp"]), brownian=True)
    assert found == core.try_sampler(midpoint_sde, torch.tensor(SIGMAS["vp"]), brownian=True)


def test_calls_are_reported_forward_and_backward():
    seen = []
    noise_map = sampler_map(heun, on_step=lambda *step: seen.append(step))
    _, vjp = noise_map.pullback(double_noise(noise_map))
    vjp(torch.ones_like(vjp.images))
    calls = 7  # two for each of three steps, one for the last
    assert seen == [
        *[("forward", index, calls) for index in range(calls)], ("decode", 0, 1),
        *[("backward", index, calls + 1) for index in range(calls + 1)],
    ]  # fmt: skip
    seen.clear()
    noise_map.latent(double_noise(noise_map))
    assert seen == [("forward", index, calls) for index in range(calls)] and noise_map.stages == calls + 1


def test_a_model_that_keeps_a_state_is_named():
    calls = []

    def cached(x, sigma):
        calls.append(1)
        return x * 0.5 + (0.2 if len(calls) > 4 else 0.0)

    noise_map = sampler_map(multistep, denoise=cached)
    _, vjp = noise_map.pullback(double_noise(noise_map))
    with pytest.raises(RuntimeError, match="keeps a state between calls"):
        vjp(torch.ones_like(vjp.images))


def test_a_lost_gradient_is_named_with_its_call():
    noise_map = sampler_map(heun, denoise=lambda x, sigma: (x * 0.5).detach())
    _, vjp = noise_map.pullback(double_noise(noise_map))
    with pytest.raises(RuntimeError, match=r"model \(call 7 of 7\) gave a result without gradient"):
        vjp(torch.ones_like(vjp.images))


class GraphCounter:
    """Counts how many of a denoiser's graphs are alive at each call, through a tensor each graph saves."""

    def __init__(self):
        self.alive, self.most = [], 0

    def __call__(self, x, sigma):
        factor = torch.full_like(x, 0.3)
        self.alive = [reference for reference in self.alive if reference() is not None]
        if x.requires_grad:
            self.alive.append(weakref.ref(factor))
        self.most = max(self.most, len(self.alive))
        return x * factor


@pytest.mark.parametrize("keep_graphs, most", [(False, 1), (True, 4)])
def test_only_one_calls_graph_is_alive_at_a_time_unless_graphs_are_kept(keep_graphs, most):
    counter = GraphCounter()
    noise_map = sampler_map(multistep, denoise=counter, keep_graphs=keep_graphs)
    _, vjp = noise_map.pullback(double_noise(noise_map))
    vjp(torch.ones_like(vjp.images))
    gc.collect()
    assert counter.most == most and not [alive for alive in counter.alive if alive() is not None]
    with pytest.raises(RuntimeError, match="used or released"):
        vjp(torch.ones_like(vjp.images))


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_interruption_passes_through_the_sampler_and_autograd(phase):
    counter = GraphCounter()

    def interrupt(*step):
        if step[:2] == (phase, 2):
            raise KeyboardInterrupt

    noise_map = sampler_map(multistep, denoise=counter, keep_graphs=True, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        _, vjp = noise_map.pullback(double_noise(noise_map))
        vjp(torch.ones_like(vjp.images))
    assert torch.is_grad_enabled()
    gc.collect()
    assert phase == "forward" or not [alive for alive in counter.alive if alive() is not None]


def live_pullbacks():
    gc.collect()
    return sum(type(each) is SamplerPullback for each in gc.get_objects())


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("phase", ["forward", "decode", "backward", None])
def test_nothing_is_left_of_a_run_that_was_interrupted_or_never_taken_back(phase, keep_graphs):
    def interrupt(*step):
        if step[0] == phase:
            raise KeyboardInterrupt

    before = live_pullbacks()
    counter = GraphCounter()
    noise_map = sampler_map(multistep, denoise=counter, keep_graphs=keep_graphs, on_step=interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        images, vjp = noise_map.pullback(double_noise(noise_map))
        if phase is not None:
            vjp(torch.ones_like(images))
    vjp = None
    assert live_pullbacks() == before and not [alive for alive in counter.alive if alive() is not None]


def test_gradients_are_off_again_after_a_pullback_under_no_grad():
    noise_map = sampler_map(nested)
    with torch.no_grad():
        images, vjp = noise_map.pullback(double_noise(noise_map))
        assert vjp(torch.ones_like(images)).flat().abs().max() > 0 and not torch.is_grad_enabled()


def test_half_precision_does_not_lose_small_gradients():
    class Half(torch.nn.Module):
        def forward(self, x, sigma):
            return (torch.tanh(x.half() / 4) * 2).to(x.dtype)

    noise_map = sampler_map(multistep, denoise=Half())
    noise = noise_map.randn(0)
    ones = torch.ones(2, 3, 12, 12)
    _, vjp = noise_map.pullback(noise)
    expected = vjp(ones).flat()
    _, vjp = noise_map.pullback(noise)
    torch.testing.assert_close(vjp(ones * 1e-12).flat() * 1e12, expected, rtol=1e-3, atol=1e-3)


def test_candidates_beyond_the_batch_are_sampled_candidate_major():
    noise_map = sampler_map(midpoint_sde, brownian=True)
    noise = double_noise(noise_map)
    twice = core.Noise(noise.initial.repeat(2, 1, 1, 1), noise.injected.repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(noise_map.sample(twice), noise_map.sample(noise).repeat(2, 1, 1, 1))


def test_noise_of_another_sampler_is_refused():
    ours, steps = sampler_map(ancestral), sample_map()
    made = {name: dataclasses.replace(each.randn(0), settings=each.settings) for name, each in
            (("ours", ours), ("steps", steps), ("other", sampler_map(nested)))}  # fmt: skip
    ours.check_settings(made["ours"])
    steps.check_settings(made["steps"])
    for noise_map, name, words in (
        (ours, "steps", "made with sampler None, but here it is 'ancestral'"),
        (ours, "other", "made with sampler 'nested', but here it is 'ancestral'"),
        (steps, "ours", "made with sampler 'ancestral', but here it is None"),
    ):
        with pytest.raises(ValueError, match=words):
            noise_map.check_settings(made[name])
        noise_map.check_settings(dataclasses.replace(made[name], settings={}))
    with pytest.raises(ValueError, match=r"with 3 \(2 pictures, 4 steps, the sampler ancestral\)"):
        ours.check_settings(core.Noise.randn((2, 3, 6, 6), 2))


def test_a_solver_that_asks_for_one_step_is_told_that_there_are_none():
    with pytest.raises(ValueError, match="this solver changes the steps of the map itself"):
        sampler_map(ancestral).denoise_with_graph(torch.zeros(2, 3, 6, 6), 0)


def test_lgd_leaves_the_noise_that_nobody_judges_alone():
    noise_map = dataclasses.replace(
        sample_map(judge_denoised=True), schedule=core.Schedule(SIGMAS["vp"][:-1]), finish=lambda x: x / 0
    )
    noise, reward = double_noise(noise_map), lambda images, prompts: images.mean(dim=(1, 2, 3))
    problem = core.Problem(noise_map, reward)
    guided, evaluation = core.LGD(samples=2, scale=50.0).step(problem, noise)
    assert torch.equal(guided.injected[-1], noise.injected[-1])
    assert not torch.equal(guided.injected[:-1], noise.injected[:-1])
    assert (problem.evaluate(guided).scores > evaluation.scores).all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_denoised_is_what_a_schedule_that_ends_at_0_gives(eta):
    """sigma_next = 0 makes denoised the last x: an independent way to it."""
    above = sample_map(eta=eta, judge_denoised=True)
    above = dataclasses.replace(above, schedule=core.Schedule((8.0, 3.0, 1.2, 0.5)))
    below = dataclasses.replace(above, schedule=core.Schedule((8.0, 3.0, 1.2, 0.0)), judge_denoised=False)
    noise = double_noise(above)
    shorter = core.Noise(noise.initial, noise.injected[: below.injected])
    torch.testing.assert_close(above.latent(noise), below.latent(shorter))
    plain = dataclasses.replace(above, judge_denoised=False)
    torch.testing.assert_close(above.noisy_latent(noise), plain.latent(noise))
    d_images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    found, expected = (each.pullback(z)[1](d_images) for each, z in ((above, noise), (below, shorter)))
    torch.testing.assert_close(found.initial, expected.initial)
    torch.testing.assert_close(found.injected[: below.injected], expected.injected)
    assert not found.injected[below.injected :].any()

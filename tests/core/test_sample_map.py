"""The staged backward pass against whole-graph autograd and central differences."""

import contextlib
import dataclasses
import gc
import weakref

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.sample_map import vjp
from tiny_models import SIGMAS, TinyDenoiser, decode, sample_map


def double_noise(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def whole_graph_gradient(noise_map, noise, d_images):
    """Plain autograd through a plain loop over `sde_step`, written without SampleMap's stages."""
    initial, injected = noise.initial.clone().requires_grad_(), noise.injected.clone().requires_grad_()
    schedule = noise_map.schedule
    x = noise_map.start(initial)
    for index, (sigma, sigma_next) in enumerate(schedule.intervals):
        denoised = noise_map.denoise(x, x.new_full((len(x),), sigma))
        step_noise = injected[index] if index < len(injected) else None
        x = core.sde_step(x, denoised, sigma, sigma_next, noise_map.eta, step_noise, schedule.family)
    images = decode(x)
    loss = (images * d_images).sum()
    return images.detach(), torch.autograd.grad(loss, [initial, injected], allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("family", SIGMAS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_the_staged_gradient_equals_whole_graph_autograd(family, eta, keep_graphs):
    noise_map = sample_map(family, eta, cfg=3.0, keep_graphs=keep_graphs)
    noise = double_noise(noise_map)
    d_images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected_images, (initial, injected) = whole_graph_gradient(noise_map, noise, d_images)
    images, vjp = noise_map.pullback(noise)
    gradient = vjp(d_images)
    torch.testing.assert_close(images, expected_images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient.initial, initial, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient.injected, injected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", SIGMAS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_gradient_equals_central_differences(family, eta):
    noise_map = sample_map(family, eta, cfg=2.0)
    noise = double_noise(noise_map)
    d_images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    direction = torch.randn(noise.flat().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    _, vjp = noise_map.pullback(noise)
    found = (vjp(d_images).flat() * direction).sum()

    def value(step):
        return (noise_map.sample(noise.with_flat(noise.flat() + step * direction)) * d_images).sum()

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_linear_denoiser_has_the_closed_form_gradient():
    """D(x) = a x makes M linear: x_0 is a known multiple of each noise."""
    a, sigmas = 0.3, (2.0, 1.0, 0.0)
    schedule = core.Schedule(sigmas)
    noise_map = core.SampleMap(lambda x, sigma: a * x, schedule, (1, 1, 2, 2))
    noise = noise_map.randn(0)
    c_x, c_denoised, c_noise = core.step_coefficients(2.0, 1.0)
    first = (c_x + a * c_denoised) * a * (1 + 4) ** 0.5
    _, vjp = noise_map.pullback(noise)
    gradient = vjp(torch.ones(1, 1, 2, 2))
    torch.testing.assert_close(gradient.initial, torch.full((1, 1, 2, 2), first), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.injected, torch.full((1, 1, 1, 2, 2), c_noise * a), rtol=1e-6, atol=0)
    torch.testing.assert_close(noise_map.latent(noise), first * noise.initial + c_noise * a * noise.injected[0])


def test_the_gradient_by_the_latent_chains_to_the_gradient_by_the_images():
    noise_map = sample_map()
    noise = double_noise(noise_map)
    _, vjp = noise_map.pullback(noise)
    latent = vjp.latent.requires_grad_()
    (d_latent,) = torch.autograd.grad(decode(latent).sum(), latent)
    _, again = noise_map.pullback(noise)
    torch.testing.assert_close(vjp.from_latent(d_latent).flat(), again(torch.ones_like(again.images)).flat())


def test_items_of_a_batch_are_independent():
    noise_map = sample_map()
    noise = double_noise(noise_map)
    d_images = torch.zeros(2, 3, 12, 12, dtype=torch.float64)
    d_images[1] = 1
    _, vjp = noise_map.pullback(noise)
    gradient = vjp(d_images).flat()
    single = sample_map(batch=1)
    _, vjp = single.pullback(noise.item(1))
    assert not gradient[0].any()
    torch.testing.assert_close(gradient[1:], vjp(d_images[1:]).flat())


def test_tiny_cotangents_survive_a_half_precision_network():
    """Unscaled, gradients of 1e-9 are zero in float16."""
    network = TinyDenoiser().half()
    schedule = core.Schedule(SIGMAS["vp"])

    def denoise(x, sigma):
        return network(x.half(), sigma.half()).float()

    noise_map = core.SampleMap(denoise, schedule, (2, 3, 6, 6))
    noise = noise_map.randn(0)
    ones = torch.ones(2, 3, 6, 6)
    _, vjp = noise_map.pullback(noise)
    expected = vjp(ones).flat()
    _, vjp = noise_map.pullback(noise)
    small = vjp(ones * torch.tensor([1e-12, 1.0]).view(2, 1, 1, 1)).flat()
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(small[0] * 1e12, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(small[1], expected[1], rtol=1e-3, atol=1e-3)


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


@pytest.mark.parametrize("steps", [3, 12])
def test_only_one_steps_graph_is_alive_at_a_time(steps):
    counter = GraphCounter()
    schedule = core.Schedule(torch.linspace(5, 0, steps + 1))
    noise_map = core.SampleMap(counter, schedule, (1, 1, 2, 2))
    _, vjp = noise_map.pullback(noise_map.randn(0))
    vjp(torch.ones(1, 1, 2, 2))
    assert counter.most == 1
    noise_map.keep_graphs = True
    _, vjp = noise_map.pullback(noise_map.randn(0))
    assert counter.most == steps
    vjp.release()
    gc.collect()
    assert not [reference for reference in counter.alive if reference() is not None]


def test_graphs_are_freed_when_a_step_is_interrupted():
    counter = GraphCounter()
    schedule = core.Schedule(torch.linspace(5, 0, 7))

    def interrupt(phase, index, total):
        if phase == "backward" and index == 3:
            raise KeyboardInterrupt

    noise_map = core.SampleMap(counter, schedule, (1, 1, 2, 2), keep_graphs=True, on_step=interrupt)
    _, vjp = noise_map.pullback(noise_map.randn(0))
    with pytest.raises(KeyboardInterrupt):
        vjp(torch.ones(1, 1, 2, 2))
    gc.collect()
    assert not [reference for reference in counter.alive if reference() is not None]
    with pytest.raises(RuntimeError, match="used or released"):
        vjp(torch.ones(1, 1, 2, 2))


def test_a_model_that_keeps_state_between_calls_is_named():
    calls = []

    def cached(x, sigma):
        calls.append(1)
        return x * 0.5 + (0.2 if len(calls) > 4 else 0.0)

    noise_map = core.SampleMap(cached, core.Schedule((4.0, 2.0, 1.0, 0.5, 0.0)), (1, 1, 4, 4))
    _, vjp = noise_map.pullback(noise_map.randn(0))
    with pytest.raises(RuntimeError, match="keeps a state between calls"):
        vjp(torch.ones(1, 1, 4, 4))


def test_a_drift_of_three_percent_is_a_state_and_one_of_one_percent_may_be_rounding():
    """The tolerance is 2 %, and a model that gives the same from then on leaves no doubt by its kernels."""
    for drift, named in ((0.03, True), (0.01, False)):
        calls = []

        def drifting(x, sigma, drift=drift, calls=calls):
            calls.append(1)
            return x * 0.5 * (1 + drift * (len(calls) > 4))

        noise_map = core.SampleMap(drifting, core.Schedule((4.0, 2.0, 1.0, 0.5, 0.0)), (1, 1, 8, 8))
        _, vjp = noise_map.pullback(noise_map.randn(0))
        expected = pytest.raises(RuntimeError, match="keeps a state") if named else contextlib.nullcontext()
        with expected:
            vjp(torch.ones(1, 1, 8, 8))


def augmented(share):
    """A linear denoiser that adds random numbers of its own, so many times as large as its result."""
    generator = torch.Generator().manual_seed(0)

    def denoise(x, sigma):
        own = torch.randn(x.shape, generator=generator)
        return x * 0.5 + share * own * (x * 0.5).square().mean().sqrt()

    return core.SampleMap(denoise, core.Schedule((4.0, 2.0, 1.0, 0.5, 0.0)), (1, 3, 16, 16))


def test_random_augmentation_is_told_by_the_last_check_and_named_at_once_where_no_kernel_would_differ_so_much():
    """Two runs differ by sqrt(2) times the share; kernels that add up in any order may by five tolerances, 10 %."""
    noise_map = augmented(0.03)
    result = core.optimize(noise_map, lambda images, prompts: images.mean((1, 2, 3)), noise_map.randn(0), iterations=1)
    (warning,) = result.history.warnings
    assert "gives another latent" in warning and "random numbers of its own" in warning
    _, vjp = augmented(0.1).pullback(noise_map.randn(0))
    with pytest.raises(RuntimeError, match="random augmentation"):
        vjp(torch.ones(1, 3, 16, 16))


@pytest.mark.parametrize("part, searched", [
    ("all", [True, True, True, True]), ("initial", [True, False, False, False]),
    ("injected", [False, True, True, True]), ("first 1", [False, True, False, False]),
    ("first 2", [False, True, True, False]), ("last 1", [False, False, False, True]),
    ("last 2", [False, False, True, True]), ("last 3", [False, True, True, True]),
])
def test_a_part_is_the_noises_that_its_name_says(part, searched):
    noise_map = sample_map(part=part)
    noise = double_noise(noise_map)
    images, vjp = noise_map.pullback(noise)
    gradient = vjp(torch.ones_like(images))
    assert [bool(each.any()) for each in (gradient.initial, *gradient.injected)] == searched
    assert all(len(vector) == sum(searched) * 3 * 6 * 6 for vector in noise_map.active(noise))


@pytest.mark.parametrize("part", ["first 0", "last 4", "first two", "middle 1", "first"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(ValueError, match="expected 'all', 'initial', 'injected', 'first K' or 'last K' with K in 1"):
        sample_map(part=part).randn(0)


def test_another_mask_is_another_search():
    noise_map = sample_map()
    noise = noise_map.randn(0)
    counts = []
    for column in (2, 4):
        noise_map.mask = torch.zeros(1, 1, 6, 6)
        noise_map.mask[..., :column] = 1
        counts.append([len(vector) for vector in noise_map.active(noise)])
    assert counts == [[4 * 3 * 6 * 2] * 2, [4 * 3 * 6 * 4] * 2]


def test_a_kept_graph_is_let_go_of_as_soon_as_its_step_is_behind():
    noise_map, left = sample_map(keep_graphs=True), []
    images, back = noise_map.pullback(double_noise(noise_map))
    noise_map.on_step = lambda phase, index, total: left.append(len(back.graphs))
    back(torch.ones_like(images))
    assert left == [4, 4, 3, 2, 1], "the decoder's way back, and then each step's"


def test_a_model_that_keeps_state_is_named_although_one_picture_is_not_finite():
    calls = []

    def cached(x, sigma):
        calls.append(1)
        broken = torch.tensor([1.0, float("nan")]).view(2, 1, 1, 1)
        return (x * 0.5 + (0.2 if len(calls) > 4 else 0.0)) * broken

    noise_map = core.SampleMap(cached, core.Schedule((4.0, 2.0, 1.0, 0.5, 0.0)), (2, 1, 4, 4))
    _, vjp = noise_map.pullback(noise_map.randn(0))
    with pytest.raises(RuntimeError, match="keeps a state between calls"):
        vjp(torch.ones(2, 1, 4, 4))


def test_lost_gradients_and_inference_mode_are_named():
    noise_map = core.SampleMap(lambda x, sigma: (x * 0.5).detach(), core.Schedule((2.0, 1.0, 0.0)), (1, 1, 4, 4))
    _, vjp = noise_map.pullback(noise_map.randn(0))
    with pytest.raises(RuntimeError, match=r"model \(step 2 of 2\) gave a result without gradient"):
        vjp(torch.ones(1, 1, 4, 4))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        noise_map.pullback(noise_map.randn(0))
    noise_map = sample_map()
    noise_map.decode = lambda latent: latent.detach()
    images, vjp = noise_map.pullback(double_noise(noise_map))
    with pytest.raises(RuntimeError, match="decoder gave a result without gradient"):
        vjp(torch.ones_like(images))


def test_a_callers_autocast_does_not_round_the_gradient_of_a_graph_in_float32():
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4

    def denoise(x, sigma):
        with torch.autocast("cpu", enabled=False):
            return torch.tanh(x.flatten(1) @ weight).view_as(x)

    noise_map = core.SampleMap(denoise, core.Schedule((2.0, 1.0, 0.0)), (1, 1, 4, 4))
    d_images = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = noise_map.pullback(noise_map.randn(0))[1](d_images).flat()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(noise_map.pullback(noise_map.randn(0))[1](d_images).flat(), expected)


def test_gradients_flow_although_the_caller_left_them_off():
    noise_map = sample_map()
    with torch.no_grad():
        images, vjp = noise_map.pullback(double_noise(noise_map))
        assert vjp(torch.ones_like(images)).flat().abs().max() > 0
        assert not torch.is_grad_enabled()


def test_masked_entries_have_no_gradient_and_do_not_count():
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, :2] = 1
    mask[1, :, :3] = 0.5
    noise_map = sample_map(mask=mask)
    noise = double_noise(noise_map)
    _, vjp = noise_map.pullback(noise)
    gradient = vjp(torch.ones_like(vjp.images))
    assert not gradient.initial[0, :, 2:].any() and gradient.initial[0, :, :2].any()
    assert not gradient.injected[:, 1, :, 3:].any() and gradient.injected[:, 1, :, :3].any()
    assert [len(vector) for vector in noise_map.active(noise)] == [4 * 3 * 2 * 6, 4 * 3 * 3 * 6]
    assert [len(vector) for vector in noise_map.active_initial(noise)] == [3 * 2 * 6, 3 * 3 * 6]
    twice = core.Noise(noise.initial.repeat(2, 1, 1, 1), noise.injected.repeat(1, 2, 1, 1, 1))
    assert [len(vector) for vector in noise_map.active(twice)] == [4 * 3 * 2 * 6, 4 * 3 * 3 * 6] * 2
    restored = noise_map.with_active(noise, noise_map.active(noise))
    torch.testing.assert_close(restored.flat(), noise_map.masked(noise).flat())


def test_candidates_beyond_the_batch_are_sampled_candidate_major():
    noise_map = sample_map()
    noise = double_noise(noise_map)
    twice = core.Noise(noise.initial.repeat(2, 1, 1, 1), noise.injected.repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(noise_map.sample(twice), noise_map.sample(noise).repeat(2, 1, 1, 1))


@pytest.mark.parametrize("bad", [{"shape": (2, 4, 6, 6)}, {"injected": 2}, {"shape": (3, 3, 6, 6)}])
def test_noise_of_another_shape_is_told_what_was_expected(bad):
    settings = {"shape": (2, 3, 6, 6), "injected": 3} | bad
    with pytest.raises(ValueError, match=r"expected \(2, 3, 6, 6\) with 3 \(2 pictures, 4 steps, eta 1.0\)"):
        sample_map().sample(core.Noise.randn(**settings))


def test_noise_of_other_settings_is_told_what_it_was_made_with():
    made_with = {"sigmas": [3.0, 1.0, 0.0], "eta": 0.5}
    noise = dataclasses.replace(core.Noise.randn((1, 3, 6, 6), injected=1), settings=made_with)
    with pytest.raises(ValueError, match=r"with 1 injected \(1 picture, 2 steps, eta 0.5\); .* Set batch size"):
        sample_map().sample(noise)


def test_steps_report_forward_decode_and_backward():
    seen = []
    noise_map = sample_map(on_step=lambda *step: seen.append(step))
    _, vjp = noise_map.pullback(double_noise(noise_map))
    vjp(torch.ones_like(vjp.images))
    assert seen == [("forward", i, 4) for i in range(4)] + [("decode", 0, 1)] + [("backward", i, 5) for i in range(5)]


def test_a_copy_with_another_schedule_starts_by_its_own():
    copy = dataclasses.replace(sample_map(), schedule=core.Schedule((100.0, 1.0, 0.0)))
    torch.testing.assert_close(copy.start(torch.ones(1)), torch.tensor([10001.0]).sqrt())


def test_every_entry_of_a_mask_above_0_is_optimised():
    noise_map = sample_map(mask=torch.tensor([0.0, 0.01, 1.0]).repeat(2).expand(1, 1, 6, 6))
    active = noise_map.active_entries(noise_map.randn(0)).view(-1, 6)
    assert torch.equal(active, torch.tensor([False, True, True] * 2).expand_as(active))


def test_noise_of_sigmas_a_hundredth_off_is_of_another_schedule():
    noise_map = sample_map()
    sigmas = [1.01 * sigma for sigma in noise_map.settings["sigmas"]]
    with pytest.raises(ValueError, match="the noise was made with sigmas"):
        noise_map.check_settings(dataclasses.replace(noise_map.randn(0), settings={"sigmas": sigmas}))


def test_a_factor_of_the_injected_noise_acts_as_if_the_noise_had_it():
    """Models whose noise has another variance: c_noise alone is multiplied, and so is the gradient by that noise."""
    plain = sample_map("flow_rf", 1.0, cfg=2.0)
    scaled = dataclasses.replace(plain, schedule=dataclasses.replace(plain.schedule, s_noise=3.0))
    noise = double_noise(plain)
    louder = core.Noise(noise.initial, 3.0 * noise.injected)
    d_images = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (found, found_vjp), (expected, expected_vjp) = scaled.pullback(noise), plain.pullback(louder)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient, by_louder = found_vjp(d_images), expected_vjp(d_images)
    torch.testing.assert_close(gradient.initial, by_louder.initial, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient.injected, 3.0 * by_louder.injected, rtol=1e-6, atol=1e-9)


def test_a_noise_of_another_factor_is_refused():
    plain = sample_map("flow_rf", 1.0)
    scaled = dataclasses.replace(plain, schedule=dataclasses.replace(plain.schedule, s_noise=3.0))
    noise = dataclasses.replace(scaled.randn(0), settings=scaled.settings)
    scaled.check_settings(noise)
    with pytest.raises(ValueError, match="s_noise 2.0, but here it is 3.0"):
        scaled.check_settings(dataclasses.replace(noise, settings={**noise.settings, "s_noise": 2.0}))
    with pytest.raises(ValueError, match="s_noise 3.0, but here it is 1.0"):
        plain.check_settings(noise)
    plain.check_settings(dataclasses.replace(noise, settings=plain.settings))


def test_a_cotangent_of_zeros_in_half_precision_gives_a_gradient_of_zeros():
    """float32's least number is 0 in float16: the gradient of a picture without any would be 0 / 0."""
    x = torch.ones(2, 3, requires_grad=True)
    cotangent = torch.tensor([[1, 0, 6e-8], [0, 0, 0]], dtype=torch.float16)
    assert torch.equal(vjp(2 * x, x, cotangent), 2 * cotangent.float())

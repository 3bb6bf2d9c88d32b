"""The pairings of z with itself, shifted, against a plain loop over the shifts, on true noise, and on patterns."""

import itertools
import math
import time

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core import pairings
from comfyui_dno.core.pairings import autocorrelation, log_pairing_probability
from comfyui_dno.core.regularizer import log_noise_probability, permuted_log_probabilities
from tiny_models import sample_map


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(z, noises=1):
    """Lemma 1's ln p2 of the worst shift: M2 by an SVD of the rows (z_i, z_(i+s)), one shift after another."""
    n = len(z)
    z = (z / z.square().mean().sqrt()).view(noises, -1)
    worst = 0.0
    for shift in itertools.islice(itertools.product(*map(range, z.shape)), 1, None):
        rows = torch.stack([z, z.roll(shift, dims=(0, 1))], dim=-1).flatten(0, 1)
        worst = max(worst, float(torch.linalg.matrix_norm(rows.T @ rows / n - torch.eye(2, dtype=z.dtype), 2)))
    excess = max(math.sqrt(1 + worst) - 1 - math.sqrt(math.log(n) / (2 * n)) - math.log(n) / n, 0.0)
    return min(math.log(2) - (n // 2) * excess**2 / 2, 0.0)


def moving_average(field, dim):
    """Blur `field` over five neighbours along one of its dimensions, cyclic, and make it as long as true noise."""
    blurred = sum(field.roll(shift, dims=dim) for shift in range(5))
    return blurred / blurred.square().mean().sqrt()


@pytest.mark.parametrize("n, noises", [
    (2, 1), (3, 1), (5, 1), (300, 1), (301, 1), (2, 2), (300, 6), (301, 7), (64, 64),
])  # fmt: skip
def test_all_shifts_at_once_are_what_a_loop_over_them_finds(n, noises):
    noise = drawn(3, n, dtype=torch.float64)
    patterns = noise + 3 * torch.sin(torch.arange(n) * torch.tensor([[0.3], [1.1], [2.9]]))
    expected = torch.tensor([plain(z, noises) for z in patterns], dtype=torch.float64)
    # Both are exact but for the rounding of float64.
    torch.testing.assert_close(log_pairing_probability(patterns, noises), expected, rtol=1e-9, atol=1e-9)
    assert n < 100 or (expected < -1).all()


@pytest.mark.parametrize("noises", [1, 6])
def test_its_gradient_is_that_of_the_plain_formula(noises):
    """Each row's worst shift is another one, some of them from one noise to the next."""
    z = (drawn(3, 300, dtype=torch.float64) + 3 * torch.sin(torch.tensor([[0.7], [0.011], [2.9]]) * torch.arange(300)))
    z.requires_grad_()
    assert (log_pairing_probability(z, noises) < -1).all()
    assert torch.autograd.gradcheck(lambda z: log_pairing_probability(z, noises), z)


def test_a_pattern_of_each_noise_is_not_hidden_where_it_ends():
    """Noise i + 1 is noise i, turned by 5 places around its own end: a shift by (1, 5), and none of z as one row."""
    first = drawn(1, 1, 1024)
    z = torch.cat([first.roll(5 * i, dims=2) for i in range(8)], dim=1).flatten(1)
    found = autocorrelation(z.unflatten(1, (8, 1024))).flatten(1)
    assert found[:, 1:].argmax() + 1 == 1024 + 5
    # The last noise and the first do not follow one another so: 7 of 8 are equal.
    assert found[0, 1024 + 5] == pytest.approx(7 / 8, abs=0.02)
    assert log_pairing_probability(z, 8) < -100


def test_noises_that_are_not_of_one_length_are_refused():
    with pytest.raises(ValueError, match="z has 10 numbers, of 3 noises; expected as many numbers of each"):
        log_pairing_probability(drawn(1, 10), 3)


@pytest.mark.parametrize("n, noises, draws", [
    (192, 1, 20000), (192, 12, 20000), (3072, 1, 4000), (65536, 16, 200), (835584, 51, 8)
])  # fmt: skip
def test_true_noise_has_no_pattern(n, noises, draws):
    """Not one of these: the largest that was seen in 369,000 draws is five sixths of the threshold."""
    rows = max(2**21 // n, 1)
    for seed in range(-(-draws // rows)):
        assert not log_pairing_probability(drawn(rows, n, seed=seed), noises).any()


def test_a_blurred_field_is_seen_that_permutations_miss():
    """A 9 x 9 blur, made as long as true noise: 3072 numbers."""
    blurred = torch.nn.functional.avg_pool2d(drawn(1, 3, 40, 40), 9, 1)
    blurred = ((blurred - blurred.mean()) / blurred.std(correction=0)).flatten(1)
    in_random_order = torch.cat([log_p[:, 1:] for log_p in permuted_log_probabilities(blurred)], dim=1)
    assert in_random_order.min() > math.log(core.P_SUSPICIOUS)
    assert log_pairing_probability(blurred) < -60
    assert log_noise_probability(blurred) < -60


@pytest.mark.parametrize("dim, shift", [(4, 1), (3, 16), (2, 256), (0, 1024)])
def test_a_blur_is_seen_to_the_right_below_in_the_channels_and_along_the_steps(dim, shift):
    """Noises (L, B, C, H, W), each pattern at its own shift; the layout as it is may miss it altogether."""
    field = moving_average(drawn(8, 1, 4, 16, 16), dim)
    z = field.movedim(1, 0).flatten(1)
    found = autocorrelation(z.unflatten(1, (8, 1024))).flatten(1)
    assert found[0, 0] == pytest.approx(1)
    assert found[0, 1:].abs().max() == pytest.approx(found[0, shift].abs().item(), rel=1e-5)  # so is its opposite's
    assert log_pairing_probability(z, 8) < -100
    assert log_noise_probability(z, noises=8) < -100


@pytest.mark.parametrize("period", [64, 1024, 4096])
def test_repeated_noise_is_out_of_distribution(period):
    z = drawn(1, period).repeat(1, 8192 // period)
    assert log_noise_probability(z).exp() < 1e-6
    assert log_noise_probability(drawn(1, 8192)).exp() > core.P_SUSPICIOUS


def test_the_length_is_left_to_the_other_layouts():
    z = drawn(2, 3000) + torch.sin(torch.arange(3000))
    torch.testing.assert_close(log_pairing_probability(7 * z), log_pairing_probability(z), rtol=1e-5, atol=0)


@pytest.mark.parametrize("z", [torch.zeros(2, 400), torch.ones(2, 1), torch.zeros(2, 0)])
def test_noise_without_pairs_is_left_alone(z):
    z = z.clone().requires_grad_()
    found = log_pairing_probability(z)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert torch.equal(found, torch.zeros(2)) and torch.equal(gradient, torch.zeros_like(z))


def test_half_precision_is_computed_in_float32():
    z = (drawn(1, 5000) + torch.sin(torch.arange(5000))).half()
    found = log_pairing_probability(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, log_pairing_probability(z.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_pairing_probability(z), found)


@pytest.mark.parametrize("apart", [True, False])
def test_prno_adds_it_where_it_is_asked_to(apart):
    """x_T alone and the injected noises where they are judged apart, else all of z."""
    noise_map = sample_map(batch=2)
    noise = noise_map.randn(0).to(torch.float64).map(lambda field: moving_average(field, -1))
    plain_term, plain_gradient = core.ProbabilityRegularizer(2.0, apart=apart).gradient(noise_map, noise)
    term, gradient = core.ProbabilityRegularizer(2.0, apart=apart, structured=True).gradient(noise_map, noise)
    z = noise.flat().requires_grad_()
    parts = z.tensor_split([noise.initial[0].numel()], dim=1) if apart else [z]
    injected = len(noise.injected)
    expected = 2 * sum(map(log_pairing_probability, parts, (1, injected) if apart else [1 + injected]))
    (slope,) = torch.autograd.grad(expected.sum(), z)
    assert (expected < -1).all()
    torch.testing.assert_close(term - plain_term, expected.detach())
    torch.testing.assert_close((gradient.flat() - plain_gradient.flat()), slope)


def test_with_a_mask_only_what_is_searched_is_judged():
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    schedule = core.Schedule(tuple(float(sigma) for sigma in range(8, -1, -1)))
    noise_map = core.SampleMap(lambda x, sigma: x, schedule, (1, 4, 16, 16), mask=mask)
    noise = noise_map.randn(0)
    outside = noise.with_flat(torch.where(noise_map.active_entries(noise), noise.flat(), 1.0))
    regularizer = core.ProbabilityRegularizer(structured=True)
    assert log_noise_probability(noise_map.active(outside)).exp() > core.P_SUSPICIOUS
    torch.testing.assert_close(regularizer.gradient(noise_map, outside)[0], regularizer.gradient(noise_map, noise)[0])
    striped = noise.map(lambda field: moving_average(field, -1))
    assert log_noise_probability(noise_map.active(striped)) < -20
    _, gradient = regularizer.gradient(noise_map, striped)
    assert not gradient.flat()[~noise_map.active_entries(noise)].any() and gradient.flat().any()


def test_it_takes_a_fraction_of_what_the_permutations_would():
    """n = 835,584: value and gradient take about 0.05 s of one core, a tenth of a second at most."""
    z = drawn(1, 835584).requires_grad_()

    def seconds():
        start = time.process_time()
        log_pairing_probability(z).sum().backward()
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.1


def test_a_device_without_fourier_transforms_has_them_done_on_the_cpu(pretend, monkeypatch):
    """As DirectML: any complex number there is an error."""
    on_any_device = torch.fft.rfft2

    def rfft2(z, *rest, **named):
        if z.device.type != "cpu":
            raise NotImplementedError("complex numbers are not there")
        return on_any_device(z, *rest, **named)

    field = moving_average(drawn(2, 16, 16), 2).flatten(1)
    expected = log_pairing_probability(field)
    monkeypatch.setattr(torch.fft, "rfft2", rfft2)
    pairings._transforms.cache_clear()
    found = log_pairing_probability(field.to(pretend))
    pairings._transforms.cache_clear()
    assert found.device.type == pretend.type and (expected < -1).all()
    torch.testing.assert_close(found.cpu(), expected)

"""The probability regulariser against the paper's formulas written plainly, golden values, and its promises of cost."""

import math
import statistics
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.regularizer import _layouts, log_noise_probability, permuted_log_probabilities
from tiny_models import sample_map


def plain_bounds(z, k):
    """Eq. (9) and (10), row by row, with an SVD."""
    m = z.numel() // k
    rows = z[: m * k].view(m, k)
    mean = rows.mean(dim=0).norm()
    spectral = torch.linalg.matrix_norm(rows.T @ rows / m - torch.eye(k, dtype=z.dtype), 2)
    log_p1 = math.log(2) - m * mean**2 / (2 * k)
    excess = max(float((1 + spectral).sqrt() - 1 - math.sqrt(k / m)), 0.0)
    return min(float(log_p1), 0.0), min(math.log(2) - m * excess**2 / 2, 0.0)


@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize("n, k, zeros, ones", [
    (835584, 2, -35462.5604, (-208895.3069, -35462.5604)),
    (835584, 4, -17543.1167, (-104447.3069, -103535.2040)),
    (3072, 2, -109.1168, (-767.3069, -109.1168)),
    (3072, 4, -44.2328, (-383.3069, -329.8812)),
])
def test_zeros_and_ones_have_the_golden_values(n, k, zeros, ones, dtype, rtol):
    log_p1, log_p2 = core.log_probabilities(torch.zeros(n, dtype=dtype), k)
    assert float(log_p1) == 0 and float(log_p2) == pytest.approx(zeros, rel=max(rtol, 1e-6))
    found = [float(value) for value in core.log_probabilities(torch.ones(n, dtype=dtype), k)]
    assert found == pytest.approx(list(ones), rel=max(rtol, 1e-6))


def test_a_normal_quantile_grid_is_improbable_as_it_is_laid_out():
    z = torch.special.ndtri((torch.arange(3072, dtype=torch.float64) + 0.5) / 3072)
    log_p1, log_p2 = core.log_probabilities(z)
    assert float(log_p1) == 0 and float(log_p2) == pytest.approx(-109.101701, abs=1e-5)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    n=st.integers(2, 300),
    k=st.integers(1, 12),
    scale=st.floats(0.2, 3),
    shift=st.floats(-1, 1),
    seed=st.integers(0, 99),
)
def test_bounds_equal_the_plain_formulas_for_any_k(n, k, scale, shift, seed):
    hypothesis.assume(k <= n)
    z = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale + shift
    found = [float(value) for value in core.log_probabilities(z, k)]
    assert found == pytest.approx(plain_bounds(z, k), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("n", [40, 3072, 5000])
@pytest.mark.parametrize("k", [2, 5])
def test_permuted_layouts_are_permutations(n, k):
    """A z whose numbers are all one value, or whose sum is known, has moments no permutation can change."""
    generator = torch.Generator().manual_seed(0)
    ones = permuted_log_probabilities(torch.ones(n, dtype=torch.float64), k, 30, seed=1)
    for log_p in ones:
        assert log_p.max() - log_p[1:].min() < 0.1 * log_p.abs().max() + 1e-9
    z = torch.randn(n, dtype=torch.float64, generator=generator) * 1.3 + 0.2
    # 40 first shuffles of 10 layouts each: layouts of one call share what n mod (number of blocks) leaves out.
    found = torch.stack([torch.stack(permuted_log_probabilities(z, k, 10, seed))[:, 1:] for seed in range(40)])
    plain = torch.tensor([plain_bounds(z[torch.randperm(n, generator=generator)], k) for _ in range(400)]).double()
    allowed = 0.25 * plain.std(dim=0) + 0.01 * plain.mean(dim=0).abs() + 1e-3
    assert ((found.mean(dim=(0, 2)) - plain.mean(dim=0)).abs() < allowed).all()


def test_a_period_as_long_as_a_block_does_not_look_like_a_correlation():
    """A random permutation scatters it: cut into blocks without a first shuffle, all 128 blocks would be equal."""
    period = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = ((period - period.mean()) / period.std(correction=0)).repeat(128)
    for log_p in permuted_log_probabilities(z, 2, 100):
        assert log_p[1:].min() > math.log(core.P_SUSPICIOUS)


@pytest.mark.parametrize("regularizer", [core.ProbabilityRegularizer, core.NormRegularizer])
def test_the_term_is_in_proportion_to_its_weight(regularizer):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64).map(lambda tensor: tensor * 1.6 + 0.3)
    (one, slope), (third, gentle) = (regularizer(weight).gradient(noise_map, noise) for weight in (1.0, 0.3))
    torch.testing.assert_close(third, 0.3 * one)
    torch.testing.assert_close(gentle.flat(), 0.3 * slope.flat())
    assert (one.abs() > 1).all()


def test_the_term_is_the_mean_over_random_layouts():
    """Of ours and of 400 plain permutations; the least of 200 lies nearly 3 standard deviations below."""
    noise_map = sample_map(batch=1)
    noise = noise_map.randn(0).to(torch.float64).map(lambda tensor: tensor * 1.2 + 0.1)
    (found,), _ = core.ProbabilityRegularizer(1.0, permutations=200, apart=False).gradient(noise_map, noise)
    generator, (z,) = torch.Generator().manual_seed(1), noise.flat()
    plain = torch.tensor([sum(plain_bounds(z[torch.randperm(len(z), generator=generator)], 2)) for _ in range(400)])
    assert abs(found - plain.mean()) < 0.5 * plain.std()


@pytest.mark.parametrize(("n", "k", "turn"), [(203, 2, 0), (203, 2, 77), (200, 2, 1), (203, 3, -205), (64, 32, 69)])
def test_the_gradient_is_that_of_differences_whatever_is_left_over_and_turned(n, k, turn):
    """203 numbers are no whole number of rows, nor of blocks; 200 are of both, and several rows are one product."""
    z = 0.3 + 1.5 * torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def values(z):
        return torch.cat(permuted_log_probabilities(z, k, 5, 0, turn), dim=-1)

    assert (values(z) < 0).any(dim=1).all()
    assert torch.autograd.gradcheck(values, z.requires_grad_())


def test_turned_layouts_differ_from_one_another_as_independent_permutations_do():
    """Over 60 turns of one permutation and 60 permutations: in their mean, and in what an iteration's mean varies by.

    The mean of ten layouts varies by a standard deviation that 60 of them know to a tenth. Turns that made nearly the
    same layouts would vary far less.
    """
    z = torch.randn(3072, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.2 + 0.1
    shifts = torch.randint(1, 3072, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    turned = torch.stack([sum(permuted_log_probabilities(z, 2, 10, 0, turn))[1:].mean() for turn in shifts])
    drawn = torch.stack([sum(permuted_log_probabilities(z, 2, 10, seed))[1:].mean() for seed in range(1, 61)])
    assert (turned.mean() - drawn.mean()).abs() < 4 * drawn.std() * (2 / 60) ** 0.5
    assert 0.6 < turned.std() / drawn.std() < 1.6
    neighbours = torch.stack([turned[1:], turned[:-1]])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 4 / 59**0.5


def test_turned_layouts_take_true_noise_for_what_it_is_and_find_what_is_none():
    """P by the layouts that the regulariser uses: as seldom below the floor on true noise, and as low on the rest."""
    source = torch.Generator().manual_seed(0)

    def log_p(z, turn):
        return torch.cat(permuted_log_probabilities(z, 2, 100, 0, turn), dim=-1).amin(dim=-1)

    z = torch.randn(1000, 1024, generator=source)
    found = torch.stack([log_p(z, turn) for turn in (0, 17, 400, 1001)]).exp()
    assert ((found < core.P_SUSPICIOUS).float().mean(dim=1) < 0.005).all()
    expected = torch.tensor([0.06, 0.26, 0.62])
    for row in found:
        torch.testing.assert_close(row.quantile(torch.tensor([0.05, 0.5, 0.95])), expected, rtol=0.2, atol=0.02)
    z = torch.randn(1, 20480, generator=source)
    repeated = z[:, :64].repeat(1, 320) * 1.1
    blurred = torch.nn.functional.avg_pool1d(z[None], 9, 1, 4)[0]
    for spoiled in (repeated, blurred / blurred.std(), z * 1.1, z + 0.1):
        assert (log_p(spoiled, 5000).exp() < 1e-6).all() and (log_p(spoiled, 0).exp() < 1e-6).all()


def test_true_noise_has_the_known_quantiles_of_p():
    z = torch.randn(300, 3072, generator=torch.Generator().manual_seed(0))
    found = core.noise_probability(z).quantile(torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(found, torch.tensor([0.06, 0.26, 0.62]), rtol=0.2, atol=0.02)


def test_true_noise_passes_the_floor():
    z = torch.randn(1000, 1024, generator=torch.Generator().manual_seed(0))
    assert (core.noise_probability(z) < core.P_SUSPICIOUS).float().mean() < 0.005


@pytest.mark.parametrize("spoil", [
    lambda z: z * 1.1, lambda z: z * 0.9, lambda z: z + 0.1, lambda z: torch.zeros_like(z), lambda z: z.sign(),
    lambda z: z.view(-1, 2).mean(dim=1, keepdim=True).mul(2**0.5).expand(-1, 2).reshape(-1),
])
def test_spoiled_noise_is_out_of_distribution(spoil):
    z = torch.randn(20480, generator=torch.Generator().manual_seed(0))
    spoiled = spoil(z)
    # Signs keep the mean, the variance and every correlation: only a larger k could tell, and P does not claim to.
    expected = core.noise_probability(spoiled[None]) < 1e-6
    assert bool(expected) != torch.equal(spoiled, z.sign())
    assert core.noise_probability(z[None]) > 0.01


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("apart", [False, True])
def test_the_gradient_equals_central_differences(k, apart):
    noise_map = sample_map(batch=2)
    noise = core.Noise.randn((2, 3, 6, 6), 3, seed=1).to(torch.float64).map(lambda tensor: tensor * 1.6 + 0.3)
    regularizer = core.ProbabilityRegularizer(gamma=0.7, k=k, permutations=9, apart=apart)
    _, gradient = regularizer.gradient(noise_map, noise, iteration=3)
    direction = torch.randn(noise.flat().shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ends = [
        regularizer.gradient(noise_map, noise.with_flat(noise.flat() + sign * 1e-6 * direction), iteration=3)[0]
        for sign in (1, -1)
    ]
    expected = (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close((gradient.flat() * direction).sum(dim=1), expected, rtol=1e-6, atol=1e-8)


def test_probable_noise_is_left_alone_and_new_permutations_come_each_iteration():
    noise_map = sample_map(batch=1)
    exact = core.Noise.randn((1, 3, 6, 6), 3, seed=0)
    flat = exact.flat()
    calm = exact.with_flat((flat - flat.mean()) / flat.std())
    value, gradient = core.ProbabilityRegularizer(permutations=0).gradient(noise_map, calm)
    assert float(value) == 0 and not gradient.flat().any()
    regularizer = core.ProbabilityRegularizer(apart=False)
    drifted = calm.map(lambda tensor: tensor * 2 + 1)
    first, second = (regularizer.gradient(noise_map, drifted, iteration=i)[0] for i in (0, 1))
    assert first < -1 and first != second
    assert first == regularizer.gradient(noise_map, drifted, iteration=0)[0]


def test_x_t_alone_is_judged_although_the_rest_hides_it():
    noise_map = core.SampleMap(lambda x, sigma: x, core.Schedule(torch.linspace(9, 0, 21)), (1, 4, 16, 16))
    noise = noise_map.randn(0)
    drifted = core.Noise(noise.initial + 0.25, noise.injected)
    assert log_noise_probability(noise_map.active(drifted)).exp() > 0.01
    assert log_noise_probability(noise_map.active_initial(drifted)).exp() < 1e-6
    whole = core.ProbabilityRegularizer(apart=False).gradient(noise_map, drifted)[0]
    apart = core.ProbabilityRegularizer(apart=True).gradient(noise_map, drifted)[0]
    assert apart < whole - 5


@pytest.mark.parametrize("regularizer", [core.ProbabilityRegularizer(), core.NormRegularizer()])
def test_a_picture_of_which_nothing_is_searched_has_no_term(regularizer):
    mask = torch.ones(2, 1, 6, 6)
    mask[1] = 0
    noise_map = sample_map(batch=2, mask=mask)
    value, gradient = regularizer.gradient(noise_map, noise_map.randn(0).map(lambda z: 2 * z))
    assert value[0].abs() > 0.1 and value[1] == 0
    assert gradient.flat()[0].any() and not gradient.flat()[1].any()


def test_a_probability_that_was_asked_for_in_inference_mode_leaves_nothing_that_a_search_cannot_use():
    """As ComfyUI runs its nodes: DNO Noise Probability first, and a search of noise of that shape after it."""
    noise_map = sample_map(batch=2)
    noise = noise_map.randn(0).map(lambda z: 1.1 * z)
    expected = core.ProbabilityRegularizer().gradient(noise_map, noise)
    _layouts.cache_clear()
    with torch.inference_mode():
        for z in (noise.flat(), noise.initial.flatten(1), noise.injected.transpose(0, 1).flatten(1)):
            core.noise_probability(z)
    found = core.ProbabilityRegularizer().gradient(noise_map, noise)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1].flat(), expected[1].flat())


def test_permutations_are_drawn_once_for_a_search_also_of_several_masks_and_let_go_of_after_it():
    mask = torch.zeros(4, 1, 6, 6)
    for item, rows in enumerate((2, 3, 4, 6)):
        mask[item, :, :rows] = 1
    noise_map, counts = sample_map(batch=4, mask=mask), []
    _layouts.cache_clear()
    core.optimize(
        noise_map, lambda images, prompts: images.mean(dim=(1, 2, 3)), noise_map.randn(0).to(torch.float64),
        core.GradientAscent(), core.ProbabilityRegularizer(), iterations=3,
        callback=lambda evaluation, best: counts.append(_layouts.cache_info().misses),
    )  # fmt: skip
    assert counts[0] == counts[-1] == 10, "z, x_T and the injected noises of four masks; two lengths are the same"
    assert _layouts.cache_info().currsize == 0


def test_half_precision_noise_is_judged_in_float32():
    z = torch.randn(20480, generator=torch.Generator().manual_seed(3)).half()
    assert core.log_probabilities(z)[0].dtype == torch.float32
    torch.testing.assert_close(core.noise_probability(z[None]), core.noise_probability(z.float()[None]))


@pytest.mark.parametrize("k", [0, 9])
def test_k_larger_than_n_is_refused(k):
    with pytest.raises(ValueError, match=r"expected 1 \.\. 8"):
        core.log_probabilities(torch.zeros(8), k)


def test_it_costs_at_most_half_of_the_plain_loop_at_stable_diffusions_size():
    """n = 835,584, k = 2, b = 100: value and gradient, against randperm + SVD for each permutation."""
    z = torch.randn(835584, generator=torch.Generator().manual_seed(0)) * 1.01

    def plain(count):
        leaf, total = z.clone().requires_grad_(), 0.0
        for _ in range(count):
            rows = leaf[torch.randperm(leaf.numel())].view(-1, 2)
            m = len(rows)
            spectral = torch.linalg.matrix_norm(rows.T @ rows / m - torch.eye(2), 2)
            total = total - m * rows.mean(dim=0).norm() ** 2 / 4
            total = total - m * ((1 + spectral).sqrt() - 1 - math.sqrt(2 / m)).clamp(min=0) ** 2 / 2
        total.backward()

    def ours():
        leaf = z.clone().requires_grad_()
        sum(log_p.mean() for log_p in permuted_log_probabilities(leaf, 2, 100)).backward()

    def seconds(run, *arguments):
        start = time.perf_counter()
        run(*arguments)
        return time.perf_counter() - start

    ratios = [seconds(ours) / (10 * seconds(plain, 10)) for _ in range(3)]
    assert statistics.median(ratios) < 0.5


def test_it_needs_less_than_400_megabytes_at_stable_diffusions_size():
    code = """
import torch
from comfyui_dno.core.regularizer import permuted_log_probabilities
def run(n):
    z = torch.randn(n).mul(1.01).requires_grad_()
    sum(log_p.mean() for log_p in permuted_log_probabilities(z, 2, 100)).backward()
def resident(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])
run(4096)
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts from here
before = resident("VmRSS")
run(835584)
print(resident("VmHWM") - before)
"""
    kilobytes = int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert 835584 * 4 / 1024 < kilobytes < 400e3


def golden_noise(seed=0):
    return core.Noise.randn((1, 4, 16, 16), 19, seed)


def test_the_layouts_that_p_is_judged_by_stay_those_of_saved_histories():
    found = [log_noise_probability(golden_noise(seed).flat()).item() for seed in (0, 1, 2)]
    assert found == pytest.approx([-1.0764, -0.6298, -2.3084], abs=2e-4)


def test_the_layouts_of_a_seed_stay_those_that_the_documented_results_were_made_with():
    """What a search finds depends on them far more than one would think."""
    schedule = core.Schedule(tuple(float(sigma) for sigma in range(20, -1, -1)))
    noise_map = core.SampleMap(lambda x, sigma: x, schedule, (1, 4, 16, 16))
    found = [core.ProbabilityRegularizer().gradient(noise_map, golden_noise(), i)[0].item() for i in (0, 1, 2)]
    assert found == pytest.approx([-0.1007, -0.1864, -0.1410], abs=2e-4)

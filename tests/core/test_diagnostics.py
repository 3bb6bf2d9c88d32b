"""Why a search stopped: both factors of the gradient against the Jacobian, and each type where it must appear."""

import json
import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.diagnostics import diagnose

SIZE = 6


def smooth_map(batch=1, **settings):
    """A nonlinear map of points of six numbers, float64; z has 18."""
    weight = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, sigma):
        return torch.tanh(x @ weight) * 1.5

    return core.SampleMap(denoise, core.Schedule((3.0, 1.0, 0.3, 0.0)), (batch, SIZE), **settings)


def plain_map(decode, batch=4, size=SIZE):
    """The map z -> decode(x_T), one step of a denoiser that answers its input: the Jacobian is decode's."""
    schedule = core.Schedule((1.0, 0.0))
    return core.SampleMap(lambda x, sigma: 1 * x, schedule, (batch, size), start=lambda z: 1 * z, decode=decode)


def start(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def jacobian(noise_map, noise):
    """d images / d z of a batch of one by torch.func, through the steps written out: (D, n)."""

    def images(flat):
        z = noise.with_flat(flat[None])
        x = noise_map.start(z.initial)
        for index, (sigma, sigma_next) in enumerate(noise_map.schedule.intervals):
            denoised = noise_map.denoise(x, x.new_full((1,), sigma))
            x = core.sde_step(x, denoised, sigma, sigma_next, 1.0, z.injected[index] if sigma_next else None)
        return noise_map.decode(x)[0]

    return torch.func.jacrev(images)(noise.flat()[0])


def cubes(images, prompts):
    return images.pow(3).sum(dim=1)


def total(images, prompts):
    return images.sum(dim=1)


def diagnosis(noise_map, reward, noise=None, regularizer=None, **settings):
    return diagnose(core.Problem(noise_map, reward, regularizer), noise or start(noise_map), **settings)


@pytest.mark.parametrize("part", ["all", "initial", "last 1"])
def test_the_norms_are_those_of_the_jacobian(part):
    noise_map = smooth_map(part=part)
    noise = start(noise_map)
    matrix = jacobian(noise_map, noise) * noise_map.active_entries(noise)
    g1 = 3 * noise_map.sample(noise)[0].square()
    found = diagnosis(noise_map, cubes, noise, probes=SIZE)
    expected = [g1.norm(), matrix.norm(), (matrix.T @ g1).norm()]
    torch.testing.assert_close(torch.cat([found.g1, found.g2, found.product]), torch.stack(expected))
    alignment = math.sqrt(SIZE) * expected[2] / (expected[0] * expected[1])
    torch.testing.assert_close(found.alignment[0], alignment)


def test_few_probes_estimate_the_norm_without_bias():
    noise_map = smooth_map()
    exact = float(diagnosis(noise_map, cubes, probes=SIZE).g2)
    reference = diagnosis(noise_map, cubes, probes=1)
    found = [float(diagnosis(noise_map, cubes, probes=2, seed=seed, reference=reference).g2) for seed in range(200)]
    squares = torch.tensor(found).square()
    assert squares.std() > 0.1 * exact**2
    assert float(squares.mean()) == pytest.approx(exact**2, abs=4 * float(squares.std()) / 200**0.5)


def test_each_picture_is_judged_by_its_own_noise():
    noise_map = smooth_map(batch=3)
    noise = start(noise_map)
    together = diagnosis(noise_map, cubes, noise, probes=SIZE)
    for item in range(3):
        alone = diagnosis(smooth_map(), cubes, noise.item(item), probes=SIZE)
        for key in ("g1", "g2", "product", "alignment"):
            torch.testing.assert_close(getattr(together, key)[item], getattr(alone, key)[0])


def test_a_random_direction_has_alignment_one_on_average():
    directions = torch.randn(400, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scales = torch.tensor([3.0, 1.0, 1.0, 0.1, 0.01, 0.0], dtype=torch.float64)
    noise_map = plain_map(lambda x: x * scales, batch=400)
    found = diagnosis(noise_map, lambda images, prompts: (images * directions).sum(dim=1), probes=SIZE)
    assert float(found.alignment.square().mean()) == pytest.approx(1, abs=0.25)
    assert float(found.alignment.max()) < SIZE**0.5


def test_a_stationary_point_of_the_reward_is_type_one():
    noise_map = smooth_map(batch=2)
    peak = noise_map.sample(start(noise_map))
    away = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    found = diagnosis(noise_map, lambda images, prompts: -(images - peak - away).square().sum(dim=1))
    assert found.types == ["I", "none"]
    assert "stationary point" in found.text().splitlines()[0] and "still improving" in found.text().splitlines()[1]


def test_a_saturated_picture_is_type_two():
    noise_map = plain_map(torch.tanh, batch=2)
    noise = start(noise_map)
    far = noise.with_flat(torch.stack([noise.flat()[0], 10 * torch.ones(SIZE, dtype=torch.float64)]))
    found = diagnosis(noise_map, total, far)
    assert found.types == ["none", "II"] and "hardly changes" in found.text()


def test_a_map_that_never_changes_is_type_two_whatever_the_reference():
    assert diagnosis(plain_map(lambda x: 0 * x + 0.5), total).types == ["II"] * 4


def test_a_reward_across_the_line_that_is_drawn_is_type_three():
    noise_map = plain_map(lambda x: x * torch.tensor([1.0, 0.0], dtype=torch.float64), size=2)
    across = diagnosis(noise_map, lambda images, prompts: images[:, 1])
    along = diagnosis(noise_map, lambda images, prompts: images[:, 0])
    assert across.types == ["III"] * 4 and across.alignment.tolist() == [0.0] * 4
    assert along.types == ["none"] * 4 and along.alignment.tolist() == pytest.approx([2**0.5] * 4)


def test_a_picture_where_both_factors_vanish_is_type_one():
    noise_map = plain_map(lambda x: 0 * x)
    assert diagnosis(noise_map, lambda images, prompts: images.square().sum(dim=1)).types == ["I"] * 4


@pytest.mark.parametrize("reward_scale, image_scale", [(1e-6, 1.0), (1e6, 1.0), (1.0, 1e-4), (1.0, 1e4)])
def test_types_do_not_depend_on_the_scale_of_reward_and_images(reward_scale, image_scale):
    def run(reward_scale, image_scale):
        noise_map = plain_map(lambda x: image_scale * torch.tanh(x))
        values = torch.tensor([0.5, 4.0, 1.0, 0.0], dtype=torch.float64)
        noise = core.Noise(values[:, None].expand(4, SIZE), torch.zeros(0, 4, SIZE, dtype=torch.float64))

        def reward(images, prompts):
            images = images / image_scale
            return reward_scale * (images[:, 0] - images[:, 0] ** 2 / 1.5)

        return diagnosis(noise_map, reward, noise, probes=SIZE)

    found, expected = run(reward_scale, image_scale), run(1.0, 1.0)
    assert found.types == expected.types
    torch.testing.assert_close(found.g1_relative, expected.g1_relative)
    torch.testing.assert_close(found.g2_relative, expected.g2_relative)


def test_a_given_reference_sets_the_units():
    noise_map = smooth_map(batch=2)
    first = diagnosis(smooth_map(batch=3), cubes, probes=SIZE)
    later = diagnosis(noise_map, cubes, start(noise_map, 7), probes=SIZE, reference=first)
    torch.testing.assert_close(later.g1_relative, later.g1 / first.g1.median())
    torch.testing.assert_close(later.g2_relative, later.g2 / first.g2.median())


def test_the_true_noise_of_the_reference_leaves_what_is_kept():
    seen = []
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    noise_map = plain_map(lambda x: seen.append(x.detach().clone()) or torch.tanh(x), batch=1)
    noise_map.mask = mask
    noise = core.Noise(torch.full((1, SIZE), 9.0), torch.zeros(0, 1, SIZE))
    found = diagnosis(noise_map, total, noise)
    at_reference = [x for x in seen if not torch.equal(x, noise.initial)]
    assert at_reference and all((x[:, 2:] == 9).all() and (x[:, :2].abs() < 5).all() for x in at_reference)
    assert found.types == ["II"]


def test_without_the_rewards_gradient_only_the_map_is_judged():
    def count(images, prompts):
        return (images > 0).sum(dim=1).float()

    count.differentiable = False
    noise = core.Noise(torch.tensor([[0.3], [12.0]]).expand(2, SIZE), torch.zeros(0, 2, SIZE))
    found = diagnosis(plain_map(torch.tanh, batch=2), count, noise, probes=SIZE)
    assert found.types == ["unknown", "II"]
    assert found.g1.isnan().all() and found.product.isnan().all() and found.alignment.isnan().all()
    slope = 1 - math.tanh(0.3) ** 2
    assert float(found.g2[0]) == pytest.approx(SIZE**0.5 * slope, rel=1e-5)
    assert "not to be had" in found.text() and "nan" not in found.text()


class Opposing:
    """A regulariser whose gradient is `share` of a given one, backwards."""

    def __init__(self, gradient, share):
        self.opposite = gradient.map(lambda values: -share * values)

    def gradient(self, sample_map, noise, iteration=0):
        return torch.zeros(noise.batch), self.opposite


@pytest.mark.parametrize("share, held", [(0.9, True), (0.3, False), (-0.5, False)])
def test_a_regulariser_that_takes_the_slope_back_is_named(share, held):
    noise_map = smooth_map()
    _, gradient = core.Problem(noise_map, cubes).gradient(start(noise_map))
    found = diagnosis(noise_map, cubes, regularizer=Opposing(gradient, share))
    assert found.types == ["none"] and float(found.opposed) == pytest.approx(share)
    assert ("held by the regulariser, which takes back 90%" in found.text()) == held


def test_the_report_is_plain_json():
    found = diagnosis(smooth_map(batch=2), cubes)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["types"] == found.types and again["g2"] == found.g2.tolist() and "opposed" not in again
    constant = diagnosis(plain_map(lambda x: 0 * x), cubes)
    assert constant.to_dict()["alignment"] == [None] * 4
    beyond = diagnosis(plain_map(lambda x: 1e9 * x), cubes, reference=constant)
    assert json.dumps([constant.to_dict(), beyond.to_dict()], allow_nan=False)


def test_no_call_holds_more_pictures_than_the_batch_and_the_best_is_left_alone():
    noise_map, rows = smooth_map(batch=2), []
    inner = noise_map.denoise
    noise_map.denoise = lambda x, sigma: rows.append(len(x)) or inner(x, sigma)
    problem = core.Problem(noise_map, cubes)
    diagnose(problem, start(noise_map), probes=3)
    passes = 2 * (1 + 3)  # here and at true noise
    assert set(rows) == {2} and len(rows) == passes * 2 * noise_map.schedule.steps
    assert problem.best.noise is None


def test_at_least_one_probe_is_needed():
    with pytest.raises(ValueError, match="probes is 0"):
        diagnosis(smooth_map(), cubes, probes=0)

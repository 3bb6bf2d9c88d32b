"""Gradient ascent's step, and ReNO's preset of it."""

import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.solvers import sphere
from tiny_models import sample_map


class NoPush:
    """A regulariser that is content with every noise."""

    def gradient(self, sample_map, noise, iteration=0):
        return noise.flat().new_zeros(noise.batch), noise.map(torch.zeros_like)


def parts(noise):
    """(parts, B, n): x_T and the injected noises."""
    return torch.cat([noise.initial[None], noise.injected]).flatten(2)


def test_renos_preset_climbs_on_x_t_alone_and_keeps_its_norm():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    result = core.reno(noise_map, lambda i, p: 100 * i.mean(dim=(1, 2, 3)), noise, iterations=15)
    scores = result.history.column("score")
    assert max(scores) > scores[0] + 0.05
    assert all(0.8 < norm < 1.3 for row in result.history.rows for norm in row["norm"])
    assert torch.equal(result.noise.injected, noise.injected) and not torch.equal(result.noise.initial, noise.initial)


def test_renos_step_is_a_clipped_nesterov_step():
    """Its first update is lr * (1 + momentum) times the gradient, clipped to norm 0.1."""
    noise_map = sample_map(part="initial")
    noise = noise_map.randn(0).to(torch.float64)
    problem = core.Problem(noise_map, lambda i, p: 1e4 * i.mean(dim=(1, 2, 3)), core.NormRegularizer())
    _, gradient = problem.gradient(noise)
    moved, _ = core.GradientAscent.reno().fresh().step(problem, noise)
    direction = gradient.flat() / gradient.flat().norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved.flat(), noise.flat() + 5 * 1.9 * 0.1 * direction)


def test_a_gradient_that_is_shorter_than_the_clip_stays_as_it_is():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    problem = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)))
    _, gradient = problem.gradient(noise)
    moved, _ = core.GradientAscent(lr=1.0, optimizer="sgd", momentum=0.0, clip=1e3).step(problem, noise)
    torch.testing.assert_close(moved.flat(), noise.flat() + gradient.flat())


def test_an_ou_step_is_as_long_as_its_iteration_says_whatever_the_rewards_units():
    """z_j' = sqrt(1 - b^2) z_j + b |z_j| v_j, b from 0.2 to a third, v_j the part's own direction on its sphere."""
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    z = parts(noise)
    for scale in (1.0, 1e4):
        for iteration, b in ((0, 0.2), (2, 0.2 / 3**0.5), (4, 0.2 / 3), (9, 0.2 / 3)):
            reward = lambda i, p, scale=scale: scale * i.mean(dim=(1, 2, 3))  # noqa: E731
            problem = core.Problem(noise_map, reward, NoPush(), iterations=5, iteration=iteration)
            _, gradient = problem.gradient(noise)
            g = parts(gradient)
            tangent = g - (g * z).sum(dim=-1, keepdim=True) / z.square().sum(dim=-1, keepdim=True) * z
            moved, _ = core.GradientAscent.ou(core.Exact(), lr=0.2).step(problem, noise)
            step = b * z.norm(dim=-1, keepdim=True) * tangent / tangent.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(parts(moved), (1 - b**2) ** 0.5 * z + step)


@pytest.mark.parametrize("iterations, first", [(5, 0.2), (20, 0.2), (81, 0.1), (324, 0.05)])
def test_an_ou_step_of_no_given_length_is_shorter_in_a_longer_search(iterations, first):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    problem = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), iterations=iterations)
    moved, _ = core.GradientAscent.ou(core.Hybrid2()).step(problem, noise)
    cosine = torch.nn.functional.cosine_similarity(parts(moved), parts(noise), dim=-1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, (1 - first**2) ** 0.5), rtol=0, atol=1e-6)


def test_an_ou_step_stays_where_the_slope_is_0_and_where_nothing_is_searched():
    noise_map = sample_map(part="initial")
    noise = noise_map.randn(0).to(torch.float64)
    flat = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)) * 0, NoPush())
    moved, _ = core.GradientAscent.ou(core.Exact()).step(flat, noise)
    assert torch.equal(moved.flat(), noise.flat())
    climbing = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)))
    moved, _ = core.GradientAscent.ou(core.Hybrid2()).step(climbing, noise)
    assert torch.equal(moved.injected, noise.injected) and not torch.equal(moved.initial, noise.initial)


def test_a_picture_on_which_no_perturbation_tells_goes_on_by_chance():
    """A detector that counts hears small perturbations nowhere on its plateaus; the other picture climbs meanwhile."""
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    both = lambda i, p: i.mean(dim=(1, 2, 3))  # noqa: E731
    first_alone = lambda i, p: i.mean(dim=(1, 2, 3)) * torch.tensor([1.0, 0.0]).repeat(len(i) // 2)  # noqa: E731
    solver, other = (core.GradientAscent.ou(core.Hybrid2(seed=seed), lr=0.2) for seed in (0, 1))
    found = {}
    for name, reward, iteration in (("both", both, 0), ("first", first_alone, 0), ("later", first_alone, 1)):
        problem = core.Problem(noise_map, reward, NoPush(), iterations=1, iteration=iteration)
        found[name], again = (parts(solver.step(problem, noise)[0]) for _ in range(2))
        assert torch.equal(found[name], again)
    torch.testing.assert_close(found["first"][:, 0], found["both"][:, 0], rtol=0, atol=1e-6)
    for name in ("first", "later"):
        cosine = torch.nn.functional.cosine_similarity(found[name][:, 1], parts(noise)[:, 1], dim=-1)
        assert (cosine >= 0.96**0.5 - 1e-6).all() and (cosine < 0.999).all()  # halved, or not: noise of few numbers
    found["other"] = parts(other.step(problem, noise)[0])
    for one, two in (("first", "later"), ("later", "other")):  # another chance each time, and by each seed
        assert not torch.allclose(found[one][:, 1], found[two][:, 1], atol=0.1)
    one = core.Problem(noise_map, first_alone, NoPush(), iterations=1)
    one.ended[1] = "it broke"
    assert torch.equal(parts(solver.step(one, noise)[0])[:, 1], parts(noise)[:, 1])


@pytest.mark.parametrize("regularizer", [
    None, core.NormRegularizer(), core.ProbabilityRegularizer(), core.ProbabilityRegularizer(gamma=0.0),
])
def test_ou_stays_where_noise_is_probable_however_long_it_climbs(regularizer):
    """The reward wants every number of x_T alike; steps that followed it alone would get that."""
    noise_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), (1, 3, 24, 24), eta=0.0)
    result = core.optimize(
        noise_map, lambda images, prompts: images.mean(dim=(1, 2, 3)), noise_map.randn(0),
        core.GradientAscent.ou(core.Exact(), lr=0.2), regularizer, iterations=60,
    )  # fmt: skip
    assert min(result.history.column("log_p")) > math.log(0.01) - 1
    assert result.history.best_row["iteration"][0] > 5
    assert result.history.best_row["score"][0] > result.history.column("score")[0] + 0.02


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_an_ou_step_with_a_regulariser_is_the_same_whatever_the_rewards_units(scale):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    found = []
    for unit in (1.0, scale):
        reward = lambda i, p, unit=unit: unit * i.mean(dim=(1, 2, 3))  # noqa: E731
        problem = core.Problem(noise_map, reward, core.ProbabilityRegularizer())
        found.append(core.GradientAscent.ou(core.Exact(), lr=0.2).step(problem, noise)[0].flat())
    torch.testing.assert_close(found[0], found[1])


def test_the_push_has_the_weight_of_the_parts_that_are_searched():
    """x_T alone is searched, of five parts: what pushes is not of the length of five."""
    noise_map = core.SampleMap(
        lambda x, sigma: x / 2, core.Schedule([4.0, 3.0, 2.0, 1.0, 0.0]), (1, 3, 24, 24), part="initial"
    )
    noise = noise_map.randn(0).map(lambda z: 0.7 * z + 0.7)  # as long as true noise, and improbable
    problem = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)))
    evaluation = problem.evaluate(noise)
    zero = torch.zeros_like(sphere.parts_of(noise))
    on = sphere.Sphere.of(noise_map, noise)
    pushed = sphere.kept_probable(problem, evaluation, on, zero, core.ProbabilityRegularizer())
    assert pushed[0].norm() == pytest.approx(2, rel=1e-4) and not pushed[1:].any()  # the most that lambda is


def test_a_part_of_one_number_has_no_direction():
    """The sphere of one number is two points: what rounding leaves of a direction along it is none."""
    noise_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), (64, 1, 1, 1))
    on = sphere.Sphere.of(noise_map, noise_map.randn(0))
    vectors = torch.randn(on.z.shape, generator=torch.Generator().manual_seed(1))
    assert not on.tangent(vectors).any()


def test_ou_climbs_by_an_estimate_and_keeps_the_noises_length():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    solver = core.GradientAscent.ou(core.Hybrid2())
    history = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=15).history
    for item in (0, 1):
        assert max(history.column("score", item)) > history.column("score", item)[0]
    most = 1 + 2 / noise.flat().shape[1] ** 0.5
    assert all(norm < most + 1e-6 for row in history.rows[1:] for norm in row["norm"])


def test_steps_of_a_given_length_keep_half_precision_noise_of_many_numbers():
    """Their number, 76,800, is more than float16 can count to."""
    noise_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), (1, 3, 160, 160), eta=0.0)
    noise = noise_map.randn(0).to(torch.float16)
    found = core.optimize(
        noise_map, lambda images, prompts: images.float().mean(dim=(1, 2, 3)), noise,
        core.GradientAscent.ou(core.Exact()), iterations=3,
    )  # fmt: skip
    scores = found.history.column("score")
    assert scores[-1] > scores[0] and found.history.stopped == "3 iterations done"


@pytest.mark.parametrize("solver", [core.GradientAscent(0.001), core.GradientAscent(0.5, optimizer="sgd")])
def test_half_precision_noise_stays_so_and_its_small_steps_add_up(solver):
    """bfloat16 holds 1 + 1 / 128 and nothing between: steps of a thousandth would be lost one by one."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        noise_map = core.SampleMap(lambda x, sigma: x / 2, core.Schedule([2.0, 1.0, 0.0]), (1, 3, 4, 4))
        noise = noise_map.randn(0).to(torch.bfloat16).to(dtype)
        result = core.optimize(
            noise_map, lambda images, prompts: 10 * images.float().mean(dim=(1, 2, 3)), noise, solver, iterations=40
        )
        assert result.noise.initial.dtype == result.noise.checkpoint.noise.initial.dtype == dtype
        found[dtype] = result.history.column("score")[-1] - result.history.column("score")[0]
    assert found[torch.bfloat16] == pytest.approx(found[torch.float32], rel=0.1)

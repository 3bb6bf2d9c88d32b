"""Gradients of rewards that have none, against the exact ones."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import exact
from tiny_models import sample_map


def smooth(images, prompts):
    weights = torch.linspace(-1, 1, images[0].numel()).view(images.shape[1:]).to(images)
    return (images * weights).mean(dim=(1, 2, 3)) * 30


def problem_of(estimator=None, reward=smooth, **settings):
    noise_map = sample_map(**settings)
    problem = core.Problem(noise_map, reward)
    noise = noise_map.randn(0).to(torch.float64)
    return problem, noise, (problem.gradient(noise, estimator)[1].flat() if estimator else None)


def cosine(a, b):
    return torch.cosine_similarity(a, b).min().item()


@pytest.mark.parametrize("estimator", [core.Hybrid1(q=3000, mu=1e-3), core.ZerothOrder(q=3000, mu=1e-3)])
def test_many_perturbations_estimate_the_exact_gradient(estimator):
    """The error's norm is about sqrt(n / q) of the gradient's: n = 432 numbers, q = 3000."""
    _, _, expected = problem_of(core.Exact())
    _, _, found = problem_of(estimator)
    assert cosine(found, expected) > 0.9
    torch.testing.assert_close((found * expected).sum(1), expected.square().sum(1), rtol=0.15, atol=0)


def test_hybrid_2_estimates_j_jt_times_the_images_gradient():
    """[derived] H_2 tends to J J^T d r / d x, which the backward pass multiplies by J^T again."""
    problem, noise, found = problem_of(core.Hybrid2(q=4000, mu=1e-3), batch=1)
    noise_map = problem.sample_map
    jacobian = torch.func.jacrev(lambda flat: forward(noise_map, noise.with_flat(flat)).flatten())(noise.flat())[:, 0]
    images = noise_map.sample(noise)
    d_images = exact(smooth, images)[1].flatten()
    expected = (jacobian.T @ (jacobian @ (jacobian.T @ d_images)))[None]
    assert cosine(found, expected) > 0.9
    torch.testing.assert_close((found * expected).sum(), expected.square().sum(), rtol=0.2, atol=0)


def forward(noise_map, noise):
    x = noise_map.start(noise.initial)
    for index, (sigma, sigma_next) in enumerate(noise_map.schedule.intervals):
        denoised = noise_map.denoise(x, x.new_full((len(x),), sigma))
        step_noise = noise.injected[index] if index < len(noise.injected) else None
        x = core.sde_step(x, denoised, sigma, sigma_next, 1.0, step_noise)
    return noise_map.decode(x)


@pytest.mark.parametrize("estimator", [core.Hybrid1, core.Hybrid2, core.ZerothOrder])
def test_the_estimate_is_a_mean_so_the_same_perturbation_again_changes_nothing(estimator):
    found = []
    for q in (1, 2, 5):
        problem, noise, _ = problem_of()
        problem.draw = lambda index, like, seed: core.precision.normal(like.shape, like, "the same")
        found.append(problem.gradient(noise, estimator(q=q))[1].flat())
    assert found[0].norm() > 0
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("estimator", [core.Hybrid1(q=3), core.Hybrid2(q=3), core.ZerothOrder(q=3)])
def test_a_perturbation_whose_score_is_not_finite_does_not_count(estimator, value):
    """As if it had scored what the noise itself scores: a difference of 0."""

    def reward_with(found):
        def reward(images, prompts):
            scores = smooth(images, prompts)
            scores[2] = scores[0] if found is None else found  # of the first picture the first perturbation
            return scores

        return reward

    found, expected = (problem_of(estimator, reward_with(score))[2] for score in (value, None))
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("estimator", [core.Hybrid2(q=5), core.ZerothOrder(q=5)])
def test_candidates_in_small_calls_give_the_same_gradient(estimator):
    together, small = problem_of(estimator)[2], problem_of(estimator, most_rows=4)[2]
    torch.testing.assert_close(small, together)


@pytest.mark.parametrize("estimator", [core.Hybrid1(), core.Hybrid2(), core.ZerothOrder()])
def test_the_baseline_is_scored_in_the_candidates_batch(estimator):
    """A reward that drifts from call to call would otherwise make differences of its own."""
    calls = []

    def drifting(images, prompts):
        calls.append(len(images))
        return smooth(images, prompts) + 1000.0 * len(calls)

    _, _, found = problem_of(estimator, reward=drifting)
    _, _, expected = problem_of(estimator)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert calls == [2 * (estimator.q + 1)]


@pytest.mark.parametrize("estimator", [core.Hybrid1(q=6), core.Hybrid2(q=6), core.ZerothOrder(q=6)])
def test_perturbations_change_with_the_iteration_and_the_seed_only(estimator):
    from dataclasses import replace

    problem, noise, first = problem_of(estimator)
    torch.testing.assert_close(problem.gradient(noise, estimator)[1].flat(), first)
    assert not torch.allclose(problem.gradient(noise, replace(estimator, seed=1))[1].flat(), first)
    problem.iteration = 1
    assert not torch.allclose(problem.gradient(noise, estimator)[1].flat(), first)


@pytest.mark.parametrize("estimator", [core.Hybrid1(q=16), core.Hybrid2(q=8), core.ZerothOrder(q=32)])
def test_a_reward_without_gradient_rises(estimator):
    noise_map = sample_map()

    def steps(images, prompts):
        return (images.mean(dim=(1, 2, 3)) * 1e5).round() / 1e5

    steps.differentiable = False
    solver = core.GradientAscent(lr=0.05, estimator=estimator)
    result = core.optimize(noise_map, steps, noise_map.randn(0).to(torch.float64), solver, iterations=25, floor=0.0)
    for item in (0, 1):
        scores = result.history.column("score", item)
        assert scores[-1] > scores[0] + 0.01


def test_only_zo_sgd_never_differentiates_the_model():
    noise_map = sample_map()
    denoise, asked = noise_map.denoise, []
    noise_map.denoise = lambda x, sigma: asked.append(x.requires_grad and torch.is_grad_enabled()) or denoise(x, sigma)
    problem, noise = core.Problem(noise_map, smooth), noise_map.randn(0).to(torch.float64)
    problem.gradient(noise, core.ZerothOrder(q=2))
    assert not any(asked)
    problem.gradient(noise, core.Hybrid2(q=2))
    assert any(asked)


def test_the_exact_gradient_refuses_rewards_without_one_and_names_the_others():
    noise_map = sample_map()
    message = r"jpeg comp.* is not differentiable.*Zeroth-Order \(Hybrid-1, Hybrid-2 or ZO-SGD\), ZeNO or Search$"
    with pytest.raises(ValueError, match=message):
        core.optimize(noise_map, rewards.JPEG(), noise_map.randn(0).to(torch.float64), iterations=1)


@pytest.mark.parametrize("part, active", [
    ("initial", {0}), ("first 2", {1, 2}), ("last 1", {3}), ("all", {0, 1, 2, 3}),
    ("injected", {1, 2, 3}),
])
def test_a_part_of_the_noises_can_be_optimised_alone(part, active):
    noise_map = sample_map(part=part)
    noise = noise_map.randn(0).to(torch.float64)
    for estimator in (core.Exact(), core.ZerothOrder(q=2)):
        gradient = core.Problem(noise_map, smooth).gradient(noise, estimator)[1]
        moved = [gradient.initial, *gradient.injected]
        assert {index for index, tensor in enumerate(moved) if tensor.any()} == active
    solver = core.GradientAscent(lr=0.1)
    regularizer = core.ProbabilityRegularizer()
    result = core.optimize(noise_map, smooth, noise, solver, regularizer, iterations=3, floor=0.0)
    changed = [result.noise.initial - noise.initial, *(result.noise.injected - noise.injected)]
    assert {index for index, tensor in enumerate(changed) if tensor.any()} == active


@pytest.mark.parametrize("part", ["first 4", "last 0", "middle 2", "first"])
def test_unknown_parts_are_refused(part):
    with pytest.raises(ValueError, match=r"'initial', 'injected', 'first K' or 'last K' with K in 1 \.\. 3"):
        sample_map(part=part)


def test_hybrid2_asks_along_what_is_searched_alone():
    """Else most of its runs measure what no step can change."""
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :1, :2] = 1
    noise_map = sample_map(batch=1, mask=mask)
    noise, problem = noise_map.randn(0).to(torch.float64), None
    asked = []

    def reward(images, prompts):
        return images.mean(dim=(1, 2, 3))

    problem = core.Problem(noise_map, reward)
    sampled = problem._sampled
    problem._sampled = lambda noise, indices, propose: asked.extend(map(propose, indices)) or sampled(
        noise, indices, propose
    )
    core.Hybrid2(q=4)(problem, noise)
    free = noise_map.active_entries(noise)
    assert len(asked) == 4
    for flat in asked:
        assert torch.equal(flat[~free], noise.flat()[~free]) and (flat[free] != noise.flat()[free]).all()

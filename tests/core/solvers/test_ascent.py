"""Gradient ascent's step, and ReNO's preset of it."""

import torch
from comfyui_dno import core
from tiny_models import sample_map


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

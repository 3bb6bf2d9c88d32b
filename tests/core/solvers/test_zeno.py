"""ZeNO against what theory says of it."""

import math

import pytest
import torch
from comfyui_dno import core
from linear_rewards import identity_map, linear_reward
from tiny_models import sample_map


@pytest.mark.parametrize("seed", [0, 1])
def test_zeno_gains_what_theory_says_on_a_linear_reward(seed):
    """N = 16, K = 50 (800 evaluations), n = 3072: 0.90 sqrt(N K) = 25.5 standard deviations."""
    noise_map = identity_map((3, 32, 32))
    noise = noise_map.randn(seed)
    solver = core.ZeNO(candidates=16, seed=seed)
    result = core.optimize(noise_map, linear_reward(3072, seed), noise, solver, iterations=50, floor=0.0)
    scores = result.history.column("score")
    assert scores[-1] - scores[0] > 22
    assert abs(scores[-1] - scores[0] - 0.90 * math.sqrt(16 * 50)) < 4
    assert all(0.95 < norm[0] < 1.05 for norm in (row["norm"] for row in result.history.rows))


def test_softmax_weights_climb_too_but_less():
    noise_map = identity_map((3, 32, 32))
    gains = {}
    for weights in ("linear", "softmax"):
        solver = core.ZeNO(16, weights=weights, tau=0.3)
        noise = noise_map.randn(0)
        scores = core.optimize(noise_map, linear_reward(3072), noise, solver, iterations=50).history.column("score")
        gains[weights] = scores[-1] - scores[0]
    assert 5 < gains["softmax"] < gains["linear"]


def test_sampling_has_the_mean_and_covariance_of_the_tilted_law():
    """p(z) exp(r / lambda) with r quadratic is a Gaussian in closed form; 1500 chains in two dimensions."""
    lam, batch = 1.0, 1500
    slope, curvature = torch.tensor([0.8, -0.4]), torch.tensor([[1.0, 0.3], [0.3, 0.5]])
    noise_map = identity_map((2, 1, 1), batch)

    def reward(images, prompts):
        z = images.flatten(1)
        return z @ slope - ((z @ curvature) * z).sum(dim=1) / 2

    solver = core.ZeNO(candidates=16, beta=0.05, mode="sample", tau=2 * lam)
    noises = []
    core.optimize(
        noise_map, reward, noise_map.randn(0), solver, iterations=100, floor=0.0,
        callback=lambda evaluation, best: noises.append(evaluation.noise.flat()),
    )  # fmt: skip
    z = torch.cat(noises[-20::5])
    precision = torch.eye(2) + curvature / lam
    torch.testing.assert_close(z.mean(dim=0), torch.linalg.solve(precision, slope / lam), rtol=0, atol=0.06)
    torch.testing.assert_close(z.T.cov(), torch.linalg.inv(precision), rtol=0, atol=0.06)


def test_resampling_with_beta_one_draws_by_the_softmax_of_the_scores():
    """One step of importance resampling from N(0, 1) to N(1, 1): r = 2 z, tau = 2."""
    noise_map = identity_map((2, 1, 1), 3000)

    def reward(images, prompts):
        return 2 * images[:, 0, 0, 0]

    solver = core.ZeNO(candidates=512, beta=1.0, mode="resample", tau=2.0)
    noises = []
    core.optimize(
        noise_map, reward, noise_map.randn(0), solver, iterations=1, floor=0.0,
        callback=lambda evaluation, best: noises.append(evaluation.noise.flat()),
    )  # fmt: skip
    tilted, free = noises[1].T
    assert abs(tilted.mean().item() - 1) < 0.08 and abs(tilted.std().item() - 1) < 0.08
    assert abs(free.mean().item()) < 0.08 and abs(free.std().item() - 1) < 0.08


def test_equal_rewards_make_zeno_a_plain_step_of_the_reference_process():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    solver = core.ZeNO(beta=0.3)
    history = core.optimize(noise_map, lambda i, p: i.sum(dim=(1, 2, 3)) * 0, noise, solver, iterations=20).history
    assert all(0.85 < norm < 1.1 for row in history.rows for norm in row["norm"])


@pytest.mark.parametrize("solver", [
    core.ZeNO(3), core.ZeNO(3, weights="softmax", tau=1.0), core.ZeNO(3, mode="sample", tau=1.0),
])
def test_a_score_of_minus_infinity_weighs_as_the_lowest_that_is_finite(solver):
    scores = torch.tensor([[-math.inf, 1.0], [-5.0, 2.0], [-3.0, 3.0]])
    expected = torch.tensor([[-5.0, 1.0], [-5.0, 2.0], [-3.0, 3.0]])
    torch.testing.assert_close(solver._weights(scores), solver._weights(expected))


@pytest.mark.parametrize("beta, first", [(None, 0.3), (0.15, 0.15)])
def test_the_geometric_schedule_falls_to_a_half_by_the_iterations_and_stays_there(beta, first):
    solver = core.ZeNO(beta=beta, schedule="geometric")
    found = []
    for iteration in (0, 1, 2, 3, 4, 7):
        found.append(solver._beta(core.Problem(None, None, iterations=5, iteration=iteration)))
    ratio = (0.5 / 5 / first) ** (1 / 4)
    assert found == pytest.approx([first * ratio**k for k in (0, 1, 2, 3, 4, 4)])
    alone = core.Problem(None, None, iterations=1, iteration=0)
    assert solver._beta(alone) == first
    few = core.Problem(None, None, iterations=2, iteration=1)
    assert solver._beta(few) == pytest.approx(min(first, 0.25))


@pytest.mark.parametrize("schedule, expected", [("constant", 1 + 6 * 9), ("geometric", 1 + 6 * 8 + 1)])
@pytest.mark.parametrize("most_rows", [None, 4])
def test_every_evaluation_but_two_is_a_candidates_where_the_schedule_falls(schedule, expected, most_rows):
    """N = 8, K = 6. Nothing that was scored is sampled again but the best, which is not scored then."""
    scored = []
    noise_map = sample_map(most_rows=most_rows)

    def counting(images, prompts):
        scored.append(len(images))
        return images.mean(dim=(1, 2, 3))

    solver = core.ZeNO(8, schedule=schedule)
    core.optimize(noise_map, counting, noise_map.randn(0).to(torch.float64), solver, iterations=6, floor=0.0)
    assert sum(scored) == expected * 2


def test_the_first_evaluation_is_of_the_start_and_the_others_of_the_best_so_far():
    noise_map = sample_map()
    noise, seen = noise_map.randn(0).to(torch.float64), []
    reward = lambda i, p: i.mean(dim=(1, 2, 3))  # noqa: E731
    core.optimize(
        noise_map, reward, noise, core.ZeNO(8, schedule="geometric"), iterations=4, floor=0.0,
        callback=lambda evaluation, best: seen.append((evaluation, best.scores.clone())),
    )  # fmt: skip
    torch.testing.assert_close(seen[0][0].images, noise_map.sample(noise))
    assert torch.equal(seen[0][0].noise.flat(), noise.flat())
    for evaluation, best in seen[1:-1]:
        assert torch.equal(evaluation.scores, best)
        torch.testing.assert_close(noise_map.sample(evaluation.noise), evaluation.images)
        torch.testing.assert_close(reward(evaluation.images, None), evaluation.scores)


def test_the_geometric_schedule_goes_further_in_400_evaluations_of_a_linear_reward():
    noise_map, reward = identity_map((3, 32, 32)), linear_reward(3072)
    noise = noise_map.randn(0)
    gains = {}
    for schedule, candidates in (("constant", 15), ("geometric", 16)):
        solver = core.ZeNO(candidates, schedule=schedule)
        result = core.optimize(noise_map, reward, noise, solver, iterations=25, floor=0.0)
        gains[schedule] = reward(result.images, None).item()
    assert gains["geometric"] > gains["constant"] + 0.5


def test_the_other_modes_keep_one_step_size():
    for mode in ("sample", "resample"):
        problem = core.Problem(None, None, iterations=5, iteration=3)
        assert core.ZeNO(mode=mode, schedule="geometric")._beta(problem) == core.ZeNO(mode=mode)._beta(problem)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_half_precision_noise_climbs_whatever_the_rewards_unit(scale):
    """Squares of small and of large weights leave the range of float16."""
    noise_map, found = identity_map((3, 8, 8)), {}
    for dtype in (torch.float16, torch.float32):
        noise = noise_map.randn(0).to(dtype)
        result = core.optimize(
            noise_map, lambda images, prompts: scale * images.float().flatten(1).mean(dim=1), noise, core.ZeNO(16),
            iterations=20,
        )  # fmt: skip
        found[dtype] = result.history.column("score")[-1] / scale
    assert found[torch.float32] > 0.1 and found[torch.float16] == pytest.approx(found[torch.float32], rel=0.1)

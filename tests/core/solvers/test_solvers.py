"""Gradient-free solvers against what theory says of them."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from tiny_models import sample_map


def identity_map(shape, batch=1):
    """M(z) = z: one step of a denoiser that undoes the start."""
    scale = math.sqrt(2)
    return core.SampleMap(lambda x, sigma: x / scale, core.Schedule((1.0, 0.0)), (batch, *shape), eta=0.0)


def linear_reward(n, seed=0):
    direction = torch.randn(n, generator=torch.Generator().manual_seed(1000 + seed))
    direction /= direction.norm()

    def reward(images, prompts):
        return images.flatten(1) @ direction

    reward.differentiable = False
    return reward


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


def test_best_of_800_gains_what_extreme_values_give():
    noise_map = identity_map((3, 32, 32))
    gains = []
    for seed in range(4):
        solver = core.Search.best_of_n(16, seed=seed)
        result = core.optimize(noise_map, linear_reward(3072), noise_map.randn(seed), solver, iterations=50, floor=0.0)
        gains.append(linear_reward(3072)(result.images, None).item())
    assert abs(sum(gains) / 4 - 3.2) < 0.5


def test_a_search_does_not_score_the_parts_of_a_pivot_again_that_stays():
    scored = []

    def counting(images, prompts):
        scored.append(len(images))
        return -images.mean(dim=(1, 2, 3)).abs() if len(scored) == 1 else -1e9 + images.mean(dim=(1, 2, 3))

    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    history = core.optimize(noise_map, rewards.Combine([counting]), noise, core.Search.pcn(0.3), iterations=6).history
    assert sum(scored) == (1 + 6) * noise.batch
    assert all(row["watch/counting"] == row["score"] for row in history.rows)


@pytest.mark.parametrize("solver", [core.Search.pcn(0.3), core.Search.zero_order(3, 0.3)])
def test_a_search_never_samples_or_scores_its_pivot_again(solver):
    """Of each picture: the start, then the candidates alone; what histories tell is nevertheless every pivot's own."""
    scored, pivots = [], []
    noise_map = sample_map()

    def reward(images, prompts):
        return images.mean(dim=(1, 2, 3))

    def counting(images, prompts):
        scored.append(len(images))
        return reward(images, prompts)

    def keep(evaluation, best):
        pivots.append((evaluation, noise_map.sample(evaluation.noise)))

    noise = noise_map.randn(0).to(torch.float64)
    core.optimize(noise_map, counting, noise, solver, iterations=6, callback=keep, floor=0.0)
    assert sum(scored) == (1 + 6 * solver.candidates) * noise.batch
    for evaluation, images in pivots:
        torch.testing.assert_close(evaluation.images, images)
        torch.testing.assert_close(evaluation.scores, reward(images, None))
    assert (pivots[-1][0].scores > pivots[0][0].scores).all()


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


@pytest.mark.parametrize("solver", [
    core.ZeNO(), core.ZeNO(weights="softmax"), core.ZeNO(mode="sample"), core.ZeNO(mode="resample"),
    core.Search.best_of_n(), core.Search.zero_order(), core.Search.pcn(),
])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_best_candidate_is_never_lost_and_nothing_is_differentiated(solver, eta):
    noise_map = sample_map(eta=eta)
    seen = []

    def reward(images, prompts):
        assert not torch.is_grad_enabled() and not images.requires_grad
        scores = images.mean(dim=(1, 2, 3))
        seen.append(scores.view(-1, 2))
        return scores

    reward.differentiable = False
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, reward, noise, solver, iterations=6, floor=0.0)
    expected = torch.cat(seen).amax(dim=0)
    torch.testing.assert_close(result.images.mean(dim=(1, 2, 3)), expected)
    torch.testing.assert_close(noise_map.sample(result.noise), result.images)
    assert (expected > torch.tensor(result.history.rows[0]["score"])).all()


def test_a_probable_candidate_is_kept_where_a_better_one_is_improbable():
    noise_map = sample_map(batch=1)
    noise = noise_map.randn(0).to(torch.float64)
    best = core.problem.Best(floor=-4.6)
    problem = core.Problem(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), best=best)
    problem.evaluate(noise)
    flat = torch.stack([noise.flat() * 3, noise_map.randn(1).to(torch.float64).flat()])
    (candidates,) = problem.candidates(noise, 2, flat.__getitem__)
    problem.judge(noise, candidates, best.scores + torch.tensor([[2.0], [1.0]]))
    torch.testing.assert_close(best.noise.flat(), flat[1])


def test_a_regularizer_that_a_solver_does_not_use_is_said_and_left_out(caplog):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    reward, regularizer = (lambda i, p: i.mean(dim=(1, 2, 3))), core.ProbabilityRegularizer()
    history = core.optimize(noise_map, reward, noise, core.Search(2), regularizer, iterations=1).history
    assert "does not use the regularizer" in caplog.text
    assert all(row["penalty"] is None for row in history.rows)


@pytest.mark.parametrize("solver", [core.Search.zero_order(4), core.Search.pcn()])
def test_a_search_never_gives_up_a_better_pivot(solver):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    history = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=20).history
    for item in (0, 1):
        scores = history.column("score", item)
        assert all(later >= earlier for earlier, later in zip(scores, scores[1:], strict=False))
        assert scores[-1] > scores[0]


def test_equal_rewards_make_zeno_a_plain_step_of_the_reference_process():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    solver = core.ZeNO(beta=0.3)
    history = core.optimize(noise_map, lambda i, p: i.sum(dim=(1, 2, 3)) * 0, noise, solver, iterations=20).history
    assert all(0.85 < norm < 1.1 for row in history.rows for norm in row["norm"])


@pytest.mark.parametrize("solver", [core.ZeNO(), core.Search()])
def test_masked_entries_stay_where_they_are(solver):
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., :3] = 1
    noise_map = sample_map(mask=mask)
    noise = noise_map.randn(0).to(torch.float64)
    moved = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=3, floor=0.0).noise
    assert torch.equal(moved.initial[..., 3:], noise.initial[..., 3:])
    assert not torch.equal(moved.initial[..., :3], noise.initial[..., :3])


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


@pytest.mark.parametrize("most_rows", [None, 3, 5])
@pytest.mark.parametrize("solver", [
    core.GradientAscent(),
    core.GradientAscent(estimator=core.Hybrid1(q=5)),
    core.GradientAscent(estimator=core.Hybrid2(q=5)),
    core.GradientAscent(estimator=core.ZerothOrder(q=5)),
    core.ZeNO(candidates=6),
    core.Search.pcn(),
    core.Search(candidates=7),
    core.LGD(samples=2),
])
def test_the_stages_of_a_run_are_known_beforehand(solver, most_rows):
    calls = []
    noise_map = sample_map(most_rows=most_rows, on_step=lambda *stage: calls.append(stage))
    noise = noise_map.randn(0).to(torch.float64)
    core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=2)
    assert len(calls) == core.stages(noise_map, solver, 2)


def test_the_norm_regulariser_has_its_closed_forms_gradient():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64).map(lambda tensor: tensor * 1.4)
    z = noise.flat().clone().requires_grad_()
    norm = z.norm(dim=1)
    value = -0.01 * (norm**2 / 2 - (z.shape[1] - 1) * norm.log())
    found, gradient = core.NormRegularizer().gradient(noise_map, noise)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(gradient.flat(), torch.autograd.grad(value.sum(), z)[0])


@pytest.mark.parametrize("make, message", [
    (lambda: core.ZeNO(mode="climb"), "expected 'optimise', 'sample' or 'resample'"),
    (lambda: core.ZeNO(weights="ranks"), "expected 'linear' or 'softmax'"),
    (lambda: core.ZeNO(candidates=1), "expected 2 or more"),
    (lambda: core.ZeNO(beta=0), r"expected a number in \(0, 1\]"),
    (lambda: core.ZeNO(tau=0), "expected a number > 0"),
    (lambda: core.Search(candidates=0), "expected 1 or more"),
    (lambda: core.Search(beta=1.5), r"expected a number in \(0, 1\]"),
])
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("solver", [
    core.ZeNO(3), core.ZeNO(3, weights="softmax", tau=1.0), core.ZeNO(3, mode="sample", tau=1.0),
])
def test_a_score_of_minus_infinity_weighs_as_the_lowest_that_is_finite(solver):
    scores = torch.tensor([[-math.inf, 1.0], [-5.0, 2.0], [-3.0, 3.0]])
    expected = torch.tensor([[-5.0, 1.0], [-5.0, 2.0], [-3.0, 3.0]])
    torch.testing.assert_close(solver._weights(scores), solver._weights(expected))


@pytest.mark.parametrize("solver", [core.Search.best_of_n(4), core.Search.pcn(0.5)])
def test_a_candidate_that_scores_the_same_does_not_replace_the_pivot(solver):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, lambda i, p: i.sum(dim=(1, 2, 3)) * 0, noise, solver, iterations=3, floor=0.0)
    assert torch.equal(result.noise.flat(), noise.flat())
    assert torch.equal(result.noise.checkpoint.noise.flat(), noise.flat())

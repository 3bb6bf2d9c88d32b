"""`generator_map`: what any function makes of noise is searched, by its values alone and by its gradient."""

import math

import pytest
import torch
from comfyui_dno import core
from torch.nn import functional as F

DIRECTION = F.normalize(torch.randn(90, generator=torch.Generator().manual_seed(7)), dim=0)


def chain(noise):
    """A chain of 30 points in space: each noise (90,) as the steps from one point to the next."""
    return noise.view(len(noise), 30, 3).cumsum(dim=1)


def pull(points, prompts=None):
    """The steps' sum along fixed directions: a standard normal number of true noise, whose gradient is known."""
    steps = torch.diff(points, dim=1, prepend=torch.zeros_like(points[:, :1]))
    return steps.flatten(1) @ DIRECTION.to(points)


SOLVERS = {
    "ZeNO": core.ZeNO(candidates=8), "geometric ZeNO": core.ZeNO(candidates=8, schedule="geometric"),
    "best of N": core.Search.best_of_n(8), "pCN": core.Search.pcn(), "TRS": core.TRS(8, regions=2),
    "Trust": core.TrustAscent(), "Adam": core.GradientAscent(0.1), "ReNO": core.GradientAscent.reno(),
    "ZO-SGD": core.GradientAscent(0.1, estimator=core.ZerothOrder()),
    "Hybrid-1": core.GradientAscent(0.1, estimator=core.Hybrid1()),
    "Hybrid-2": core.GradientAscent(0.1, estimator=core.Hybrid2()),
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_every_solver_of_noise_searches_chains_of_points(solver):
    sample_map = core.generator_map(chain, (90,), batch=2)
    noise = sample_map.randn(seed=5)
    result = core.optimize(sample_map, pull, noise, solver, iterations=12, floor=0.0)
    assert (pull(result.images) > pull(chain(noise.initial)) + 0.3).all()
    torch.testing.assert_close(chain(result.noise.initial), result.images)
    assert result.images.shape == (2, 30, 3) and not result.history.warnings


def test_its_gradient_is_the_functions_own():
    sample_map = core.generator_map(chain, (90,), batch=2)
    noise = sample_map.randn(seed=0)
    evaluation, gradient = core.Problem(sample_map, pull).gradient(noise)
    torch.testing.assert_close(evaluation.images, chain(noise.initial))
    # d pull / d noise is the direction; each of 90 sums of float32 is off by some of its steps' 1e-7.
    torch.testing.assert_close(gradient.initial, DIRECTION.expand(2, -1), rtol=0, atol=1e-5)


def test_zeno_climbs_as_far_as_theory_says_it_does():
    """A linear reward: 0.90 sqrt(N K) standard deviations in K iterations of N candidates; here 10.2."""
    sample_map = core.generator_map(lambda noise: noise, (3000,))
    direction = F.normalize(torch.randn(3000, generator=torch.Generator().manual_seed(7)), dim=0)
    climbed = []
    for seed in range(6):
        solver = core.ZeNO(candidates=8, seed=seed)
        history = core.optimize(
            sample_map, lambda x, prompts: x @ direction, sample_map.randn(seed), solver, iterations=16, floor=0.0
        ).history
        climbed.append(history.column("score")[-1] - history.column("score")[0])
    # One search varies by about 1, the start's and the climb's; the mean of six is known to 0.4.
    assert abs(sum(climbed) / 6 - 0.90 * math.sqrt(8 * 16)) < 1.6


def test_a_reward_may_count_where_nothing_is_differentiable():
    """A sound, and how often it crosses 0: whole numbers."""
    calls = []

    def sound(noise):
        assert not noise.requires_grad
        calls.append(len(noise))
        return torch.from_numpy(noise.numpy().copy()).cumsum(dim=1)

    def crossings(samples, prompts=None):
        return (samples[:, 1:].sign() != samples[:, :-1].sign()).sum(dim=1).float()

    sample_map = core.generator_map(sound, (400,), most_rows=4)
    noise = sample_map.randn(seed=1)
    result = core.optimize(sample_map, crossings, noise, core.ZeNO(candidates=16, beta=0.3), iterations=10)
    assert crossings(result.images) > crossings(sound(noise.initial)) + 5
    assert max(calls) == 4


def test_gans_pictures_are_pictures():
    weight = torch.randn(3 * 16 * 16, 12, generator=torch.Generator().manual_seed(0))
    sample_map = core.generator_map(lambda z: (z @ weight.T).sigmoid().view(-1, 3, 16, 16), (12,))
    result = core.optimize(
        sample_map, lambda images, prompts: images.mean(dim=(1, 2, 3)), sample_map.randn(0), core.TRS(4, regions=1),
        iterations=3,
    )  # fmt: skip
    assert result.history.first_picture.shape == (1, 3, 16, 16)


def test_a_noise_tells_which_generator_it_is_of():
    noise = core.generator_map(chain, (90,), name="chain").randn(0)
    found = core.optimize(core.generator_map(chain, (90,), name="chain"), pull, noise, core.Search(4), iterations=1)
    with pytest.raises(ValueError, match="model 'chain', but here it is 'other'"):
        core.generator_map(chain, (90,), name="other").check_settings(found.noise)
    with pytest.raises(ValueError, match=r"expected \(1, 60\)"):
        core.generator_map(chain, (60,)).check_settings(found.noise)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda z: z.numpy(), r"gave a ndarray for 1 noises; expected floats \(1, \.\.\)"),
        (lambda z: (z > 0).long(), r"gave torch.int64 \(1, 90\) for 1 noises"),
        (lambda z: z[0], r"gave torch.float32 \(90,\) for 1 noises"),
        (lambda z: z.sum(dim=1), r"samples of shape \(\); expected one to three dimensions"),
        (lambda z: z.view(1, 3, 5, 3, 2), r"samples of shape \(3, 5, 3, 2\); expected one to three dimensions"),
    ],
)
def test_what_is_no_sample_is_refused(wrong, message):
    sample_map = core.generator_map(wrong, (90,))
    with pytest.raises(ValueError, match=message):
        sample_map.sample(sample_map.randn(0))


def test_a_generator_without_gradient_is_refused_by_solvers_that_need_one():
    sample_map = core.generator_map(lambda z: chain(z.detach()), (90,))
    with pytest.raises(ValueError, match="samples without gradient.*ZeNO, Search or TRS"):
        core.optimize(sample_map, pull, sample_map.randn(0), core.GradientAscent(), iterations=1)


def test_a_generator_that_draws_random_numbers_of_its_own_is_noticed():
    sample_map = core.generator_map(lambda z: chain(z) + torch.randn(1), (90,))
    result = core.optimize(sample_map, pull, sample_map.randn(0), core.Search(4), iterations=1, floor=0.0)
    assert "draws random numbers of its own" in result.history.warnings[0]

"""Best-of-N, zero-order search and pCN: the gain that theory says, and no picture sampled twice."""

import pytest
import torch
from comfyui_dno import core, rewards
from linear_rewards import identity_map, linear_reward
from tiny_models import sample_map


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


@pytest.mark.parametrize("solver", [core.Search.zero_order(4), core.Search.pcn()])
def test_a_search_never_gives_up_a_better_pivot(solver):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    history = core.optimize(noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), noise, solver, iterations=20).history
    for item in (0, 1):
        scores = history.column("score", item)
        assert all(later >= earlier for earlier, later in zip(scores, scores[1:], strict=False))
        assert scores[-1] > scores[0]


@pytest.mark.parametrize("solver", [core.Search.best_of_n(4), core.Search.pcn(0.5)])
def test_a_candidate_that_scores_the_same_does_not_replace_the_pivot(solver):
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    result = core.optimize(noise_map, lambda i, p: i.sum(dim=(1, 2, 3)) * 0, noise, solver, iterations=3, floor=0.0)
    assert torch.equal(result.noise.flat(), noise.flat())
    assert torch.equal(result.noise.checkpoint.noise.flat(), noise.flat())

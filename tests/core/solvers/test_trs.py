"""Trust-region search: which regions grow, who becomes a centre, and what a candidate is."""

import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.solvers.trs import GROW, PATIENCE, SHRINK, SMALLEST
from linear_rewards import identity_map, linear_reward
from tiny_models import sample_map


def stepped(solver, noise_map, reward, iterations):
    """The solver after so many iterations, and the Problem."""
    problem, solver = core.Problem(noise_map, reward, iterations=iterations), solver.fresh()
    noise = noise_map.randn(0).to(torch.float64)
    for problem.iteration in range(iterations):
        noise, _ = solver.step(problem, noise)
    return solver, problem


def rising(images, prompts):
    """Every picture is better than all before it."""
    rising.count += 1
    return rising.count + images.mean(dim=(1, 2, 3)).sigmoid()


@pytest.mark.parametrize(("iterations", "times"), [(1, 0), (PATIENCE, 0), (1 + PATIENCE, 1), (1 + 2 * PATIENCE, 2)])
def test_regions_grow_by_successes_in_a_row(iterations, times):
    rising.count = 0
    noise_map = identity_map((3, 8, 8))
    noise_map.most_rows = 1  # one picture a call, so that the next is better
    solver, _ = stepped(core.TRS(8, beta=0.1), noise_map, rising, iterations)
    expected = 0.1 * GROW**times  # the first iteration is of new noises
    torch.testing.assert_close(solver._regions.beta, torch.full((4, 1), expected, dtype=torch.float64))


def test_regions_grow_up_to_new_noise():
    rising.count = 0
    noise_map = identity_map((3, 8, 8))
    noise_map.most_rows = 1
    solver, _ = stepped(core.TRS(8, beta=0.6), noise_map, rising, 2 + 2 * PATIENCE)
    assert solver._regions.beta.unique().item() == 1


def test_regions_shrink_by_failures_in_a_row_and_from_the_smallest_begin_anew():
    """On a plateau, where nothing is ever better: what stayed at the smallest size would try one noise for ever."""
    noise_map, flat = identity_map((3, 8, 8)), lambda i, p: i.sum(dim=(1, 2, 3)) * 0
    down = math.ceil(math.log(SMALLEST / 0.1, SHRINK))
    for times in (1, 2, down - 1):
        solver, _ = stepped(core.TRS(8, beta=0.1), noise_map, flat, 1 + times * PATIENCE)
        assert solver._regions.beta[0].item() == pytest.approx(0.1 * SHRINK**times)
        solver, _ = stepped(core.TRS(8, beta=0.1), noise_map, flat, times * PATIENCE)  # one failure fewer
        assert solver._regions.beta[0].item() == pytest.approx(0.1 * SHRINK ** (times - 1))
    solver, _ = stepped(core.TRS(8, beta=0.1), noise_map, flat, 1 + down * PATIENCE)
    assert solver._regions.beta[0].item() == pytest.approx(SMALLEST)
    solver, _ = stepped(core.TRS(8, beta=0.1), noise_map, flat, 1 + (down + 1) * PATIENCE)
    assert solver._regions.beta[0].item() == pytest.approx(0.1)


def test_a_first_size_below_the_smallest_stays():
    solver, _ = stepped(core.TRS(8, beta=1e-4), identity_map((3, 8, 8)), lambda i, p: i.sum(dim=(1, 2, 3)) * 0, 9)
    assert solver._regions.beta[0].item() == pytest.approx(1e-4)


def test_a_success_between_failures_begins_the_count_anew():
    """After the first iteration nothing better twice, then something once, then nothing twice: no region changes."""
    answers = iter([0] * 9 + [0] * 16 + [1] + [0] * 7 + [1] * 16)
    solver, _ = stepped(
        core.TRS(8, regions=1, beta=0.1), identity_map((3, 8, 8)),
        lambda i, p: i.sum(dim=(1, 2, 3)) * 0 + torch.tensor([float(next(answers)) for _ in i]), 6,
    )  # fmt: skip
    assert solver._regions.beta.item() == pytest.approx(0.1)
    assert solver._regions.luck.item() == -2


@pytest.mark.parametrize("most_rows", [None, 3])
def test_the_centres_are_the_best_of_all_that_was_tried(most_rows):
    seen = []
    noise_map = sample_map(most_rows=most_rows)

    def reward(images, prompts):
        scores = images.mean(dim=(1, 2, 3))
        seen.append(scores.view(-1, 2))
        return scores

    solver, problem = stepped(core.TRS(7, regions=3), noise_map, reward, 5)
    expected = torch.cat(seen).sort(dim=0, descending=True).values[:3]
    torch.testing.assert_close(solver._regions.scores.sort(dim=0, descending=True).values, expected)
    for centre, scores in zip(solver._regions.centres, solver._regions.scores, strict=True):
        images = noise_map.sample(noise_map.randn(0).to(torch.float64).with_flat(centre))
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), scores)
    torch.testing.assert_close(problem.best.scores, expected[0])


def test_a_candidate_changes_a_tenth_to_nine_tenths_of_its_centre_and_stays_true_noise():
    noise_map = identity_map((3, 64, 64))
    solver, problem = stepped(core.TRS(8, regions=2, beta=0.5), noise_map, lambda i, p: i.mean(dim=(1, 2, 3)), 1)
    problem.iteration, noise = 1, noise_map.randn(0).to(torch.float64)
    for index in range(8):
        centre = solver._regions.centres[index % 2]
        found = solver._neighbour(problem, noise, solver._regions, index)
        share = 0.1 + 0.8 * (index // 2 + 0.5) / 4
        assert (found != centre).double().mean().item() == pytest.approx(share, abs=0.02)  # 4.4 standard deviations
        assert found.norm().item() / 12288**0.5 == pytest.approx(1.0, abs=0.03)


def test_trust_regions_gain_more_than_new_noises_on_a_linear_reward():
    """400 evaluations: best-of-N finds 3.0 standard deviations, whatever it is told."""
    noise_map, reward = identity_map((3, 32, 32)), linear_reward(3072)
    for seed in range(2):
        noise = noise_map.randn(seed)
        result = core.optimize(noise_map, reward, noise, core.TRS(16, seed=seed), iterations=25, floor=0.0)
        assert reward(result.images, None).item() > 4.5


def test_what_was_found_is_neither_sampled_nor_scored_again():
    scored = []

    def counting(images, prompts):
        scored.append(len(images))
        return images.mean(dim=(1, 2, 3))

    noise_map = sample_map()
    core.optimize(noise_map, counting, noise_map.randn(0).to(torch.float64), core.TRS(8), iterations=5, floor=0.0)
    assert sum(scored) == (1 + 5 * 8) * 2


def test_a_resumed_search_goes_on_around_its_best():
    noise_map, reward = sample_map(batch=1), lambda i, p: i.mean(dim=(1, 2, 3))
    noise = noise_map.randn(0).to(torch.float64)
    first = core.optimize(noise_map, reward, noise, core.TRS(8), iterations=3, floor=0.0)
    again = core.optimize(noise_map, reward, first.noise, core.TRS(8, beta=1e-3), iterations=1, floor=0.0)
    assert (again.noise.flat() - first.noise.flat()).norm() < 0.1 * first.noise.flat().norm()
    assert reward(again.images, None) >= reward(first.images, None)


@pytest.mark.parametrize("noise_dtype, scored_in", [
    (torch.float32, torch.float64), (torch.float16, torch.float32), (torch.bfloat16, torch.float32),
])  # fmt: skip
def test_scores_and_noise_may_have_any_precision(noise_dtype, scored_in):
    noise_map = identity_map((3, 8, 8))
    noise = noise_map.randn(0).to(noise_dtype)
    found = core.optimize(
        noise_map, lambda images, prompts: images.to(scored_in).flatten(1).mean(dim=1), noise, core.TRS(8), iterations=3
    )
    assert found.noise.initial.dtype == noise_dtype and found.history.best_row["score"][0] > 0

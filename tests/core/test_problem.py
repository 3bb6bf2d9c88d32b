"""What a solver may ask: candidates that are streamed, failures that are one picture's own, floors, one device."""

import math

import pytest
import torch
from comfyui_dno import core
from comfyui_dno.core.problem import Best
from live_bytes import LiveBytes
from tiny_models import sample_map


def mean_pixel(images, prompts):
    return images.mean(dim=(1, 2, 3))


def start(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def problem_of(reward=mean_pixel, floor=-math.inf, **settings):
    noise_map = sample_map(**settings)
    return core.Problem(noise_map, reward, best=Best(floor=floor)), start(noise_map)


def improbable(noise, whole):
    """Return noise whose x_T is far off; with `whole` all of z is, without it P of the whole z hides that."""
    shifted = noise.initial + 1.0
    return core.Noise(shifted, noise.injected + (1.0 if whole else 0.0))


def hiding_map():
    """A map whose x_T is so small a part of z that P(z) alone does not notice its drift."""
    schedule = core.Schedule(tuple(float(s) for s in range(60, 0, -1)) + (0.0,))
    return core.SampleMap(lambda x, sigma: 0.1 * x, schedule, (1, 4, 8, 8), decode=lambda latent: latent[:, :3])


def drifted(noise):
    return core.Noise(noise.initial + 0.25, noise.injected)


def test_the_drift_of_x_t_is_one_that_the_whole_of_z_hides():
    noise_map = hiding_map()
    problem, noise = core.Problem(noise_map, mean_pixel), drifted(noise_map.randn(1))
    log_p, log_p_initial = problem.log_probabilities(noise)
    assert log_p > math.log(0.01) > log_p_initial


def test_an_evaluation_whose_x_t_is_improbable_does_not_become_the_best():
    noise_map = hiding_map()
    problem, noise = core.Problem(noise_map, mean_pixel, best=Best(floor=math.log(0.01))), noise_map.randn(1)
    first, second = problem.evaluate(noise), problem.evaluate(drifted(noise))
    assert second.scores > first.scores and torch.equal(problem.best.scores, first.scores)


def test_a_candidate_whose_x_t_is_improbable_does_not_become_the_best():
    noise_map = hiding_map()
    problem, noise = core.Problem(noise_map, mean_pixel, best=Best(floor=math.log(0.01))), noise_map.randn(1)
    first = problem.evaluate(noise)
    (candidates,) = problem.candidates(noise, 1, lambda index: drifted(noise).flat())
    assert problem.judge(noise, candidates) > first.scores and torch.equal(problem.best.scores, first.scores)


@pytest.mark.parametrize("as_candidate", [False, True])
def test_a_start_below_the_floor_gives_way_to_any_noise_above_it_even_of_a_lower_score(as_candidate):
    problem, noise = problem_of(lambda images, prompts: -mean_pixel(images, prompts), floor=math.log(0.01), batch=1)
    below = problem.evaluate(improbable(noise, whole=True)).scores
    assert not problem.best.passed
    if as_candidate:
        (candidates,) = problem.candidates(noise, 1, lambda index: noise.flat())
        scores = problem.judge(noise, candidates)[0]
    else:
        scores = problem.evaluate(noise).scores
    assert problem.best.passed and torch.equal(problem.best.noise.flat(), noise.flat())
    assert scores < below
    problem.best.scores += 1.0
    problem.evaluate(start(problem.sample_map, seed=1))
    assert torch.equal(problem.best.scores, scores + 1.0)


@pytest.mark.parametrize("most_rows, calls", [(None, [10]), (2, [2] * 5), (5, [4, 4, 2]), (1, [2] * 5)])
def test_candidates_come_in_calls_of_at_most_most_rows_pictures(most_rows, calls):
    seen = []
    problem, noise = problem_of(most_rows=most_rows)
    decode = problem.sample_map.decode
    problem.sample_map.decode = lambda latent: seen.append(len(latent)) or decode(latent)
    found = list(problem.candidates(noise, 5, lambda index: noise.flat() + index))
    assert seen == calls
    assert [chunk.first for chunk in found] == [sum(calls[:i]) // 2 for i in range(len(calls))]
    torch.testing.assert_close(found[-1].flat(torch.tensor([4 - found[-1].first] * 2)), noise.flat() + 4)


def test_candidates_are_sampled_half_as_many_at_a_time_where_memory_runs_out():
    seen = []

    def tight(latent):
        seen.append(len(latent))
        if len(latent) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(latent)

    problem, noise = problem_of()
    decode, problem.sample_map.decode = problem.sample_map.decode, tight
    found = list(problem.candidates(noise, 7, lambda index: noise.flat() * 0.9**index))
    assert seen == [14, 8, 4, 4, 4, 2]
    problem.sample_map.decode = decode
    (together,) = problem.candidates(noise, 7, lambda index: noise.flat() * 0.9**index)
    torch.testing.assert_close(torch.cat([chunk.images for chunk in found]), together.images)


def test_one_candidate_that_does_not_fit_is_an_error():
    def full(latent):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    problem, noise = problem_of()
    problem.sample_map.decode = full
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(problem.candidates(noise, 4, lambda index: noise.flat()))


def tensors_of(best):
    return best.noise.initial, best.noise.injected, best.latent, best.images


@pytest.mark.parametrize("solver, most", [
    (core.Search.best_of_n(64), 11), (core.ZeNO(32), 6), (core.ZeNO(32, schedule="geometric"), 6), (core.TRS(32), 10),
])
def test_a_searchs_memory_does_not_grow_with_its_candidates(solver, most):
    """n = 835,584, Stable Diffusion 1.5 with 50 steps; `most` in noises of n floats, beside the best."""
    schedule = core.Schedule(tuple(float(sigma) for sigma in range(51, 0, -1)))
    noise_map = core.SampleMap(
        lambda x, sigma: 0.5 * x, schedule, (1, 4, 64, 64), decode=lambda latent: latent[:, :3], most_rows=1
    )
    noise = noise_map.randn(0)
    assert noise.flat().numel() == 4 * 64 * 64 * 51
    problem = core.Problem(noise_map, mean_pixel)
    with LiveBytes() as memory:
        solver.fresh().step(problem, noise)
    storages = [tensor.untyped_storage() for tensor in tensors_of(problem.best)]
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert (memory.peak - sum(held.values())) / (4 * noise.flat().numel()) <= most


def test_a_candidate_of_a_call_takes_one_noise_while_it_is_sampled_and_none_when_it_is_decoded():
    """n = 835,584. Beside one z a candidate has its latent, 1/51 of it, a few times."""
    schedule = core.Schedule(tuple(float(sigma) for sigma in range(51, 0, -1)))
    decoded, peaks = [], {}
    for count in (8, 24):
        with LiveBytes() as memory:
            noise_map = core.SampleMap(
                lambda x, sigma: 0.5 * x, schedule, (1, 4, 64, 64),
                decode=lambda latent, memory=memory: decoded.append(memory.now) or latent[:, :3],
            )  # fmt: skip
            noise = noise_map.randn(0)
            z = noise.flat()
            problem = core.Problem(noise_map, mean_pixel)
            (_,) = problem.candidates(noise, count, lambda index, z=z: z + 0.01 * index)
        peaks[count] = memory.peak
    assert (peaks[24] - peaks[8]) / (16 * z.nbytes) < 1.1
    assert (decoded[1] - decoded[0]) / (16 * z.nbytes) < 0.1


def breaks(item, calls, value=math.nan):
    """A reward that gives one picture `value` from its n-th call on."""
    count = []

    def reward(images, prompts):
        count.append(1)
        scores = mean_pixel(images, prompts)
        broken = torch.arange(len(scores)) % 2 == item
        return torch.where(broken, torch.full_like(scores, value), scores) if len(count) > calls else scores

    return reward


@pytest.mark.parametrize("solver", [
    core.GradientAscent(lr=0.1), core.ZeNO(4, beta=0.2), core.GradientAscent(lr=5.0, optimizer="sgd"),
])
def test_the_picture_whose_reward_breaks_stays_at_its_best_and_the_others_go_on(solver):
    noise_map = sample_map()
    alone = core.optimize(noise_map, mean_pixel, start(noise_map), solver, iterations=8, floor=0.0)
    result = core.optimize(noise_map, breaks(1, 3), start(noise_map), solver, iterations=8, floor=0.0)
    assert result.history.stopped == "8 iterations done" and len(result.history.rows) == 9
    (warning,) = result.history.warnings if solver.differentiates else result.history.warnings[-1:]
    assert warning.startswith("picture 1 ended before the others and stayed at its best: the reward reward is nan")
    torch.testing.assert_close(result.images[0], alone.images[0])
    assert result.images.isfinite().all() and result.noise.flat().isfinite().all()
    torch.testing.assert_close(noise_map.sample(result.noise), result.images)
    assert result.history.best_row["score"][1] == pytest.approx(mean_pixel(result.images, None)[1].item())


def test_a_picture_that_is_not_finite_is_at_fault_and_not_its_reward():
    """A reward may not notice: a mean of 8-bit levels, say."""
    noise_map = sample_map()
    decode, count = noise_map.decode, []

    def breaking(latent):
        count.append(not torch.is_grad_enabled())
        images = decode(latent)
        if sum(count) > 3:
            images = images * torch.tensor([1.0, math.nan]).view(2, 1, 1, 1)
        return images

    def blind(images, prompts):
        assert images.isfinite().all()
        return mean_pixel(images, prompts)

    noise_map.decode = breaking
    result = core.optimize(noise_map, blind, start(noise_map), core.Search.pcn(0.3), iterations=4, floor=0.0)
    # Said once, although it was so in several iterations.
    assert result.history.warnings == ["the picture of some candidates is not finite; those do not count"]
    assert result.images.isfinite().all() and result.history.stopped == "4 iterations done"
    count.clear()
    history = core.optimize(noise_map, blind, start(noise_map), core.GradientAscent(), iterations=4, floor=0.0).history
    assert "the picture is not finite, so the model or the VAE is at fault" in history.warnings[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("solver", [
    core.Search.best_of_n(6), core.Search.pcn(), core.ZeNO(6), core.ZeNO(6, mode="sample"),
    core.ZeNO(6, mode="resample"), core.ZeNO(6, weights="softmax"),
])
def test_a_candidate_whose_score_is_not_finite_never_wins(solver, value):
    """Every second candidate scores NaN or infinity; the start does not."""
    count = []

    def reward(images, prompts):
        count.append(1)
        scores = mean_pixel(images, prompts)
        broken = (torch.arange(len(scores)) // 2 % 2 == 1) if len(scores) > 2 else torch.zeros(len(scores))
        return torch.where(broken.bool(), torch.full_like(scores, value), scores)

    reward.differentiable = False
    noise_map = sample_map()
    result = core.optimize(noise_map, reward, start(noise_map), solver, iterations=4, floor=0.0)
    assert result.history.stopped == "4 iterations done" and result.noise.flat().isfinite().all()
    torch.testing.assert_close(mean_pixel(result.images, None), torch.tensor(result.history.best_row["score"]).double())
    assert all(math.isfinite(score) for row in result.history.rows for score in row["score"])


@pytest.mark.parametrize("estimator", [core.Hybrid1(q=6), core.Hybrid2(q=6), core.ZerothOrder(q=6)])
def test_a_perturbation_whose_score_is_not_finite_does_not_count(estimator):
    def reward(images, prompts):
        scores = mean_pixel(images, prompts)
        return torch.where(torch.arange(len(scores)) // 2 % 2 == 1, math.nan, scores)

    problem, noise = problem_of(reward)
    _, gradient = problem.gradient(noise, estimator)
    assert gradient.flat().isfinite().all() and gradient.flat().any(dim=1).all() and problem.ended == {}


def test_a_gradient_of_the_regulariser_that_is_not_finite_ends_its_picture():
    class Broken(core.ProbabilityRegularizer):
        def gradient(self, noise_map, noise, iteration=0):
            penalty, gradient = super().gradient(noise_map, noise, iteration)
            gradient.initial[0] = math.nan
            return penalty, gradient

    noise_map = sample_map()
    result = core.optimize(noise_map, mean_pixel, start(noise_map), regularizer=Broken(), iterations=3, floor=0.0)
    assert "the gradient of the regulariser is nan at iteration 0" in result.history.warnings[0]
    assert result.noise.flat().isfinite().all() and len(result.history.rows) == 4

"""The loop: what it returns, what stops it, what it never loses."""

import itertools
import json
import math
import re
import sys
import time
from dataclasses import replace

import pytest
import torch
from comfyui_dno import core, rewards
from comfyui_dno.core.scoring import RewardError, part_scores
from tiny_models import SIGMAS, sample_map


def mean_pixel(images, prompts):
    return images.mean(dim=(1, 2, 3))


def start(noise_map, seed=0):
    return noise_map.randn(seed).to(torch.float64)


def run(noise_map=None, reward=mean_pixel, **settings):
    noise_map = noise_map or sample_map()
    settings = {"floor": 0.0, "iterations": 5} | settings
    return core.optimize(noise_map, reward, start(noise_map), **settings)


@pytest.mark.parametrize("solver", [
    core.GradientAscent(lr=0.03), core.GradientAscent(lr=5.0, optimizer="sgd"), core.GradientAscent(lr=0.03, clip=0.01),
])
def test_the_reward_rises(solver):
    history = run(solver=solver, iterations=12).history
    for item in (0, 1):
        scores = history.column("score", item)
        assert scores[-1] > scores[0] + 0.005
        assert len(scores) == 13


def test_adam_equals_torchs_adam_on_the_whole_graph():
    noise_map = sample_map(batch=1)
    noise = start(noise_map)
    z = noise.flat().clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(4):
        step = noise.with_flat(z)
        x = noise_map.start(step.initial)
        for index, (sigma, sigma_next) in enumerate(noise_map.schedule.intervals):
            denoised = noise_map.denoise(x, x.new_full((1,), sigma))
            x = core.sde_step(x, denoised, sigma, sigma_next, 1.0, step.injected[index] if sigma_next else None)
        loss = -noise_map.decode(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = run(noise_map, solver=core.GradientAscent(lr=0.02), iterations=4)
    torch.testing.assert_close(result.noise.flat(), z.detach(), rtol=1e-6, atol=1e-7)


def test_zero_iterations_sample_once():
    noise_map = sample_map()
    result = run(noise_map, iterations=0)
    torch.testing.assert_close(result.images, noise_map.sample(start(noise_map)))
    assert len(result.history.rows) == 1 and result.history.stopped == "0 iterations done"


def test_the_result_is_each_pictures_own_best_and_samples_again():
    noise_map = sample_map()
    result = run(noise_map, solver=core.GradientAscent(lr=2.0), iterations=8)
    for item in (0, 1):
        scores = result.history.column("score", item)
        assert result.history.best[item] == max(range(9), key=scores.__getitem__)
        assert mean_pixel(result.images, None)[item] == pytest.approx(max(scores))
    torch.testing.assert_close(noise_map.sample(result.noise), result.images)
    torch.testing.assert_close(noise_map.decode(result.latent), result.images)


def test_the_best_so_far_never_falls():
    seen = []
    noise_map = sample_map()
    solver = core.GradientAscent(lr=3.0)
    run(noise_map, solver=solver, callback=lambda evaluation, best: seen.append(best.scores.clone()))
    assert all((later >= earlier).all() for earlier, later in zip(seen, seen[1:], strict=False))


def test_same_inputs_give_the_same_bits_twice():
    regularizer = core.ProbabilityRegularizer()
    results = [run(regularizer=regularizer, solver=core.GradientAscent(lr=0.1)) for _ in range(2)]
    assert torch.equal(results[0].noise.flat(), results[1].noise.flat())
    assert torch.equal(results[0].images, results[1].images)
    columns = [[{k: v for k, v in row.items() if k != "seconds"} for row in result.history.rows] for result in results]
    assert columns[0] == columns[1]


def test_a_solver_object_can_be_shared_between_runs():
    solver = core.GradientAscent(lr=0.1)
    assert torch.equal(run(solver=solver).noise.flat(), run(solver=solver).noise.flat())


def test_improbable_noise_does_not_become_the_best():
    """A large step leaves the shell at once: the start is returned although its reward is lower."""
    noise_map = sample_map(batch=1)
    free = run(noise_map, solver=core.GradientAscent(lr=1.0), floor=0.0)
    kept = run(noise_map, solver=core.GradientAscent(lr=1.0), floor=0.01)
    assert kept.history.best == [0] and free.history.best != [0]
    torch.testing.assert_close(kept.noise.flat(), start(noise_map).flat())


def test_the_regulariser_keeps_the_noise_probable():
    solver = core.GradientAscent(lr=0.2)
    free = run(solver=solver, iterations=25).history.rows[-1]["log_p"]
    kept = run(solver=solver, iterations=25, regularizer=core.ProbabilityRegularizer()).history.rows[-1]["log_p"]
    assert all(a < -15 < -5 < b for a, b in zip(free, kept, strict=True))


def test_the_penalty_is_part_of_the_gradient():
    noise_map = sample_map()
    noise = start(noise_map).map(lambda tensor: tensor * 1.7)
    problem = core.Problem(noise_map, mean_pixel, core.ProbabilityRegularizer(gamma=2.0, k=3, permutations=4))
    assert (problem.check_gradient(noise, step=1e-5) < 1e-4).all()


def test_the_gradient_check_is_recorded_and_sees_a_wrong_gradient():
    assert max(run(check_gradient=True).history.settings["gradient_error"]) < 1e-3

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * 1.5

    wrong = run(reward=lambda images, prompts: mean_pixel(Wrong.apply(images), None), check_gradient=True)
    assert min(wrong.history.settings["gradient_error"]) > 0.3


@pytest.mark.parametrize("settings, rows, reason", [
    ({"seconds": 0.0}, 1, "time budget of 0.0 s is spent"),
    ({"target": -9.0}, 1, "reached the target score -9.0"),
    ({"stop_probability": 0.9999999}, 1, "P(z) fell below"),
    ({"stop_probability": 1e-3, "solver": core.GradientAscent(lr=1.0)}, 2, "P(z) fell below"),
])
def test_a_run_stops_when_told_to_and_says_why(settings, rows, reason):
    history = run(**settings).history
    assert len(history.rows) == rows and reason in history.stopped


@pytest.mark.parametrize("solver", [
    core.GradientAscent(), core.ZeNO(4), core.Search(4), core.Search.pcn(), core.LGD(samples=2),
])
def test_the_time_budget_is_kept(solver):
    """Whatever a solver spends its time on after its row is complete, and with the check of the best at the end."""

    def slow(x, sigma):
        time.sleep(0.002)
        return denoise(x, sigma)

    noise_map = sample_map()
    denoise, noise_map.denoise = noise_map.denoise, slow
    began = time.perf_counter()
    history = run(noise_map, solver=solver, seconds=0.6, iterations=10000).history
    elapsed = time.perf_counter() - began
    assert "time budget of 0.6 s is spent" in history.stopped and len(history.rows) > 1
    each = 0.6 / len(history.rows)
    assert 0.6 - 4 * each < elapsed < 0.6 + 3 * each


def after(calls, action):
    """A reward that does `action(score)` from its n-th call on."""
    count = []

    def reward(images, prompts):
        count.append(1)
        scores = mean_pixel(images, prompts)
        return action(scores) if len(count) > calls else scores

    return reward


def interrupt(scores):
    raise KeyboardInterrupt


@pytest.mark.parametrize("action, reason", [
    (lambda scores: scores * float("nan"), "the reward reward is nan at iteration 3"),
    (lambda scores: scores * float("inf"), "at iteration 3; expected finite numbers"),
    (lambda scores: (scores * 0).sqrt() + scores.detach(), "the gradient of the reward by the noise is nan"),
    (interrupt, "interrupted"),
])
def test_what_was_found_is_kept_when_a_run_breaks(action, reason):
    result = run(reward=after(3, action), solver=core.GradientAscent(lr=0.1))
    assert reason in result.history.stopped
    assert len(result.history.rows) == 3 and result.history.best == [2, 2]


@pytest.mark.parametrize("calls", [1, 3])
def test_an_interruption_between_scoring_and_recording_leaves_a_history_that_fits(calls):
    result = run(watch=(after(calls, interrupt),), solver=core.GradientAscent(lr=0.1))
    assert len(result.history.rows) == calls and result.history.stopped == "interrupted"
    assert all(0 <= index < calls for index in result.history.best)


def test_an_interruption_before_anything_was_evaluated_passes():
    with pytest.raises(KeyboardInterrupt):
        run(watch=(after(0, interrupt),))


def test_an_interruption_of_the_first_step_keeps_what_it_evaluated():
    """The start, here; the tilted noise that Trust may begin with is not known yet."""
    solver = core.TrustAscent(tilt=0.3)
    result = run(reward=after(1, interrupt), solver=solver)
    assert result.history.stopped == "interrupted" and len(result.history.rows) == 1


def test_a_reward_that_is_not_finite_from_the_start_is_an_error():
    with pytest.raises(core.NotFiniteError, match="at iteration 0; expected finite numbers"):
        run(reward=after(0, lambda scores: scores * float("nan")))


def test_other_exceptions_pass_and_leave_the_flags_as_they_were():
    class Interrupted(BaseException):
        """Stands for ComfyUI's interruption."""

    def interrupt_third(phase, index, total):
        if phase == "backward":
            raise Interrupted

    with torch.no_grad():
        with pytest.raises(Interrupted):
            run(sample_map(on_step=interrupt_third))
        assert not torch.is_grad_enabled()


def test_watched_rewards_are_recorded_and_never_optimised():
    def darkness(images, prompts):
        return -images.mean(dim=(1, 2, 3))

    watched, alone = run(watch=(darkness,)), run()
    assert torch.equal(watched.noise.flat(), alone.noise.flat())
    assert watched.history.watched == ["darkness"]
    scores, seen = watched.history.column("score", 1), watched.history.column("watch/darkness", 1)
    assert seen == pytest.approx([-value for value in scores])


def test_the_history_goes_to_json_and_holds_every_column():
    history = run(regularizer=core.ProbabilityRegularizer(), solver=core.GradientAscent(), iterations=2).history
    record = json.loads(history.to_json())
    assert [row["iteration"] for row in record["rows"]] == [0, 1, 2]
    for key in ("score", "log_p", "log_p_initial", "norm", "penalty"):
        assert all(len(row[key]) == 2 for row in record["rows"])
    assert record["rows"][-1]["gradient_norm"] is None and min(record["rows"][0]["gradient_norm"]) > 0
    assert [picture.shape for picture in history.pictures] == [(2, 3, 12, 12)] * 3


def test_the_history_knows_what_the_best_candidate_scored():
    """No row holds it: rows are the centres that candidates were drawn around."""
    result = run(solver=core.ZeNO(candidates=20, beta=1.0, mode="sample"), watch=(rewards.Brightness(),), iterations=1)
    history = result.history
    torch.testing.assert_close(history.best_row["score"], mean_pixel(result.images, None).tolist())
    torch.testing.assert_close(history.best_row["watch/brightness"], rewards.Brightness()(result.images).tolist())
    assert history.best_row["score"] != [history.column("score", i)[row] for i, row in enumerate(history.best)]
    expected = (result.images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(history.best_picture, expected)


def test_the_summary_says_what_was_gained_and_why_it_stopped():
    result = run(watch=(rewards.Brightness(),), diagnose=True)
    lines = result.history.summary().splitlines()
    first, best = result.history.rows[0], result.history.best_row
    assert lines[0].startswith("5 iterations done; ")
    for item in (0, 1):
        line = lines[1 + item]
        assert f"picture {item}: mean_pixel {first['score'][item]:.3f} -> {best['score'][item]:.3f}" in line
        assert f"brightness {first['watch/brightness'][item]:.3f} -> " in line and "best from iteration 5" in line
    assert lines[3].startswith("picture 0: still improving")
    assert json.loads(result.history.to_json())["diagnosis"]["types"] == ["none", "none"]


def test_the_prompts_of_the_map_reach_the_reward():
    seen = []

    def reward(images, prompts):
        seen.append(prompts)
        return mean_pixel(images, prompts)

    run(sample_map(prompts=["a", "b"]), reward=reward, iterations=0)
    assert seen == [["a", "b"]]


@pytest.mark.parametrize("reward, message", [
    (lambda images, prompts: images.mean(), r"returned \(\); expected one score per picture"),
    (lambda images, prompts: [0.0, 0.0], "returned list; expected one score per picture"),
])
def test_rewards_of_the_wrong_form_are_refused(reward, message):
    with pytest.raises(ValueError, match=message):
        run(reward=reward)


def test_rewards_without_gradient_are_refused():
    with pytest.raises(RuntimeError, match="lost the gradient"):
        run(reward=lambda images, prompts: mean_pixel(images, prompts).detach())

    class Bytes:
        name, differentiable = "file size", False

    with pytest.raises(ValueError, match="file size is not differentiable"):
        run(reward=Bytes())


@pytest.mark.parametrize(
    "solver", [core.GradientAscent(), core.TrustAscent(), core.Tilt(), core.LGD()], ids=lambda solver: solver.name
)
def test_a_reward_that_says_it_has_no_gradient_is_refused_before_anything_is_sampled(solver):
    asked = []
    noise_map = sample_map()
    noise_map.on_step = lambda *place: asked.append(place)
    combined = rewards.Combine([mean_pixel, rewards.JPEG()])
    with pytest.raises(ValueError, match="jpeg compressibility .* Take the differentiable proxy .*, or use a solver"):
        core.optimize(noise_map, combined, start(noise_map), solver, iterations=1)
    assert asked == []
    assert core.optimize(noise_map, combined, start(noise_map), solver, iterations=0).history.rows and asked



@pytest.mark.parametrize("arguments, message", [
    ({"lr": 0}, "expected a number > 0"), ({"clip": 0.0}, "or None for no clipping"),
    ({"momentum": 1.0}, r"in \[0, 1\)"), ({"optimizer": "lbfgs"}, "expected 'adam', 'sgd' or 'ou'"),
])
def test_bad_solver_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        core.GradientAscent(**arguments)


def test_a_picture_that_is_masked_altogether_is_sampled_and_left_alone():
    mask = torch.zeros(2, 1, 6, 6)
    mask[1, :, :3] = 1
    noise_map = sample_map(mask=mask)
    result = run(noise_map, regularizer=core.ProbabilityRegularizer(), solver=core.GradientAscent(lr=0.1))
    noise = start(noise_map)
    assert torch.equal(result.noise.initial[0], noise.initial[0])
    assert not torch.equal(result.noise.initial[1], noise.initial[1])
    assert all(row["log_p"][0] == 0 and row["penalty"][0] == 0 for row in result.history.rows)


@pytest.mark.parametrize("settings", [{"gamma": -1}, {"k": 0}, {"permutations": -1}])
def test_bad_regulariser_settings_are_refused(settings):
    with pytest.raises(ValueError, match="expected gamma >= 0, k >= 1 and permutations >= 0"):
        core.ProbabilityRegularizer(**settings)


def test_watched_rewards_of_one_name_are_numbered():
    """Two brightnesses, another's part of that name, and one that is called like the second."""

    def dark(images, prompts):
        return -rewards.Brightness()(images)

    dark.__name__ = "brightness 2"
    reward = rewards.Combine([rewards.Brightness(), rewards.Contrast()])
    assert run(reward=dark, watch=(dark,), iterations=0).history.watched == ["brightness 2"]
    history = run(reward=reward, watch=(rewards.Brightness(), dark, rewards.Brightness()), iterations=0).history
    assert history.watched == ["brightness", "contrast", "brightness 3", "brightness 2", "brightness 4"]
    row = history.rows[0]
    assert row["watch/brightness"] == row["watch/brightness 4"] == [-score for score in row["watch/brightness 2"]]


def test_a_finished_run_is_not_said_to_have_run_out_of_time():
    assert run(iterations=0, seconds=1e-9).history.stopped == "0 iterations done"


def test_negative_iterations_are_refused():
    with pytest.raises(ValueError, match="expected 0 or more"):
        run(iterations=-1)


def test_brightness_is_the_mean_pixel_between_minus_one_and_one_unclamped():
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4), torch.full((3, 4, 4), 1.5)])
    assert rewards.Brightness()(images, None).tolist() == [-1, 1, 2]
    assert rewards.Brightness(negative=True)(images, None).tolist() == [1, -1, -2]
    assert rewards.Brightness()(images.half(), None).dtype == torch.float32


class Full:
    """A decoder that runs out of memory at its n-th call."""

    def __init__(self, decode, call, error=None):
        self.decode, self.call, self.count = decode, call, 0
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, latent):
        self.count += 1
        if self.count >= self.call:
            raise self.error
        return self.decode(latent)


@pytest.mark.parametrize("error", [None, RuntimeError("MPS backend out of memory (MPS allocated: 8 GiB)")])
def test_memory_that_runs_out_late_keeps_the_best(error):
    noise_map = sample_map()
    noise_map.decode = Full(noise_map.decode, 6, error)
    result = run(noise_map, solver=core.GradientAscent(lr=0.1), iterations=20)
    assert result.history.stopped.startswith("out of memory at iteration 2: ")
    assert len(result.history.rows) == 2 and result.history.best == [1, 1]


def test_memory_that_runs_out_before_anything_is_found_is_seen_by_its_type():
    noise_map = sample_map()
    noise_map.decode = Full(noise_map.decode, 2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(noise_map, solver=core.GradientAscent())


@pytest.mark.parametrize("solver", [core.TrustAscent(), core.Tilt()])
def test_memory_that_runs_out_once_the_start_was_judged_by_itself_keeps_the_start(solver):
    """Its gradient, or the run that is tilted, takes the memory that is not there."""
    noise_map = sample_map()
    noise_map.decode = Full(noise_map.decode, 2)
    result = run(noise_map, solver=solver)
    assert result.history.stopped.startswith("out of memory at iteration 0: ") and len(result.history.rows) == 1
    torch.testing.assert_close(result.noise.flat(), start(noise_map).flat())


def test_memory_that_runs_out_in_the_tilted_run_alone_lets_the_climb_begin_without(monkeypatch):
    def full(self, problem, noise):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(core.Tilt, "run", full)
    found, plain = (run(solver=core.TrustAscent(tilt=tilt), iterations=6) for tilt in (0.3, 0.0))
    assert found.history.stopped == "6 iterations done" and found.failure is None
    assert found.history.column("score") == plain.history.column("score")
    assert [each for each in found.history.warnings if "memory ran out in the tilted run" in each]


@pytest.mark.parametrize("solver", [core.Search.best_of_n(candidates=4), core.ZeNO(candidates=4)])
def test_memory_that_runs_out_among_the_first_candidates_keeps_the_best_that_was_evaluated(solver):
    noise_map = sample_map(batch=1, most_rows=1)
    decode, noise = noise_map.decode, start(noise_map)
    free = core.optimize(noise_map, mean_pixel, noise, solver, iterations=1)
    noise_map.decode = Full(decode, 4)  # after the start and two candidates
    watch = (rewards.Brightness(),)
    result = core.optimize(noise_map, mean_pixel, noise, solver, iterations=5, watch=watch)
    history = result.history
    assert history.stopped.startswith("out of memory at iteration 0: ") and len(history.rows) == 1
    assert history.rows[0]["score"] == free.history.rows[0]["score"] and len(history.rows[0]["watch/brightness"]) == 1
    assert history.best_row["score"] == mean_pixel(decode(result.latent), None).tolist()
    assert history.best_row["score"] >= history.rows[0]["score"]
    assert "out of memory" in history.summary()


class Fragile:
    """A reward that fails from its nth picture on."""

    name, differentiable, error = "fragile", True, ConnectionError("the server is gone")

    def __init__(self, pictures):
        self.left = pictures

    def __call__(self, images, prompts):
        self.left -= len(images)
        if self.left < 0:
            raise self.error
        return mean_pixel(images, prompts)


@pytest.mark.parametrize("solver", [
    core.GradientAscent(lr=0.1), core.TrustAscent(), core.Search.best_of_n(2), core.ZeNO(2),
    core.GradientAscent(estimator=core.Hybrid2(q=2)),
])
@pytest.mark.parametrize("watched", [False, True])
def test_a_reward_that_fails_once_it_has_worked_keeps_the_best(solver, watched, caplog):
    noise_map = sample_map(batch=1)
    settings = {"watch": (Fragile(2),)} if watched else {"reward": Fragile(10)}
    result = run(noise_map, solver=solver, iterations=20, **settings)
    history = result.history
    assert history.stopped.startswith("the reward fragile failed: ConnectionError: the server is gone, at iteration ")
    assert history.ended_early and 1 < len(history.rows) < 20
    assert history.best_row["score"][0] >= max(history.column("score"))
    torch.testing.assert_close(mean_pixel(result.images, None).tolist(), history.best_row["score"])
    assert "Traceback" in caplog.text
    with pytest.raises(RewardError, match="^the reward fragile failed: ConnectionError: the server is gone$"):
        result.whole()
    assert run(noise_map, iterations=1).whole().history.stopped == "1 iteration done"


@pytest.mark.parametrize("error", [
    ValueError("no face is left"), ValueError(), AssertionError(), Exception("onnxruntime's"),
    InterruptedError("a system call"), FileNotFoundError("no such file"),
])
def test_whatever_a_reward_raises_once_it_has_worked_the_best_is_kept(error):
    reward = Fragile(5)
    reward.error = error
    result = run(sample_map(batch=1), solver=core.GradientAscent(lr=0.1), iterations=20, reward=reward)
    names_the_file = isinstance(error, FileNotFoundError)
    assert result.history.stopped.startswith("no such file" if names_the_file else "the reward fragile failed: ")
    assert result.history.stopped.endswith(", at iteration 5")
    assert result.history.best_row["score"][0] > result.history.rows[0]["score"][0]
    speaks_for_itself = names_the_file or (isinstance(error, ValueError) and str(error))
    with pytest.raises(type(error) if speaks_for_itself else RewardError):
        result.whole()


class FailsOnItsWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        return scores.clone()

    @staticmethod
    def backward(ctx, d_scores):
        raise RuntimeError("no kernel image is available")


class Changing(Fragile):
    """A reward that from its nth picture on does something else, which is no answer."""

    def __init__(self, pictures, otherwise):
        super().__init__(pictures)
        self.otherwise = otherwise

    def __call__(self, images, prompts):
        self.left -= len(images)
        scores = mean_pixel(images, prompts)
        return self.otherwise(scores) if self.left < 0 else scores


@pytest.mark.parametrize(("otherwise", "told"), [
    (lambda scores: scores[:, None], r"fragile returned \(1, 1\); expected one score per picture"),
    (lambda scores: None, "fragile returned NoneType; expected one score per picture"),
    (FailsOnItsWayBack.apply, "the reward fragile failed: RuntimeError: no kernel image is available"),
])
def test_an_answer_that_is_none_and_a_failing_way_back_keep_the_best_too(otherwise, told):
    reward = Changing(5, otherwise)
    result = run(sample_map(batch=1), solver=core.GradientAscent(lr=0.1), iterations=20, reward=reward)
    assert re.match(told, result.history.stopped) and result.history.stopped.endswith(", at iteration 5")
    assert result.history.best_row["score"][0] > result.history.rows[0]["score"][0]


def test_parts_that_fail_keep_the_best_too():
    parts = rewards.Combine([mean_pixel, Fragile(12)])
    result = run(sample_map(batch=1), solver=core.GradientAscent(lr=0.1), iterations=20, reward=parts)
    assert result.history.stopped.startswith("the reward fragile failed: ConnectionError")
    parts.part_scores = lambda images, prompts: 1 / 0
    with pytest.raises(RewardError, match="^the reward .* failed: ZeroDivisionError: division by zero$"):
        part_scores(parts, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("solver", [core.Search.best_of_n(8), core.ZeNO(8)])
def test_a_reward_that_fails_among_the_first_candidates_keeps_the_best_of_those_before(solver):
    noise_map = sample_map(batch=1, most_rows=2)
    result = run(noise_map, solver=solver, reward=Fragile(7))
    assert result.history.stopped.endswith("the server is gone, at iteration 0") and len(result.history.rows) == 1
    assert result.history.best_row["score"][0] > result.history.rows[0]["score"][0]


@pytest.mark.parametrize("pictures, solver", [
    (0, core.GradientAscent()), (1, core.TrustAscent()), (1, core.Tilt()), (1, core.Search.best_of_n(2)),
])
def test_a_reward_that_fails_before_more_than_the_start_is_known_raises(pictures, solver):
    with pytest.raises(RewardError, match="the server is gone"):
        run(sample_map(batch=1), reward=Fragile(pictures), solver=solver)


def test_a_device_that_broke_under_a_reward_is_no_end_of_a_search():
    reward = Fragile(6)
    reward.error = RuntimeError("CUDA error: device-side assert triggered")
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(sample_map(batch=1), reward=reward, iterations=20)


def test_memory_that_ran_out_is_a_failure_for_who_wants_a_whole_search():
    noise_map = sample_map()
    noise_map.decode = Full(noise_map.decode, 6, RuntimeError("CUDA out of memory. Tried\nto allocate"))
    result = run(noise_map, solver=core.GradientAscent(lr=0.1), iterations=20)
    assert result.history.stopped == "out of memory at iteration 2: CUDA out of memory. Tried"
    with pytest.raises(RuntimeError, match="Tried\nto allocate"):
        result.whole()


def test_other_errors_of_a_device_are_not_taken_for_memory():
    noise_map = sample_map()
    noise_map.decode = Full(noise_map.decode, 6, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(noise_map, iterations=20)


class Drifting:
    """A denoiser with a state: each run it gives a little more."""

    def __init__(self, denoise, by):
        self.denoise, self.by, self.calls = denoise, by, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return self.denoise(x, sigma) * (1 + self.by * (self.calls // 4))


@pytest.mark.parametrize("solver", [core.Search(4), core.ZeNO(4), core.GradientAscent(estimator=core.ZerothOrder(q=2))])
def test_a_noise_that_does_not_sample_to_its_picture_again_is_told(solver):
    noise_map = sample_map()
    noise_map.denoise = Drifting(noise_map.denoise, 0.02)
    warnings = run(noise_map, solver=solver).history.warnings
    assert [text.split(",")[0] for text in warnings] == ["picture 0: its noise", "picture 1: its noise"]
    assert all("will not replay" in text and "EasyCache" in text for text in warnings)
    assert run(solver=solver).history.warnings == []


def test_plain_sampling_costs_one_run_and_is_not_checked():
    noise_map, calls = sample_map(), []
    noise_map.on_step = lambda phase, index, total: calls.append(phase)
    run(noise_map, iterations=0)
    assert len(calls) == noise_map.stages == core.stages(noise_map, core.GradientAscent(), 0)


def test_an_x_t_of_zeros_is_no_noise_and_stays_while_the_injected_ones_are_searched():
    noise_map = sample_map()
    noise = core.Noise(torch.zeros(2, 3, 6, 6, dtype=torch.float64), start(noise_map).injected)
    result = core.optimize(noise_map, mean_pixel, noise, core.GradientAscent(lr=0.03), iterations=5)
    scores = result.history.column("score")
    assert not result.noise.initial.any() and scores[-1] > scores[0]
    assert result.history.best_row["score"][0] > scores[0]
    assert result.history.warnings == ["x_T is all zeros, which is no noise: the injected noises alone are searched"]
    assert all(row["log_p_initial"] == [0.0, 0.0] for row in result.history.rows)
    assert noise_map.part == "all"


def test_what_a_search_without_x_t_learns_of_memory_the_map_itself_knows():
    """Whoever made the map asks its plan; a copy's would be out of reach."""
    noise_map = sample_map(memory=1.0)
    noise = core.Noise(torch.zeros(2, 3, 6, 6, dtype=torch.float64), start(noise_map).injected)
    core.optimize(noise_map, mean_pixel, noise, core.GradientAscent(lr=0.03), iterations=2)
    assert set(noise_map.plan.sizes) == {"step", "decoder"} and noise_map.part == "all"


def test_nothing_but_zeros_is_refused_unless_nothing_is_searched():
    noise_map = sample_map(eta=0.0)
    noise = noise_map.randn(0).to(torch.float64).map(torch.zeros_like)
    with pytest.raises(ValueError, match="no noise to search; expected noise to start from"):
        core.optimize(noise_map, mean_pixel, noise, iterations=1)
    assert core.optimize(noise_map, mean_pixel, noise, iterations=0).history.warnings == []


def test_a_search_of_nothing_but_zeros_is_refused_before_anything_is_sampled():
    """Moved, they would be what is no noise; and the injected ones, which are noise, were not asked for."""
    noise_map, calls = sample_map(), []
    noise_map.part, noise_map.on_step = "initial", lambda *stage: calls.append(stage)
    noise = core.Noise(torch.zeros(2, 3, 6, 6, dtype=torch.float64), start(noise_map).injected)
    with pytest.raises(ValueError, match="part is 'initial', .*add_noise.* or part 'all'"):
        core.optimize(noise_map, mean_pixel, noise, iterations=1)
    assert calls == []
    assert core.optimize(noise_map, mean_pixel, noise, iterations=0).history.warnings == []


def test_a_search_in_which_nothing_passed_the_floor_says_so():
    noise_map = sample_map()
    noise = start(noise_map)
    noise = core.Noise(noise.initial + torch.tensor([0.0, 3.0]).view(2, 1, 1, 1), noise.injected)
    history = core.optimize(noise_map, mean_pixel, noise, iterations=2).history
    (warning,) = history.warnings
    assert warning.startswith("picture 1: no noise was probable enough to become the best (P at least 0.01")
    assert "warning: picture 1: no noise" in history.summary()
    assert json.loads(history.to_json())["warnings"] == [warning]


@pytest.mark.parametrize("error", [core.NotFiniteError("NaN"), torch.cuda.OutOfMemoryError("out of memory")])
def test_a_diagnosis_that_fails_does_not_lose_the_search(error, monkeypatch):
    def fails(problem, noise):
        raise error

    expected = run(solver=core.GradientAscent(lr=0.1))
    monkeypatch.setattr(sys.modules["comfyui_dno.core.optimize"], "diagnosis_of", fails)
    result = run(solver=core.GradientAscent(lr=0.1), diagnose=True)
    assert torch.equal(result.images, expected.images) and result.history.diagnosis is None
    assert result.history.warnings == [f"the diagnosis failed: {error}"]


def test_limits_that_are_no_numbers_are_refused():
    for name in ("seconds", "target", "floor", "stop_probability"):
        with pytest.raises(ValueError, match=f"{name.removeprefix('stop_')} is nan; expected a"):
            run(**{name: float("nan")})


@pytest.mark.parametrize("part", ["first 2", "last 1", "injected", "initial", "all"])
@pytest.mark.parametrize("apart", [True, False])
def test_pictures_with_masks_of_different_area_are_regularised_in_every_part(part, apart):
    mask = torch.ones(2, 1, 6, 6)
    mask[1, :, :3] = 0
    noise_map = sample_map(mask=mask, part=part)
    noise = start(noise_map).map(lambda tensor: tensor * 1.7 + 0.3)
    regularizer = core.ProbabilityRegularizer(permutations=0, apart=apart)
    value, gradient = regularizer.gradient(noise_map, noise)
    for item in (0, 1):
        alone = sample_map(batch=1, mask=mask[item : item + 1], part=part)
        one, its_gradient = regularizer.gradient(alone, noise.item(item))
        torch.testing.assert_close(value[item], one[0])
        torch.testing.assert_close(gradient.item(item).flat(), its_gradient.flat())


def test_a_limit_stops_the_run_only_where_every_picture_is_past_it():
    noise_map = sample_map()
    noise = noise_map.randn(0).to(torch.float64)
    shifted = torch.tensor([3.0, 0.0], dtype=torch.float64)[:, None]  # the first picture's noise is improbable

    def reward(images, prompts):
        return images.mean(dim=(1, 2, 3)) * 0 + torch.tensor([0.0, 1.0])

    far = noise.with_flat(noise.flat() + shifted)
    for start, limit in ((noise, {"target": 0.5}), (far, {"stop_probability": 0.01})):
        history = core.optimize(noise_map, reward, start, core.Search.pcn(1e-4), iterations=2, **limit).history
        assert history.stopped == "2 iterations done"


def test_the_time_budget_leaves_room_for_the_check_of_the_best(monkeypatch):
    """4 steps; an iteration of 10 stages that took 10 s, and a check of 4: there must be 14 s left."""
    clock_of = sys.modules["comfyui_dno.core.optimize"]
    now = [0.0]
    monkeypatch.setattr(clock_of.time, "perf_counter", lambda: now[0])
    for seconds, spent in ((24.1, False), (23.9, True)):
        now[0] = 0.0
        problem = core.Problem(sample_map(), mean_pixel, started=0.0, limits=core.limits.Limits(seconds))
        clock = clock_of.Clock(problem, core.GradientAscent())
        now[0] = 10.0
        assert bool(clock.spent()) == spent


EVERY_SOLVER = {
    "adam": core.GradientAscent(lr=0.05), "hybrid": core.GradientAscent(lr=0.05, estimator=core.Hybrid2(q=2)),
    "zo-sgd": core.GradientAscent(lr=0.05, optimizer="sgd", estimator=core.ZerothOrder(q=2)),
    "zeno": core.ZeNO(candidates=4), "best of N": core.Search.best_of_n(3),
    "zero-order": core.Search.zero_order(3), "pCN": core.Search.pcn(), "LGD": core.LGD(),
}  # fmt: skip


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("solver", EVERY_SOLVER.values(), ids=EVERY_SOLVER)
def test_every_solver_warns_of_a_noise_that_gives_another_latent_when_it_is_sampled_once_more(solver, resumed):
    plain = sample_map(keep_graphs=True)  # whose steps are not run again, which would notice the state
    noise = start(plain)
    if resumed:
        noise = core.optimize(plain, mean_pixel, noise, solver, iterations=1, floor=0.0).noise
    steady = core.optimize(plain, mean_pixel, noise, solver, iterations=1, floor=0.0)
    assert not any("sampled once more" in warning for warning in steady.history.warnings)
    calls = itertools.count(1)
    drifting = replace(plain, denoise=lambda x, sigma: plain.denoise(x, sigma) * (1 + 0.01 * next(calls)))
    found = core.optimize(drifting, mean_pixel, noise, solver, iterations=1, floor=0.0)
    assert any("sampled once more, gives another latent" in warning for warning in found.history.warnings)


@pytest.mark.parametrize("solver", [core.GradientAscent(), core.Search(candidates=50), core.ZeNO(candidates=50)])
@pytest.mark.parametrize("calls", [0, 9, 23])
def test_a_stop_keeps_the_best_within_one_network_call(solver, calls):
    made, asked = [], []

    def stop():
        asked.append(len(made))
        return len(made) > calls

    def denoise(x, sigma):
        made.append(len(x))
        return 0.5 * x

    noise_map = core.SampleMap(denoise, core.Schedule(SIGMAS["vp"]), (1, 3, 4, 4), most_rows=1)
    noise = noise_map.randn(0)
    result = core.optimize(noise_map, rewards.Brightness(), noise, solver, iterations=40, stop=stop, diagnose=True)
    # Without a best there is nothing to keep: the first pass, of four calls each way, is awaited.
    assert len(made) <= max(calls + 1, 2 * 4) and result.history.stopped == "stopped by hand"
    assert result.history.rows and result.history.diagnosis is None
    assert torch.allclose(noise_map.sample(result.noise), result.images)


def test_a_stop_after_the_last_iteration_keeps_what_was_found():
    """While the best noise is sampled once more, and while it is diagnosed."""
    noise_map = sample_map()
    noise = start(noise_map)
    asked = []
    expected = core.optimize(noise_map, rewards.Brightness(), noise, iterations=1, stop=lambda: asked.append(1))
    for moment in (len(asked) - 1, len(asked) + 3):
        left = iter(range(moment))
        found = core.optimize(
            noise_map, rewards.Brightness(), noise, iterations=1, diagnose=True,
            stop=lambda left=left: next(left, None) is None,
        )  # fmt: skip
        assert found.history.stopped == "1 iteration done" and found.history.diagnosis is None
        assert torch.equal(found.noise.flat(), expected.noise.flat())


def test_a_run_that_nobody_stops_is_as_without_the_question():
    noise_map = sample_map()
    noise = start(noise_map)
    found, expected = (
        core.optimize(noise_map, rewards.Brightness(), noise, iterations=2, **more) for more in ({"stop": bool}, {})
    )
    assert torch.equal(found.noise.flat(), expected.noise.flat())
    assert found.history.stopped == expected.history.stopped == "2 iterations done"


def test_a_noise_made_in_inference_mode_can_be_searched_outside_of_it():
    noise_map = sample_map()
    with torch.inference_mode():
        noise = core.optimize(noise_map, mean_pixel, start(noise_map), core.Search.best_of_n(2), iterations=1).noise
    assert noise.initial.is_inference()
    found = core.optimize(noise_map, mean_pixel, noise, core.GradientAscent(0.03), iterations=2)
    assert found.history.column("score")[-1] > found.history.column("score")[0]


@pytest.mark.parametrize("error", [IndexError("list index out of range"), OSError("gone"), TypeError("None")])
def test_what_a_reward_of_others_raises_behind_the_search_loses_nothing(error):
    class Odd:
        name = "odd"
        calls = 0

        def __call__(self, images, prompts):
            return mean_pixel(images, prompts)

        def remarks(self, images):
            raise error

    result = run(reward=Odd(), iterations=2)
    assert len(result.history.rows) == 3 and any(str(error) in warning for warning in result.history.warnings)


def test_a_watched_reward_that_fails_for_the_best_leaves_its_iterations_scores():
    """A candidate is the best, so it is asked for once more."""
    calls = itertools.count()

    def watched(images, prompts):
        if next(calls) > 1:
            raise RuntimeError("CUDA out of memory")
        return mean_pixel(images, prompts)

    result = run(watch=(watched,), solver=core.Search.best_of_n(8), iterations=3)
    assert result.history.best_row["score"][0] > result.history.rows[0]["score"][0]
    assert any("since asking failed: CUDA out of memory" in warning for warning in result.history.warnings)


@pytest.mark.parametrize("solver, advice", [
    (core.GradientAscent.ou(core.Hybrid2(q=3, mu=0.05)), "a larger mu than 0.05, a larger q than 3"),
    (core.GradientAscent(estimator=core.ZerothOrder()), "a larger mu than 0.01, a larger q than 16"),
    (core.GradientAscent(), "another seed, or take ZeNO"), (core.TrustAscent(), "another seed, or take ZeNO"),
])
def test_a_reward_without_any_slope_is_told_of_by_picture(solver, advice):
    """The second picture's scores do not move; the first's do, and nothing is said of it."""
    noise_map = sample_map()

    def reward(images, prompts):
        return images.mean(dim=(1, 2, 3)) * torch.tensor([1.0, 0.0]).repeat(len(images) // 2)

    history = core.optimize(noise_map, reward, start(noise_map), solver, iterations=3).history
    (warning,) = [each for each in history.warnings if "changed the score" in each or "gradient was 0" in each]
    assert warning.startswith("picture 1: in ") and advice in warning


@pytest.mark.parametrize("solver", [core.TrustAscent(), core.GradientAscent.ou(core.Hybrid2(q=2))])
def test_nothing_is_said_of_slopes_of_a_picture_that_ended(solver):
    asked = itertools.count()

    def reward(images, prompts):
        broken = torch.tensor([1.0, math.nan if next(asked) > 2 else 1.0]).repeat(len(images) // 2)
        return images.mean(dim=(1, 2, 3)) * broken

    history = run(reward=reward, solver=solver, iterations=8).history
    assert any("picture 1 ended before the others" in each for each in history.warnings)
    assert not [each for each in history.warnings if "changed the score" in each or "gradient was 0" in each]


def test_nothing_is_said_of_slopes_where_nothing_is_searched():
    mask = torch.zeros(2, 1, 6, 6)
    mask[0] = 1
    noise_map = sample_map(mask=mask)
    history = core.optimize(
        noise_map, mean_pixel, start(noise_map), core.GradientAscent(), iterations=2
    ).history
    assert not [each for each in history.warnings if "gradient was 0" in each]

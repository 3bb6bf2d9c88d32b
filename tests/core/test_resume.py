"""A search goes on from its noise file as if it had never stopped, and a noise is not taken for another map's."""

from dataclasses import replace

import pytest
import torch
from comfyui_dno import core
from tiny_models import sample_map

SOLVERS = {
    "adam": core.GradientAscent(lr=0.05),
    "sgd": core.GradientAscent(lr=0.5, optimizer="sgd"),
    "hybrid": core.GradientAscent(lr=0.05, estimator=core.Hybrid2(q=2)),
    "zeno": core.ZeNO(candidates=4, beta=0.1),
    "search": core.Search(candidates=3),
    "tilt": core.Tilt(),
    "trust": core.TrustAscent(),
}


def mean_pixel(images, prompts):
    return images.mean(dim=(1, 2, 3))


def run(noise, solver, iterations, noise_map=None, **settings):
    settings = {"regularizer": core.ProbabilityRegularizer(permutations=5), "floor": 0.0} | settings
    return core.optimize(noise_map or sample_map(), mean_pixel, noise, solver, iterations=iterations, **settings)


def start():
    return sample_map().randn(0).to(torch.float64)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_stopped_saved_and_resumed_equals_never_stopped(solver, tmp_path):
    whole = run(start(), solver, 7)
    run(start(), solver, 3).noise.save(tmp_path / "noise.safetensors")
    rest = run(core.Noise.load(tmp_path / "noise.safetensors"), solver, 4)
    assert torch.equal(rest.noise.checkpoint.noise.flat(), whole.noise.checkpoint.noise.flat())
    assert torch.equal(rest.images, whole.images)
    assert [row["iteration"] for row in rest.history.rows] == [3, 4, 5, 6, 7]
    assert rest.history.rows[1]["score"] == whole.history.rows[4]["score"]
    assert rest.history.best_row["score"] == whole.history.best_row["score"]


def test_the_best_of_the_earlier_run_is_not_lost():
    first = run(start(), core.GradientAscent(lr=0.05), 5)
    checkpoint = replace(first.noise.checkpoint, noise=start())  # the last noise may be worse than the best
    again = run(replace(first.noise, checkpoint=checkpoint), core.GradientAscent(lr=1e-4), 2)
    torch.testing.assert_close(again.images, first.images)
    assert again.history.best_row["score"] > again.history.rows[-1]["score"]
    assert "best from the earlier search" in again.history.summary()


def test_going_on_leaves_the_checkpoint_as_it_was():
    first = run(start(), SOLVERS["adam"], 2)
    once, twice = (run(first.noise, SOLVERS["adam"], 2) for _ in range(2))
    assert torch.equal(once.images, twice.images)


def test_equal_noises_are_equal_files(tmp_path):
    noise = run(start(), SOLVERS["adam"], 1).noise
    for index in range(6):
        noise.save(tmp_path / f"{index}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_another_solver_starts_at_the_best_noise():
    first = run(start(), core.ZeNO(candidates=4), 4)
    history = run(first.noise, core.GradientAscent(), 1).history
    assert history.rows[0]["iteration"] == 0
    torch.testing.assert_close(torch.tensor(history.rows[0]["score"]), mean_pixel(first.images, None).float())


def test_after_a_broken_reward_the_next_search_starts_at_the_best():
    calls = []

    def breaks(images, prompts):
        calls.append(1)
        return mean_pixel(images, prompts) * (float("nan") if len(calls) > 3 else 1.0)

    solver = core.GradientAscent(lr=0.05)
    broken = core.optimize(sample_map(), breaks, start(), solver, iterations=7, floor=0.0)
    assert len(broken.history.rows) == 3 and broken.noise.checkpoint is None
    rest = core.optimize(sample_map(), mean_pixel, broken.noise, solver, iterations=1, floor=0.0)
    assert rest.history.rows[0]["score"] == broken.history.rows[2]["score"]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_moments_do_not_move_what_is_not_optimised_any_more(optimizer):
    solver = core.GradientAscent(lr=0.5, optimizer=optimizer)
    first = run(start(), solver, 2)
    rest = run(first.noise, solver, 3, sample_map(part="initial"))
    last, before = rest.noise.checkpoint.noise, first.noise.checkpoint.noise
    assert torch.equal(last.injected, before.injected) and not torch.equal(last.initial, before.initial)


def test_one_picture_of_a_batch_goes_on_alone():
    """Batch items are independent: the second picture alone takes the way that it took in the batch."""
    first = run(start(), SOLVERS["adam"], 3, regularizer=None)
    whole = run(first.noise, SOLVERS["adam"], 3, regularizer=None)
    alone = run(first.noise.item(1), SOLVERS["adam"], 3, sample_map(batch=1), regularizer=None)
    torch.testing.assert_close(alone.images, whole.images[1:], rtol=1e-9, atol=1e-9)


def test_the_result_says_what_replays_it():
    noise = run(start(), SOLVERS["adam"], 1).noise
    assert noise.settings == {"sigmas": [8.0, 3.0, 1.2, 0.5, 0.0], "family": "vp", "s_noise": 1.0, "eta": 1.0}


@pytest.mark.parametrize("settings, message", [
    ({"eta": 0.5}, "made with eta 0.5, but here it is 1.0"),
    ({"family": "flow"}, "made with family 'flow'"),
    ({"sigmas": [9.0, 3.0, 1.2, 0.5, 0.0]}, r"sigmas 9, 3, 1.2, .. \(5 of them\), but here it is 8, 3"),
    ({"sigmas": [8.0, 3.0, 0.0]}, r"3 of them"),
    ({"model": "abc"}, "made with model 'abc', but here it is 'xyz'"),
    ({"s_noise": 0.9}, "made with s_noise 0.9, but here it is 1.0"),
])
def test_a_noise_of_another_model_schedule_or_eta_is_refused(settings, message):
    noise_map = sample_map(model="xyz")
    with pytest.raises(ValueError, match=message):
        run(replace(start(), settings=settings), None, 1, noise_map)
    run(replace(start(), settings={}), None, 0, noise_map)


def test_sigmas_of_another_device_may_differ_by_rounding():
    sigmas = [8.0001, 3.0, 1.2, 0.5, 0.0]
    run(replace(start(), settings={"sigmas": sigmas}), None, 0)

"""Floors on watched rewards: what may become the best, what the history says of it, and what is refused beforehand."""

import math

import pytest
import torch
from comfyui_dno import core, rewards
from tiny_models import sample_map


def mean_pixel(images, prompts):
    return images.flatten(1).mean(dim=1)


def flatness(images, prompts):
    """Falls while mean_pixel is climbed away from 0.3."""
    return -(images.flatten(1).mean(dim=1) - 0.3).square()


def start():
    return sample_map().randn(0).to(torch.float64)


def search(floors, reward=mean_pixel, solver=None, iterations=10, noise=None, watch=(flatness,), **settings):
    solver = solver or core.GradientAscent(0.1)
    settings = {"floor": 0.0, "watch": watch, "iterations": iterations, **settings}
    return core.optimize(sample_map(), reward, noise or start(), solver, floors=floors, **settings)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def columns(history, key):
    return double([row[key] for row in history.rows])


SOLVERS = [core.GradientAscent(0.1), core.TrustAscent(), core.ZeNO(candidates=4), core.Search.zero_order(4)]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
@pytest.mark.parametrize("floor", [core.Drop(0.001), "absolute"])
def test_the_best_is_the_highest_score_above_the_floor(solver, floor):
    free = search({}, solver=solver).history
    least = columns(free, "watch/flatness")[0] - 0.001
    floors = {"flatness": least.min().item() if floor == "absolute" else floor}
    least = torch.full_like(least, floors["flatness"]) if floor == "absolute" else least
    result = search(floors, solver=solver)
    history = result.history
    found = double(history.best_row["watch/flatness"])
    assert (found >= least).all()
    torch.testing.assert_close(flatness(result.images, None), found)
    passing = columns(history, "watch/flatness") >= least
    highest = torch.where(passing, columns(history, "score"), -math.inf).amax(dim=0)
    best = double(history.best_row["score"])
    assert (best >= highest).all() and (best < double(free.best_row["score"])).any()
    if isinstance(solver, (core.GradientAscent, core.TrustAscent)):  # the others have candidates between the rows
        torch.testing.assert_close(best, highest)


def test_the_history_names_the_floor_that_held_and_of_which_picture():
    free = search({}).history
    low, high = free.column("watch/flatness", 0), free.column("watch/flatness", 1)
    held = search({"flatness": min(low)}).history
    assert held.held[0] == [] and "held" not in held.summary().splitlines()[1]
    between = (min(low + high) + max(min(low), min(high))) / 2
    held = search({"flatness": between}).history
    assert sorted(map(tuple, held.held)) == [(), ("flatness",)]
    assert held.summary().count("higher scores were held by the floor on flatness") == 1
    assert '"held"' in held.to_json()


def test_a_start_below_the_floor_holds_nothing_by_itself():
    assert search({"flatness": 1.0}, iterations=0).history.held == [[], []]


def test_a_higher_score_that_was_refused_is_remembered_when_lower_ones_follow():
    noise = start()
    best = core.problem.Best(floor=-4.6, floors={"watched": 0.5})
    log_p = torch.zeros(2)
    for score, watched in ((1.0, 0.9), (3.0, 0.1), (0.5, 0.1), (2.0, 0.7)):
        scores = torch.tensor([score, score / 2])
        best.offer(noise, noise.initial, noise.initial, scores, log_p, 0, {"watched": torch.full((2,), watched)})
    assert best.scores.tolist() == [2.0, 1.0] and best.held() == [["watched"], ["watched"]]


def test_the_floor_on_p_is_named_too():
    history = search({}, solver=core.GradientAscent(1.0), floor=0.01).history
    assert all("P" in held for held in history.held)


def test_a_picture_that_never_passes_is_returned_as_it_began_and_the_floor_is_named():
    result = search({"flatness": 1.0})
    torch.testing.assert_close(result.noise.flat(), start().flat())
    assert sum("no noise passed the floor on flatness (at least 1)" in text for text in result.history.warnings) == 2


def test_parts_of_a_combined_reward_take_floors():
    reward = rewards.Combine([mean_pixel, flatness], watch_only=[False, True])
    history = search({"flatness": core.Drop(0.004)}, reward, watch=()).history
    assert min(history.best_row["watch/flatness"]) >= columns(history, "watch/flatness")[0].min() - 0.004
    assert any("flatness" in held for held in history.held)


def test_the_tilt_that_breaks_a_floor_loses_to_a_weaker_one():
    noise_map = core.SampleMap(lambda x, sigma: 0.6 * x, core.Schedule([8.0, 3.0, 1.2, 0.0]), (1, 3, 6, 6))
    noise = noise_map.randn(0).to(torch.float64)

    def contrast(images, prompts):
        return images.flatten(1).std(dim=1)

    def blandness(images, prompts):
        return -contrast(images, prompts)

    def found(*strengths, **settings):
        solver = core.Tilt(strengths=strengths)
        return core.optimize(
            noise_map, contrast, noise, solver, iterations=1, floor=0.0, watch=[blandness], **settings
        ).history  # fmt: skip

    start, weak = found(0.1).column("score")
    _, strong = found(0.9).column("score")
    # Between the two as the start sees them; from the weak one the strong one would not be too far.
    drop = strong - (start + weak) / 2
    assert start < weak < strong and drop > strong - weak
    assert found(0.1, 0.9).best_row["score"] == [strong]
    assert found(0.1, 0.9, floors={"blandness": core.Drop(drop)}).best_row["score"] == [weak]


@pytest.mark.parametrize(
    "floors, message",
    [
        (
            {"sharpness": 0.1},
            "a floor on 'sharpness', but watched is 'flatness'; expected the name of a reward in watch=",
        ),
        ({"flatness": math.nan}, "the floor on flatness is nan; expected a finite number"),
    ],
)
def test_a_floor_that_means_nothing_is_refused_before_anything_runs(floors, message):
    def reward(images, prompts):
        raise AssertionError("scored")

    with pytest.raises(ValueError, match=message):
        search(floors, reward)


@pytest.mark.parametrize("most", [-0.1, math.nan, math.inf])
def test_a_drop_is_a_finite_number(most):
    with pytest.raises(ValueError, match="expected a"):
        core.Drop(most)


@pytest.mark.parametrize(
    "text, names, floors",
    [
        ("", [], {}),
        (" ", ["flatness"], {}),
        ("-0.5", ["flatness"], {"flatness": -0.5}),
        ("start-.05", ["flatness"], {"flatness": core.Drop(0.05)}),
        ("start - 0", ["flatness"], {"flatness": core.Drop(0.0)}),
        ("a b 2: 1e-2 ,\n c: start - 2", ["a b 2", "c"], {"a b 2": 0.01, "c": core.Drop(2.0)}),
    ],
)
def test_floors_are_read_as_people_write_them(text, names, floors):
    assert core.floors_of(text, names) == floors


@pytest.mark.parametrize(
    "text, names, message",
    [
        ("0.8", [], "the floor is '0.8' and nothing is watched"),
        ("0.8", ["a", "b"], "watched is 'a', 'b'; expected one watched reward, or the floor's name"),
        ("c: 0.8", ["a", "b"], "a floor on 'c', but watched is 'a', 'b'"),
        ("high", ["a"], "the floor is 'high'; expected a number such as 0.8, or start - 0.05"),
        ("start + 0.1", ["a"], "expected a number such as"),
        ("start", ["a"], "expected a number such as"),
        ("start - -0.1", ["a"], "expected a number such as"),
        ("nan", ["a"], "the floor on a is nan; expected a finite number"),
    ],
)
def test_what_is_no_floor_is_refused(text, names, message):
    with pytest.raises(ValueError, match=message):
        core.floors_of(text, names)
